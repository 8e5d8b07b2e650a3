"""Weights that learn: the training step and its loop, loss, AdamW, checkpoints, finetuning, a classifier."""
