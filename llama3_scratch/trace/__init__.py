"""Every tensor as the model's own lines make it: in the terminal, as a page, beside another run, with its cost."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llama3_scratch.trace.tracer import ShapeError, Statistics, TracedTensor, suffix, watch

__all__ = ["ShapeError", "Statistics", "TracedTensor", "suffix", "watch"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module(f"{__name__}.tracer"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
