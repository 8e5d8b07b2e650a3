"""The structures and numbers that Python and C share (native.h), compared when the library is loaded."""

from __future__ import annotations

import ctypes
from ctypes import Structure, c_float, c_int32, c_void_p

from torch import Tensor

from llama3_scratch.stored import TILE_COLUMNS, TILE_ROWS

STRIP, GROUP = TILE_ROWS, TILE_COLUMNS  # of a tile

# enum Kind: how a weight's values are stored
F32, BF16, F16, INT8_ROWS, INT8_TILES, INT4_TILES, INT4_TILES_WITH_MINS = range(7)
# enum CacheKind: how keys or values are cached
CACHE_F32, CACHE_BF16, CACHE_INT8, CACHE_INT4 = range(4)

MAX_INPUTS = 16  # vectors that a strip of a weight is multiplied by at once
CHUNK_SLOTS = 64  # slots of a cache that are attended to at once
MAX_SPLIT_TOKENS = 16  # tokens up to which the attention of each is split between threads
MAX_THREADS = 256
MAX_ROUNDED = 127 * 256  # the magnitude that the largest number of a group of inputs is rounded to

NORMS = ("attention_norm", "ffn_norm")
MATRICES = (*(f"attention.{w}" for w in ("wq", "wk", "wv", "wo")), *(f"feed_forward.w{i}" for i in (1, 2, 3)))


class Weight(Structure):
    """A weight in its stored form; `tensors` are what its addresses point into."""

    _fields_ = [
        *((name, c_int32) for name in ("kind", "rows", "columns", "groups")),
        *((name, c_void_p) for name in ("values", "scales", "mins")),
    ]

    tensors: tuple[Tensor, ...] = ()


class Layer(Structure):
    """All weights of one layer."""

    _fields_ = [(name.replace(".", "_"), Weight) for name in (*NORMS, *MATRICES)]


class Sizes(Structure):
    """What the layers of a model have in common."""

    _fields_ = [*((name, c_int32) for name in ("dim", "heads", "kv_heads", "head_dim", "hidden")), ("eps", c_float)]


class Tokens(Structure):
    """Where the tokens of a call stand: their rows and positions, in which pages of a cache a row lies, and of which
    tokens the logits are wanted."""

    _fields_ = [
        *((name, c_int32) for name in ("n", "page_slots", "pages_per_row", "n_logits")),
        *((name, c_void_p) for name in ("rows", "positions", "page_table", "logits_of", "rotations")),
    ]


class CachedVectors(Structure):
    """The keys or the values of one layer in a cache."""

    _fields_ = [("kind", c_int32), ("group", c_int32), ("values", c_void_p), ("scales", c_void_p)]


def _shared() -> dict[str, int]:
    """Every number that C must have too, by the name that it has there."""
    structures = (Weight, Layer, Sizes, Tokens, CachedVectors)
    numbers = {name: value for name, value in globals().items() if isinstance(value, int) and name.isupper()}
    del numbers["TILE_ROWS"], numbers["TILE_COLUMNS"]
    return {f"sizeof({kind.__name__})": ctypes.sizeof(kind) for kind in structures} | numbers


SHARED = _shared()


def difference(library: ctypes.CDLL) -> str | None:
    """The first number that the library has otherwise, in words; None where it agrees."""
    try:
        library.constant.argtypes = [ctypes.c_char_p]
    except AttributeError:
        return "it has no table of numbers"
    for name, ours in SHARED.items():
        if (theirs := library.constant(name.encode())) != ours:
            return f"{name} is {theirs} there and {ours} here"
    return None
