"""What operations cost: multiplications and additions, and bytes read and written, counted as they are dispatched."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


@dataclass(frozen=True)
class Cost:
    """FLOPs of the matrix products (a multiplication and an addition are two), and bytes of all inputs and outputs."""

    flops: int = 0
    bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes)


class Meter(TorchDispatchMode):
    """Counts every operation dispatched within; `take` returns the sum since the last one.

    FLOPs are those of `torch.utils.flop_counter`: matrix products, by their formulas. Bytes are those of every tensor
    that an operation reads or writes, as if none stayed in a cache; an operation that only looks at a tensor in another
    way moves none.
    """

    def __init__(self) -> None:
        super().__init__()
        self._sum = Cost()
        self._paused = False

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
        if func._overloadpacket not in flop_registry:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        flops = (
            flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
            if (func._overloadpacket in flop_registry)
            else 0
        )
        moved = 0 if func.is_view else sum(_bytes(leaf) for leaf in tree_leaves((args, kwargs, out)))
        self._sum += Cost(flops, moved)
        return out


def _bytes(leaf: Any) -> int:
    return leaf.nbytes if isinstance(leaf, Tensor) else 0
