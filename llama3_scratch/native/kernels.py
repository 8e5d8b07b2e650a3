"""The kernels in C, where they could be built: a matmul with a weight in any stored form.

`linear` finds them in its registry (`llama3_scratch.registry`). `choose` says which are used, "torch" none of them.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import importlib.util
import logging
from ctypes import POINTER, byref, c_double, c_float, c_int, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from llama3_scratch.errors import ResourceError, UsageError
from llama3_scratch.native import layout
from llama3_scratch.native.layout import Weight
from llama3_scratch.stored import TILE_COLUMNS, TILE_ROWS, Floats, Grouped, NormalFloats, Tiles
from llama3_scratch.torch_internals import dispatch_mode_is_on

log = logging.getLogger(__name__)

LEVELS = ("plain C", "AVX2", "AVX-512")
TORCH = "torch"  # the level at which no kernel is used
MAX_FLOAT_INPUTS = 16  # inputs up to which the kernels are faster than torch with a weight of plain floats
MAX_SIZE = 1 << 30  # of anything that C counts in 32 bits
_FLOATS = {torch.float32: layout.F32, torch.bfloat16: layout.BF16, torch.float16: layout.F16}
FILE: Path | None = None  # the compiled library, where it isn't the package's own
_level: str | None = None  # the one in use, once the library is loaded; None: torch


def _path() -> Path | None:
    """The library, where there is one."""
    found = importlib.util.find_spec("llama3_scratch.native._kernels")
    return FILE or (Path(found.origin) if found and found.origin else None)


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, set to the best that this processor has; None where they weren't built, or from other
    sources than these."""
    if (path := _path()) is None:
        return None
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError:
        return None
    if (wrong := layout.difference(loaded)) is not None:
        log.warning(
            "%s wasn't built from these sources (%s): torch computes instead, until the package is installed again",
            path,
            wrong,
        )
        return None
    loaded.matmul.argtypes = [POINTER(Weight), c_int, c_void_p, c_void_p, c_int, c_int]
    loaded.rows.argtypes = [POINTER(Weight), c_int, c_void_p, c_void_p]
    loaded.rows.restype = None
    loaded.decode.argtypes = [c_void_p, c_int, *[c_void_p] * 8, c_int]
    loaded.sample.argtypes = [c_void_p, c_int, c_float, c_int, c_double, c_double, c_double]
    loaded.release.restype = loaded.free_scratch.restype = None
    atexit.register(_release, loaded)
    _choose(loaded, None)
    return loaded


def _release(loaded: ctypes.CDLL) -> None:
    loaded.release()
    loaded.free_scratch()


def require() -> ctypes.CDLL:
    """The library, where `usable` has said that there is one."""
    loaded = library()
    assert loaded is not None
    return loaded


def choose(level: str | None = None) -> str | None:
    """Use the kernels of this level, one of LEVELS or TORCH; which are used now, None where it's torch.

    Where the processor hasn't that level, and unless told otherwise where it has none that is faster than torch (plain
    C isn't), torch computes.
    """
    loaded = library()
    return None if loaded is None else _choose(loaded, level)


def _choose(loaded: ctypes.CDLL, level: str | None) -> str | None:
    global _level
    found = LEVELS[loaded.choose_kernels(LEVELS.index(level) if level in LEVELS else len(LEVELS) - 1)]
    _level = found if (found == level if level else found != LEVELS[0]) else None
    return _level


def chosen() -> str | None:
    """The level of the kernels in use, one of LEVELS; None where torch computes."""
    return None if library() is None else _level


def why_torch() -> str:
    """Why no kernels are used, for people."""
    if library() is not None:
        return "only in plain C, which is slower than torch: everything runs in torch"
    why = "built from other sources" if _path() else "not built: no C compiler was found"
    return f"{why} when the package was installed; everything runs in torch, slower"


