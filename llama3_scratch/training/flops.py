"""The floating-point operations of training, from which follows a run's share of the machine's peak (MFU)."""

from __future__ import annotations

from llama3_scratch.config import Config

# The work of a step in forward passes: one is the pass itself, one the gradients of activations, one those of weights.
ALL_WEIGHTS = 3.0
ADAPTERS = 2.0  # frozen weights have no gradients
HEAD = 1.0  # neither has what is below the head


def last_block(config: Config) -> float:
    """Where the last layer learns and none below it."""
    return HEAD + 2 / config.n_layers


def flops_per_token(config: Config, length: int, *, passes: float = ALL_WEIGHTS) -> float:
    """FLOPs of training on one token of rows of `length`: `passes` times a forward pass's, the head at every token."""
    return passes * (config.layer_flops(length) / length + 2 * config.dim * config.vocab_size)
