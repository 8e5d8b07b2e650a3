"""The scaling of RoPE as GGUF files say it: Llama 3.1's as the tensor rope_freqs, a linear one in the metadata."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import numpy as np

from llama3_scratch.checkpoint.gguf_header import Header
from llama3_scratch.config import Config, RopeScaling
from llama3_scratch.errors import FileError
from llama3_scratch.system.json_fields import float_field, text_field

log = logging.getLogger("llama3_scratch")

ROPE_FREQS = "rope_freqs.weight"


def _blend(scaling: RopeScaling, theta: float, head_dim: int, pair: int) -> float:
    """How much of a pair's own frequency Llama 3.1's scaling keeps, 0 to 1."""
    turns = scaling.original_context * theta ** (-2 * pair / head_dim) / (2 * math.pi)
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    return min(max(blend, 0.0), 1.0)


def scaling_divisors(scaling: RopeScaling, theta: float, head_dim: int) -> list[float]:
    """What Llama 3.1's scaling divides each of the J inverse frequencies by, [J]."""
    blends = [_blend(scaling, theta, head_dim, pair) for pair in range(head_dim // 2)]
    return [1 / ((1 - blend) / scaling.factor + blend) for blend in blends]


def scaling_of(divisors: np.ndarray, theta: float, head_dim: int) -> RopeScaling | None:
    """The scaling of Llama 3.1's kind that explains `divisors` [J] to 1e-6, if there is one."""
    kept = _blend(RopeScaling(), theta, head_dim, head_dim // 2 - 1)
    slowed = 1 / float(divisors[-1]) - kept  # of the slowest pair, whose divisor is the factor where it keeps nothing
    if kept == 1 or slowed <= 0:
        return None
    scaling = RopeScaling(factor=round((1 - kept) / slowed, 3))
    explained = scaling.factor > 0 and np.allclose(
        divisors, scaling_divisors(scaling, theta, head_dim), rtol=1e-6, atol=0
    )
    return scaling if explained else None


def with_rope(header: Header, config: Config) -> Config:
    """`config` with the RoPE scaling of rope_freqs.weight or else of the metadata, never both."""
    path, stored = header.path, header.tensors.get(ROPE_FREQS)
    kind = text_field(header.values, "llama.rope.scaling.type", path, "linear")  # as llama.cpp takes it
    if kind not in ("none", "linear"):
        raise FileError(f"{path}: llama.rope.scaling.type is {kind!r}, expected 'none' or 'linear'")
    older = float_field(header.values, "llama.rope.scale_linear", path, 1.0)
    factor = float_field(header.values, "llama.rope.scaling.factor", path, older) if kind == "linear" else 1.0
    if stored is None:
        return config if factor == 1 else replace(config, rope_divisors=(factor,) * (config.head_dim // 2))
    if factor != 1:
        log.warning("%s: has both %s and llama.rope.scaling.type %r; the tensor counts", path, ROPE_FREQS, kind)
    if stored.kind != "F32" or stored.shape != (config.head_dim // 2,):
        raise FileError(
            f"{path}: tensor {ROPE_FREQS!r} is {stored.kind} {stored.shape}, expected F32 ({config.head_dim // 2},)"
        )
    divisors = np.memmap(stored.path, "<f4", "r", stored.start, stored.shape)
    if not (np.isfinite(divisors).all() and (divisors > 0).all()):
        raise FileError(f"{path}: tensor {ROPE_FREQS!r} at byte {stored.start} must hold positive numbers")
    if (divisors == 1).all():
        return config
    scaling = scaling_of(divisors, config.rope_theta, config.head_dim)
    if scaling is not None:
        return replace(config, rope_scaling=scaling)
    return replace(config, rope_divisors=tuple(divisors.tolist()))