def weight(form: Floats) -> Weight | None:
    """The form as the kernels take it; None where they have none for it, or where it isn't whole."""
    if isinstance(form, NormalFloats) or form.values.ndim != (5 if isinstance(form, Tiles) else 2):
        return None
    rows, columns = form.shape
    groups = 1
    if not (0 < rows < MAX_SIZE and 0 < columns < MAX_SIZE):
        return None
    wanted: list[tuple[Tensor, torch.dtype, tuple[int, ...]]] = [(form.values, form.values.dtype, (rows, columns))]
    if isinstance(form, Tiles):
        tiles, groups = rows // TILE_ROWS, columns // TILE_COLUMNS
        four_bits = layout.INT4_TILES if form.mins is None else layout.INT4_TILES_WITH_MINS
        kind = layout.INT8_TILES if form.bits == 8 else four_bits
        dtype = torch.int8 if form.bits == 8 else torch.uint8
        wanted = [(form.values, dtype, (tiles, groups, form.bits, TILE_ROWS, 4))]
        of_groups = [form.scales] if form.mins is None else [form.scales, form.mins]
        wanted += [(tensor, torch.float16, (tiles, groups, TILE_ROWS)) for tensor in of_groups]
    elif isinstance(form, Grouped):
        kind, groups = layout.INT8_ROWS, form.scales.shape[-1] if form.scales.ndim else 0
        wanted = [(form.values, torch.int8, (rows, columns)), (form.scales, torch.float32, (rows, groups))]
        if form.zeros is not None or not groups or columns % groups:
            return None
    elif type(form) is Floats and form.values.dtype in _FLOATS:
        kind = _FLOATS[form.values.dtype]
    else:
        return None
    if not all(readable(*each) for each in wanted):
        return None
    tensors = tuple(tensor for tensor, _, _ in wanted)
    addresses = [tensor.data_ptr() for tensor in tensors] + [None] * (3 - len(tensors))
    made = Weight(kind, rows, columns, groups, *addresses)
    made.tensors = tensors
    return made


def readable(tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> bool:
    """Whether C may read the tensor as so many numbers of that type, one behind the other."""
    dense = tensor.layout == torch.strided and tensor.device.type == "cpu"
    return dense and tensor.dtype == dtype and tensor.shape == shape and tensor.is_contiguous()


def usable(x: Tensor) -> bool:
    """Whether the kernels may compute with x: f32 on a CPU, outside of autograd."""
    # Under a compiler or a trace the operations have to be torch's, or they couldn't be seen. The compiler's question
    # stands first: it would follow whatever came before, the loading of the library too.
    if torch.compiler.is_compiling() or x.dtype != torch.float32 or x.device.type != "cpu" or chosen() is None:
        return False
    if x.layout != torch.strided or (torch.is_grad_enabled() and x.requires_grad):
        return False
    return not dispatch_mode_is_on()


def fits(x: Tensor, form: Floats) -> bool:
    """Whether `matmul` can take the place of torch here, and is worth it."""
    if not usable(x) or (type(form) is Floats and x.numel() > MAX_FLOAT_INPUTS * x.shape[-1]):
        return False
    return not (torch.is_grad_enabled() and form.values.requires_grad)


def matmul(x: Tensor, form: Floats) -> Tensor | None:
    """x (…, columns) times the weight, transposed: (…, rows); None where the kernels have none for its form.

    x is one that `usable` lets through. Raises UsageError where it isn't as wide as the weight.
    """
    described = weight(form)
    if described is None or not usable(x):
        return None
    if x.shape[-1] != described.columns:
        raise UsageError(f"a weight of {described.columns} columns can't take {x.shape[-1]} numbers")
    x = x.contiguous()
    n = x.numel() // described.columns
    out = x.new_empty(*x.shape[:-1], described.rows)
    if n == 0 or n >= MAX_SIZE:
        return out if n == 0 else None
    threads, last = torch.get_num_threads(), n > MAX_FLOAT_INPUTS
    if not require().matmul(byref(described), n, x.data_ptr(), out.data_ptr(), threads, last):
        raise ResourceError(f"no memory for a matmul of {n} times {described.columns} numbers")
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
    if index.numel() >= MAX_SIZE:
        return None
    if index.numel():
        lowest, highest = index.aminmax()
        if lowest < 0 or highest >= described.rows:
            raise UsageError(f"rows {int(lowest)} to {int(highest)} of a weight that has {described.rows}")
        require().rows(byref(described), index.numel(), index.data_ptr(), out.data_ptr())
    return out
