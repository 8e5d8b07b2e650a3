"""The parts of torch that it keeps to itself and that are needed here, each with a fallback for versions without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _python_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

_ours = 0  # how many modes of our own are on


class DispatchMode(TorchDispatchMode):
    """A mode whose `__torch_dispatch__` gets every operation within; `dispatch_mode_is_on` sees it in any version."""

    def __enter__(self) -> Any:
        global _ours
        _ours += 1
        return super().__enter__()

    def __exit__(self, *error: Any) -> Any:
        global _ours
        _ours -= 1
        return super().__exit__(*error)


def dispatch_mode_is_on() -> bool:
    """Whether a mode is given every operation, as a trace of costs or fake tensors: what isn't torch's it can't see.

    Where torch doesn't say, only the modes of this package are known.
    """
    current = getattr(_python_dispatch, "_get_current_dispatch_mode", None)
    return _ours > 0 if current is None else current() is not None


def overload_packet(operation: Any) -> Any:
    """The operation without its overload: aten.mm of aten.mm.out; itself where torch doesn't say."""
    return getattr(operation, "overloadpacket", None) or getattr(operation, "_overloadpacket", operation)


def changes_its_input(operation: Any) -> bool:
    """Whether the operation works in place or into a given output; where torch doesn't say, any is taken to."""
    return getattr(getattr(operation, "_schema", None), "is_mutable", True)


def cpu_multiplies_bf16() -> bool:
    """Whether this processor has instructions for products of bf16; none where torch doesn't say."""
    return cpu_has("avx512_bf16", "_is_avx512_bf16_supported") or cpu_has("amx_tile", "_is_amx_tile_supported")


def int8_matmul() -> Callable[[Tensor, Tensor], Tensor] | None:
    """torch's int8 product with int32 sums; None where it has none, or the processor no instructions for it."""
    return getattr(torch, "_int_mm", None) if cpu_has("avx512_vnni", "_is_vnni_supported") else None


def no_cxx_compiler() -> type[Exception]:
    """What torch.compile raises where it finds no C++ compiler; where that has no name, nothing is it."""
    try:
        from torch._inductor.exc import InvalidCxxCompiler
    except ImportError:
        return _NeverRaised
    return InvalidCxxCompiler


class _NeverRaised(Exception):  # noqa: N818
    pass


def cpu_has(feature: str, older: str) -> bool:
    """By torch.cpu.get_capabilities, or by the private function of earlier versions."""
    if (capabilities := getattr(torch.cpu, "get_capabilities", None)) is not None:
        return bool(capabilities().get(feature, False))
    return bool(getattr(torch.cpu, older, bool)())


CPU_HAS_BF16 = cpu_multiplies_bf16()
