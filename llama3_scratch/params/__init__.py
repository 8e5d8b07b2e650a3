"""Params → params: weights quantised to int8, int4 or nf4, and LoRA adapters."""
