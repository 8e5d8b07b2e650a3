"""The header of a GGUF file: metadata and the table of tensors, read within bounds.

The header is walked once; every count, length and offset in it is compared with the file's size before anything is
allocated for it. Source: the format's description in ggml (docs/gguf.md) and llama.cpp's gguf.cpp.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from llama3_scratch.checkpoint.ggml_blocks import BLOCK_FORMATS
from llama3_scratch.errors import FileError
from llama3_scratch.system.files import require_file

FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SUPPORTED = ", ".join([*FLOATS, *BLOCK_FORMATS])
# ggml.h, enum ggml_type; the ones that can't be read are here so that a refusal can name them.
# fmt: off
_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}
# fmt: on
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_NUMBERS = {code: struct.Struct("<" + code) for code in _SCALARS.values()}
# No Llama comes near these; they bound the time and the memory that a header can ask for, however large its file.
MAX_ENTRIES = 2**16  # keys, tensors
MAX_STRINGS = 2**22  # in one array: tokens, merges
MAX_STRING_BYTES = 2**24  # in one string


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: rows first in `shape`, `kind` is ggml's name of the type."""

    path: Path
    shape: tuple[int, ...]
    kind: str
    start: int
    n_bytes: int


@dataclass(frozen=True)
class Header:
    """All that a GGUF file says before its weights: the metadata and the table of tensors, by GGUF's names."""

    path: Path
    values: dict[str, Any]
    tensors: dict[str, StoredTensor]


