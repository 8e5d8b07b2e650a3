"""The one measure of every parity test: the largest difference, in standard deviations of what was wanted."""

from __future__ import annotations

import torch
from torch import Tensor


class DiffersError(AssertionError):
    """Two tensors that should agree don't."""


def difference(got: Tensor, wanted: Tensor) -> float:
    """max |got - wanted| / std(wanted), taken in f64; infinite where NaN is on one side only."""
    assert got.shape == wanted.shape, f"shape {list(got.shape)}, wanted {list(wanted.shape)}"
    got, wanted = got.detach().double(), wanted.detach().double()
    off = (got - wanted).abs().nan_to_num(torch.inf).max().item()
    return off / wanted.std().item() if wanted.numel() > 1 else off


def check(got: Tensor, wanted: Tensor, tolerance: float, what: str = "logits") -> None:
    """Raise DiffersError unless `got` is within `tolerance` standard deviations of `wanted` everywhere."""
    off = difference(got, wanted)
    if not off <= tolerance:
        raise DiffersError(f"{what}: off by {off:.3g} standard deviations, tolerance {tolerance:g}")
