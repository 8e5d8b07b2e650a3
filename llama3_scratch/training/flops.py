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
    """FLOPs of training on one token, of `passes` times a forward pass's.

    A forward pass takes 2 for each weight of a matrix, and 4 · H · K for each token that is seen, half of `length` on
    average (arXiv:2204.02311, appendix B).
    """
    D, F = config.dim, config.hidden_dim
    HK, GK = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    weights = config.n_layers * (2 * D * HK + 2 * D * GK + 3 * D * F) + D * config.vocab_size
    return passes * (2 * weights + config.n_layers * 4 * HK * (length + 1) / 2)
