"""Where `linear` finds kernels: what multiplies by a stored weight in torch's place. A room offers its own here.

    registry.offer(lambda: importlib.import_module("llama3_scratch.native.kernels"))

What is offered is loaded when it's first asked, so that an import costs nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from llama3_scratch.stored import Floats


class Kernels(Protocol):
    """Functions that do what torch would, or say None where they can't."""

    def fits(self, x: Tensor, form: Floats) -> bool:
        """Whether `matmul` is worth asking."""

    def matmul(self, x: Tensor, form: Floats) -> Tensor | None:
        """x (…, columns) times the weight, transposed: (…, rows)."""

    def rows(self, index: Tensor, form: Floats, dtype: torch.dtype) -> Tensor | None:
        """Rows of the weight as floats: (*index.shape, columns)."""


OFFERED: list[Callable[[], object]] = []  # each returns a module, or another object, with the functions of `Kernels`


def offer(load: Callable[[], object]) -> None:
    """Have these kernels asked after those that were offered before."""
    OFFERED.append(load)


@functools.cache
def _loaded(load: Callable[[], object]) -> Kernels:
    return cast(Kernels, load())


def _asked() -> list[Callable[[], object]]:
    """Whom to ask: nobody while a compiler looks, which must see torch's operations."""
    import torch

    return [] if torch.compiler.is_compiling() else OFFERED


def matmul(x: Tensor, weight: Floats) -> Tensor | None:
    """x (…, columns) times the weight, transposed, by the first kernels that do it: (…, rows); None if none does."""
    for load in _asked():
        kernels = _loaded(load)
        if kernels.fits(x, weight) and (out := kernels.matmul(x, weight)) is not None:
            return out
    return None


def rows(index: Tensor, weight: Floats, dtype: torch.dtype) -> Tensor | None:
    """Rows of the weight, by the first kernels that read it: (*index.shape, columns); None if none does."""
    found = (_loaded(load).rows(index, weight, dtype) for load in _asked())
    return next((out for out in found if out is not None), None)
