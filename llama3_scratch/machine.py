"""What this machine can do at best: the bytes that it reads and the FLOPs that it does in a second, measured here."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

_READ = 256 << 20  # bytes: more than any cache holds
_SIDE = 1024  # of the square matrices
_TRIES = 5  # the best of these, since a roof is what's reached without disturbance


@dataclass(frozen=True)
class Machine:
    """Bytes per second read from memory, and FLOP per second of a matrix product."""

    bandwidth: float
    flops: float

    def seconds(self, flops: int, bytes: int) -> float:
        """The least time for this work: of the two limits the one that is met first (doi:10.1145/1498765.1498785)."""
        return max(flops / self.flops, bytes / self.bandwidth)

    def bound(self, flops: int, bytes: int) -> str:
        """The limit that is met first: "memory" or "arithmetic"."""
        return "arithmetic" if flops / self.flops > bytes / self.bandwidth else "memory"


def measure(device: torch.device, dtype: torch.dtype) -> Machine:
    """Measure in well under a second: the sum of a large tensor, and a product of two square matrices of `dtype`.

    bf16 and f16 on a CPU are measured in f32, which is what `linear` widens them to.
    """
    if device.type == "cpu" and dtype != torch.float64:
        dtype = torch.float32
    large = torch.ones(_READ // dtype.itemsize, dtype=dtype, device=device)
    square = torch.ones(_SIDE, _SIDE, dtype=dtype, device=device)
    bandwidth = _READ / _best(large.sum, device)
    return Machine(bandwidth, 2 * _SIDE**3 / _best(lambda: square @ square, device))


def _best(work: Callable[[], object], device: torch.device) -> float:
    def once() -> float:
        begun = time.perf_counter()
        work()
        if device.type != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter() - begun

    once()  # pages are touched and threads woken
    return min(once() for _ in range(_TRIES))
