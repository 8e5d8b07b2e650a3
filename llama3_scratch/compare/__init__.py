"""Ours beside another's: how far apart two tensors are, and transformers' layers filled with our weights."""
