"""The C chapter: products with stored weights, and a layer for a few tokens, as one call each. Optional."""
