"""How far a tensor of ours is from another's that should be equal, in standard deviations of theirs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Difference:
    """Ours against theirs in one tensor: the worst and the mean |difference|, in standard deviations of theirs."""

    name: str
    worst: float
    mean: float
    std: float
    tolerance: float

    @property
    def diverges(self) -> bool:
        return not self.worst <= self.tolerance


def difference(name: str, ours: Tensor, theirs: Tensor, tolerance: float) -> Difference:
    """Compare two tensors of one shape; a NaN on either side, or an infinity on one, is an infinite difference."""
    import torch

    ours, theirs = _real(ours), _real(theirs)
    off = (ours - theirs).abs().masked_fill(ours == theirs, 0.0)  # equal infinities too
    finite = theirs[theirs.isfinite()]
    std, mean = (x.item() for x in torch.std_mean(finite, correction=0)) if finite.numel() else (0.0, 0.0)
    scale = max(std, abs(mean) / 10) or 1.0  # numbers that are all about the same have their size for it
    return Difference(name, _number(off.max() / scale), _number(off.mean() / scale), std, tolerance)


def _real(tensor: Tensor) -> Tensor:
    """As floats of at least f32, complex numbers as two."""
    import torch

    real = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    return real.to(torch.promote_types(real.dtype, torch.float32) if real.is_floating_point() else torch.float64)


def _number(value: Tensor) -> float:
    """A float; NaN, which compares with nothing, as infinity."""
    return math.inf if value.isnan() else value.item()
