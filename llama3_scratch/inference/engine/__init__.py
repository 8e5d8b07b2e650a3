"""Many requests at once: continuous batching over a paged cache."""