class _Cursor:
    """A position in a mapped file; nothing is read past the file's end, nothing allocated that doesn't fit in it."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.path, self.at, self.what = path, 0, "header"

    def refuse(self, why: str) -> NoReturn:
        raise FileError(f"{self.path}: {self.what} at byte {self.at}: {why}")

    def take(self, n_bytes: int, what: str) -> int:
        """Move over `n_bytes`, return where they start."""
        start, left = self.at, len(self.data) - self.at
        if n_bytes > left:
            self.refuse(f"{what} takes {n_bytes} bytes, {left} are left; the file is cut short or damaged")
        self.at += n_bytes
        return start

    def number(self, code: str) -> Any:
        number = _NUMBERS[code]
        return number.unpack_from(self.data, self.take(number.size, "a number"))[0]

    def count(self, what: str, min_bytes: int, maximum: int) -> int:
        """A number of things that take at least `min_bytes` each."""
        n = self.number("Q")
        left = len(self.data) - self.at
        if n > maximum or n * min_bytes > left:
            self.at -= 8
            self.refuse(
                f"{n} {what} can't be: at most {maximum}, in the {left} bytes left; the file is cut short or damaged"
            )
        return n

    def string(self) -> str:
        n_bytes = self.count("bytes of text", 1, MAX_STRING_BYTES)
        start, self.at = self.at, self.at + n_bytes
        try:
            return self.data[start : self.at].decode()
        except UnicodeDecodeError as error:
            self.at = start + error.start
            self.refuse("text isn't UTF-8; the file is damaged")

    def value(self, kind: int) -> Any:
        """A metadata value: int, float, bool, str, list[str], or an array [n] of numbers that stays in the file."""
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array()
        if kind not in _SCALARS:
            self.refuse(f"value type {kind} isn't one of GGUF's; the file is damaged")
        value = self.number(_SCALARS[kind])
        # 1e-5 is meant where f32 says 9.99999974e-06: the shortest decimal is what its writer had.
        return float(str(np.float32(value))) if kind == 6 else value

    def array(self) -> list[str] | np.ndarray:
        kind = self.number("I")
        if kind == _STRING:
            return [self.string() for _ in range(self.count("strings in an array", 8, MAX_STRINGS))]
        if kind not in _SCALARS:
            why = "an array in an array" if kind == _ARRAY else f"an array of value type {kind}"
            self.refuse(f"{why} isn't supported; no Llama has one")
        dtype = np.dtype("<" + _SCALARS[kind])
        n = self.count("numbers in an array", dtype.itemsize, len(self.data))
        return np.frombuffer(self.data, dtype, n, self.take(n * dtype.itemsize, "an array"))


def _read_part(path: Path) -> Header:
    """The header of one file."""
    require_file(path, "a GGUF model")
    cursor = _Cursor(path)
    if cursor.data[:4] != b"GGUF":
        cursor.refuse(f"expected the letters GGUF, got {cursor.data[:4]!r}; this is no GGUF file")
    cursor.at = 4
    version = cursor.number("I")
    if version not in (2, 3):
        cursor.at = 4
        if version & 0xFFFF == 0:
            cursor.refuse("the file is big-endian, expected little-endian; convert it with gguf-convert-endian")
        cursor.refuse(f"GGUF version {version}, expected 2 or 3; convert the model anew")
    n_tensors = cursor.count("tensors", 8 + 4 + 8 + 4 + 8, MAX_ENTRIES)
    n_values = cursor.count("metadata keys", 8 + 4 + 1, MAX_ENTRIES)

    values: dict[str, Any] = {}
    for index in range(n_values):
        cursor.what = f"metadata key {index}"
        key = cursor.string()
        cursor.what = f"metadata {key!r}"
        if key in values:
            cursor.refuse("the key stands twice; the file is damaged")
        values[key] = cursor.value(cursor.number("I"))

    table: dict[str, tuple[tuple[int, ...], str, int, int]] = {}
    for index in range(n_tensors):
        cursor.what = f"tensor {index}"
        name = cursor.string()
        cursor.what = f"tensor {name!r}"
        if name in table:
            cursor.refuse("the tensor stands twice; the file is damaged")
        table[name] = _table_row(cursor)

    alignment = values.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment not in (8 << power for power in range(14)):
        raise FileError(f"{path}: general.alignment must be a power of two from 8 to 65536, got {alignment!r}")
    data_start = -(-cursor.at // alignment) * alignment
    tensors = {}
    for name, (shape, kind, offset, n_bytes) in table.items():
        start = data_start + offset
        if offset % alignment:
            raise FileError(f"{path}: tensor {name!r}: offset {offset} isn't a multiple of the alignment {alignment}")
        if start + n_bytes > len(cursor.data):
            raise FileError(
                f"{path}: tensor {name!r} lies at bytes {start} to {start + n_bytes}, the file has {len(cursor.data)}; "
                "it is cut short or damaged, download it again"
            )
        tensors[name] = StoredTensor(path, shape, kind, start, n_bytes)
    end, before = 0, ""
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].start):
        if tensor.start < end:
            raise FileError(f"{path}: tensor {name!r} at byte {tensor.start} overlaps {before!r}; the file is damaged")
        end, before = tensor.start + tensor.n_bytes, name
    return Header(path, values, tensors)


def _table_row(cursor: _Cursor) -> tuple[tuple[int, ...], str, int, int]:
    """(shape, type, offset in the data, bytes) of one tensor."""
    n_dims = cursor.number("I")
    if not 1 <= n_dims <= 4:
        cursor.refuse(f"{n_dims} dimensions, expected 1 to 4; the file is damaged")
    shape = tuple(cursor.number("Q") for _ in range(n_dims))[::-1]  # GGUF names the row's length first
    number, offset = cursor.number("I"), cursor.number("Q")
    kind = _TYPES.get(number, f"number {number}")
    block = BLOCK_FORMATS.get(kind)
    if kind not in FLOATS and block is None:
        cursor.refuse(f"type {kind} can't be read, expected one of {SUPPORTED}; quantise the model to one of these")
    weights, n_bytes = (block.weights, block.n_bytes) if block else (1, FLOATS[kind].itemsize)
    if 0 in shape or shape[-1] % weights:
        cursor.refuse(f"shape {shape} can't be stored as {kind}, whose rows hold a multiple of {weights} weights")
    size = math.prod(shape) // weights * n_bytes
    if size > len(cursor.data):
        cursor.refuse(
            f"shape {shape} as {kind} takes {size} bytes, the file has {len(cursor.data)}; it is cut short or damaged"
        )
    return shape, kind, offset, size


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF does, whatever it's called: a blob of Ollama's has no suffix."""
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False


def read_header(path: Path) -> Header:
    """Metadata and tensor table of a GGUF file; of a split model all parts are read, whichever is named."""
    header = _read_part(path)
    n_parts = header.values.get("split.count", 1)
    if not isinstance(n_parts, int) or n_parts < 2:
        return header
    found = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})(\.gguf)", path.name, re.IGNORECASE)
    if not found or int(found[2]) != n_parts:
        raise FileError(f"{path}: is one of {n_parts} parts and must be named …-00001-of-{n_parts:05}.gguf")
    paths = [path.with_name(f"{found[1]}-{part:05}-of-{n_parts:05}{found[3]}") for part in range(1, n_parts + 1)]
    missing = [part.name for part in paths if not part.exists()]
    if missing:
        raise FileError(f"{path}: the model has {n_parts} parts, missing beside this one: {', '.join(missing)}")
    parts = [_read_part(part) for part in paths]
    tensors: dict[str, StoredTensor] = {}
    for part in parts:
        for name in part.tensors.keys() & tensors.keys():
            raise FileError(f"{part.path}: tensor {name!r} stands in {tensors[name].path.name} too")
        tensors |= part.tensors
    return Header(paths[0], parts[0].values, tensors)
