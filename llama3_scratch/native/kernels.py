"""The kernels in C, where they could be built: a product with a weight in any stored form."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from ctypes import POINTER, Structure, byref, c_int, c_int32, c_void_p

import torch
from torch import Tensor

from llama3_scratch.errors import ResourceError, UsageError
from llama3_scratch.stored import TILE_COLUMNS, TILE_ROWS, Floats, Grouped, NormalFloats, Tiles
from llama3_scratch.torch_internals import dispatch_mode_is_on

LEVELS = ("plain C", "AVX2", "AVX-512")
_FLOATS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # enum Kind of native.h
_INT8_ROWS, _INT8_TILES, _INT4_TILES, _INT4_TILES_WITH_MINS = 3, 4, 5, 6
FEW = 16  # inputs up to which the kernels are faster than torch with a weight of plain floats


class Weight(Structure):
    """native.h's `Weight`; `tensors` are what its addresses point into."""

    _fields_ = [
        *((name, c_int32) for name in ("kind", "rows", "columns", "groups")),
        *((name, c_void_p) for name in ("values", "scales", "mins")),
    ]

    tensors: tuple[Tensor, ...] = ()


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, set to the best that this processor has; None where they weren't built."""
    found = importlib.util.find_spec("llama3_scratch.native._kernels")
    if found is None or found.origin is None:
        return None
    try:
        loaded = ctypes.CDLL(found.origin)
    except OSError:
        return None
    loaded.product.argtypes = [POINTER(Weight), c_int, c_void_p, c_void_p, c_int, c_int]
    loaded.rows.argtypes = [POINTER(Weight), c_int, c_void_p, c_void_p]
    loaded.rows.restype = None
    loaded.decode.argtypes = [c_void_p, c_int, *[c_void_p] * 8, c_int]
    loaded.choose_kernels(len(LEVELS) - 1)
    return loaded


def require() -> ctypes.CDLL:
    """The library, where `usable` has said that there is one."""
    loaded = library()
    assert loaded is not None
    return loaded


def choose(most: str = LEVELS[-1]) -> str | None:
    """Use the best kernels up to `most`, one of LEVELS; which these are, None where there are none."""
    loaded = library()
    return None if loaded is None else LEVELS[loaded.choose_kernels(LEVELS.index(most))]


def weight(form: Floats) -> Weight | None:
    """The form as the kernels take it; None where they have none for it, or where it isn't whole."""
    if isinstance(form, NormalFloats) or form.values.ndim != (5 if isinstance(form, Tiles) else 2):
        return None
    rows, columns = form.shape
    groups = 1
    wanted: list[tuple[Tensor, torch.dtype, tuple[int, ...]]] = [(form.values, form.values.dtype, (rows, columns))]
    if isinstance(form, Tiles):
        tiles, groups = rows // TILE_ROWS, columns // TILE_COLUMNS
        kind = _INT8_TILES if form.bits == 8 else _INT4_TILES if form.mins is None else _INT4_TILES_WITH_MINS
        dtype = torch.int8 if form.bits == 8 else torch.uint8
        wanted = [(form.values, dtype, (tiles, groups, form.bits, TILE_ROWS, 4))]
        of_groups = [form.scales] if form.mins is None else [form.scales, form.mins]
        wanted += [(tensor, torch.float16, (tiles, groups, TILE_ROWS)) for tensor in of_groups]
    elif isinstance(form, Grouped):
        kind, groups = _INT8_ROWS, form.scales.shape[-1]
        wanted = [(form.values, torch.int8, (rows, columns)), (form.scales, torch.float32, (rows, groups))]
        if form.zeros is not None or columns % groups:
            return None
    elif form.values.dtype in _FLOATS:
        kind = _FLOATS[form.values.dtype]
    else:
        return None
    for tensor, dtype, shape in wanted:
        if tensor.dtype != dtype or tensor.shape != shape or tensor.device.type != "cpu" or not tensor.is_contiguous():
            return None
    tensors = tuple(tensor for tensor, _, _ in wanted)
    addresses = [tensor.data_ptr() for tensor in tensors] + [None] * (3 - len(tensors))
    made = Weight(kind, rows, columns, groups, *addresses)
    made.tensors = tensors
    return made


def usable(x: Tensor) -> bool:
    """Whether the kernels may compute with x: f32 on a CPU, outside of autograd."""
    # Under a compiler or a trace the operations have to be torch's, or they couldn't be seen. The compiler's question
    # stands first: it would follow whatever came before, the loading of the library too.
    if torch.compiler.is_compiling() or x.dtype != torch.float32 or x.device.type != "cpu" or library() is None:
        return False
    if torch.is_grad_enabled() and x.requires_grad:
        return False
    return not dispatch_mode_is_on()


def fits(x: Tensor, form: Floats) -> bool:
    """Whether `product` can take the place of torch here, and is worth it."""
    if not usable(x) or (type(form) is Floats and x.numel() > FEW * x.shape[-1]):
        return False
    return not (torch.is_grad_enabled() and form.values.requires_grad)


def matmul(x: Tensor, form: Floats) -> Tensor | None:
    """x (…, columns) times the weight, transposed: (…, rows); None where the kernels have none for its form.

    Raises UsageError where x isn't as wide as the weight.
    """
    described = weight(form)
    if described is None:
        return None
    if x.shape[-1] != described.columns:
        raise UsageError(f"a weight of {described.columns} columns can't take {x.shape[-1]} numbers")
    x = x.contiguous()
    n = x.numel() // described.columns
    out = x.new_empty(*x.shape[:-1], described.rows)
    if not require().product(byref(described), n, x.data_ptr(), out.data_ptr(), torch.get_num_threads(), n > FEW):
        raise ResourceError(f"no memory for a product of {n} times {described.columns} numbers")
    return out


def rows(index: Tensor, form: Floats, dtype: torch.dtype) -> Tensor | None:
    """Rows of a weight in tiles as floats, (*index.shape, columns); None where torch has to read them.

    Raises UsageError for a row that the weight hasn't.
    """
    likes = dtype == torch.float32 and index.dtype == torch.long and index.device.type == "cpu"
    if not likes or not isinstance(form, Tiles) or not usable(torch.empty(0)) or (described := weight(form)) is None:
        return None
    index = index.contiguous()
    out = torch.empty(*index.shape, described.columns)
    if index.numel():
        least, most = index.aminmax()
        if least < 0 or most >= described.rows:
            raise UsageError(f"rows {int(least)} to {int(most)} of a weight that has {described.rows}")
        require().rows(byref(described), index.numel(), index.data_ptr(), out.data_ptr())
    return out
