"""Text on its way to training: read, cleaned, told apart, turned into tokens."""
