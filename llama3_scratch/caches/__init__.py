"""KV caches beside the plain one of `cache.py`: quantised to 16, 8 or 4 bits, sliding, kept on disk."""
