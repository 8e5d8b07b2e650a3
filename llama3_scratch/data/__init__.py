"""Text on its way to training: read, cleaned, deduplicated, turned into tokens."""
