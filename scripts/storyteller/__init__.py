"""The storyteller's recipe: stories made up from a seed, and requests for stories with given words."""
