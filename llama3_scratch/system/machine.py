"""What this machine can do: the bytes that it reads and the FLOPs that it does in a second, measured here."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from llama3_scratch.linear import multiplies
from llama3_scratch.native import kernels
from llama3_scratch.stored import Floats
from llama3_scratch.torch_internals import int8_matmul

_READ_BYTES = 256 << 20  # more than any cache holds
_READ_ROWS = 8192  # of a matrix of so many bytes
_SQUARE_SIDE = 1024  # of the square matrices
# The median of these: a machine whose memory others use too reads twice as fast at times, too short for a token.
_TRIES = 9


@dataclass(frozen=True)
class MachineLimits:
    """Bytes per second read from memory, and FLOP per second of a matrix product."""

    bandwidth: float
    flops: float

    def __str__(self) -> str:
        return f"this machine reads {self.bandwidth / 1e9:.1f} GB/s, does {self.flops / 1e9:.1f} GFLOP/s"

    def seconds(self, flops: int, bytes: int) -> float:
        """The least time for this work: of the two limits the one that is met first (doi:10.1145/1498765.1498785)."""
        return max(flops / self.flops, bytes / self.bandwidth)

    def bound(self, flops: int, bytes: int) -> str:
        """The limit that is met first: "memory" or "arithmetic"."""
        return "arithmetic" if flops / self.flops > bytes / self.bandwidth else "memory"


def measure(device: torch.device, dtype: torch.dtype) -> MachineLimits:
    """Measure in about a second: a large matrix read by all threads, and a product of two square ones of `dtype`.

    What reads fastest differs between machines, so the fastest of a sum, torch's matrix–vector product and that of
    the kernels in C counts. bf16 and f16 on a CPU are measured in f32, which is what `linear` widens them to.
    """
    if device.type == "cpu" and dtype != torch.float64:
        dtype = torch.float32
    large = torch.ones(_READ_ROWS, _READ_BYTES // dtype.itemsize // _READ_ROWS, dtype=dtype, device=device)
    vector = torch.ones(large.shape[1], dtype=dtype, device=device)
    reads: list[Callable[[], object]] = [large.sum, lambda: large @ vector]
    if kernels.usable(vector):
        reads.append(lambda: kernels.matmul(vector, Floats(large)))
    bandwidth = _READ_BYTES / min(_seconds(read, device) for read in reads)
    return MachineLimits(bandwidth, matmul_flops(dtype, device))


def peak_flops() -> dict[str, float]:
    """FLOP per second of this CPU's matrix products by type, of those types for which it has instructions."""
    device = torch.device("cpu")
    found = {"f32": matmul_flops(torch.float32, device)}
    if multiplies(torch.bfloat16, "cpu"):
        found["bf16"] = matmul_flops(torch.bfloat16, device)
    if (product := int8_matmul()) is not None:
        square = torch.ones(_SQUARE_SIDE, _SQUARE_SIDE, dtype=torch.int8)
        found["int8"] = 2 * _SQUARE_SIDE**3 / _seconds(lambda: product(square, square), device)
    return found


def matmul_flops(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP per second of a product of two square matrices."""
    square = torch.ones(_SQUARE_SIDE, _SQUARE_SIDE, dtype=dtype, device=device)
    return 2 * _SQUARE_SIDE**3 / _seconds(lambda: square @ square, device)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    def once() -> float:
        begun = time.perf_counter()
        work()
        if device.type != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter() - begun

    once()  # pages are touched and threads woken
    return median(once() for _ in range(_TRIES))
