"""What operations cost: FLOPs, bytes and seconds, counted as they are dispatched."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from llama3_scratch.torch_internals import DispatchMode, overload_packet

_GATHERS = (torch.ops.aten.embedding, torch.ops.aten.index)


@dataclass(frozen=True)
class Cost:
    """FLOPs of the matrix products (a multiplication and an addition are two), bytes of all inputs and outputs, and
    the time within the operations, without the interpreter's between them."""

    flops: int = 0
    bytes: int = 0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes, self.seconds + other.seconds)


class Meter(DispatchMode):
    """Counts every operation dispatched within; `take` returns the sum since the last one.

    FLOPs are those of `torch.utils.flop_counter`: matrix products, by their formulas. Bytes are those of every tensor
    that an operation reads or writes, as if none stayed in a cache; an operation that only looks at a tensor in another
    way moves none, and one that picks rows reads only those.
    """

    def __init__(self) -> None:
        super().__init__()
        self._sum = Cost()
        self._paused = False
        self._whole: set[Any] = set()  # operations that aren't made of others

    def take(self) -> Cost:
        taken, self._sum = self._sum, Cost()
        return taken

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Count nothing within: what the tracer computes for itself isn't the model's."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if self._paused:
            return func(*args, **kwargs)
        packet = overload_packet(func)
        if func not in self._whole and packet not in flop_registry:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
            self._whole.add(func)
        begun = time.perf_counter()
        out = func(*args, **kwargs)
        seconds = time.perf_counter() - begun
        formula = flop_registry.get(packet)
        flops = formula(*args, **kwargs, out_val=out) if formula else 0
        read = (args[1:], out) if packet in _GATHERS else (args, kwargs)
        moved = 0 if func.is_view else _bytes((read, out))
        self._sum += Cost(flops, moved, seconds)
        return out


def _bytes(value: Any) -> int:
    """Of all tensors in nested sequences and dicts."""
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, tuple | list):
        return 0
    return sum(map(_bytes, value))
