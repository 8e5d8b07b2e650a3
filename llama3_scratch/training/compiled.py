"""A loss through torch.compile: the first step takes a minute longer, then fused kernels make each one faster."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from llama3_scratch.errors import UsageError
from llama3_scratch.torch_internals import no_cxx_compiler


def compiled(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`loss` through torch.compile. Raises UsageError where there is no C++ compiler to do it with."""
    fast = torch.compile(loss)

    @functools.wraps(loss)
    def checked(*args: Any, **kwargs: Any) -> Tensor:
        with warnings.catch_warnings():
            # RoPE's complex numbers aren't compiled, and a cached function is traced: both are meant.
            warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\._(dynamo|inductor)")
            try:
                return fast(*args, **kwargs)
            except no_cxx_compiler() as error:
                raise UsageError("`compile=True` needs a C++ compiler, as g++ or clang++; leave it out") from error

    return checked
