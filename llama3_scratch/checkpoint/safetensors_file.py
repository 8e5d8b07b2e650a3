"""A safetensors file, read: its header checked to the last byte, its tensors mapped."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama3_scratch.errors import FileError
from llama3_scratch.system.files import require_file

if TYPE_CHECKING:  # the headers are read without torch
    from llama3_scratch.stored import Params

_HEADER_LIMIT = 100_000_000  # bytes; the format's own limit
# The format's element types: bytes, and torch's name where a Llama may be stored so.
SAFETENSORS_DTYPES = {
    "F32": (4, "float32"),
    "BF16": (2, "bfloat16"),
    "F16": (2, "float16"),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), (1, "")),
    **dict.fromkeys(("I16", "U16"), (2, "")),
    **dict.fromkeys(("I32", "U32"), (4, "")),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), (8, "")),
}


@dataclass(frozen=True)
class TensorEntry:
    """One tensor's line in a safetensors header: file, key, the format's dtype name, shape."""

    path: Path
    key: str
    dtype: str
    shape: tuple[int, ...]


def read_safetensors(path: Path) -> Params:
    """All tensors of one file by their own names, mapped, after every check of its header."""
    return map_safetensors(path, {key: key for key in read_safetensors_header(path)})


def map_safetensors(path: Path, keys: dict[str, str]) -> Params:
    """The tensors of one file, mapped (copy on write): `keys` says under which name each one is returned."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(key) for name, key in keys.items()}
    except (OSError, SafetensorError) as error:
        raise FileError(f"{path}: can't be opened as safetensors: {error}") from error


def read_safetensors_header(path: Path) -> dict[str, TensorEntry]:
    """A safetensors file's entries, after checking all of the header and that the data are as long as it says."""
    require_file(path, "a safetensors file")
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(8)
        length = int.from_bytes(first, "little")
        if len(first) < 8:
            raise FileError(f"{path}: {size} bytes, expected at least the 8 that a safetensors file begins with")
        if length > _HEADER_LIMIT:
            raise FileError(
                f"{path}: says that its header has {length} bytes, at most {_HEADER_LIMIT} are allowed; "
                "not a safetensors file, or damaged"
            )
        if 8 + length > size:
            raise FileError(f"{path}: truncated: its header has {length} bytes, the whole file {size}")
        text = file.read(length)

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        items: dict[str, Any] = {}
        for key, value in pairs:
            if key in items:
                raise FileError(f"{path}: key {key!r} stands twice in its header, expected once")
            items[key] = value
        return items

    try:
        header = json.loads(text.decode(), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path}: its header isn't valid JSON in UTF-8: {error}") from error
    if not isinstance(header, dict):
        raise FileError(f"{path}: its header is a {type(header).__name__}, expected an object")
    header.pop("__metadata__", None)
    spans = sorted((_span(path, key, item), key) for key, item in header.items())
    end = 0
    for (begin, stop), key in spans:
        if begin != end:
            trouble = "overlap" if begin < end else "hole"
            raise FileError(f"{path}: {key}: data begin at byte {begin}, expected {end} ({trouble} in the offsets)")
        end = stop
    if size - 8 - length != end:
        trouble = "truncated" if size - 8 - length < end else "trailing bytes"
        raise FileError(f"{path}: {trouble}: the header means {8 + length + end} bytes, the file has {size}")
    return {key: TensorEntry(path, key, item["dtype"], tuple(item["shape"])) for key, item in header.items()}


def _span(path: Path, key: str, item: Any) -> tuple[int, int]:
    """Where a header's item says its data lie, (begin, end) in bytes, after checking the item itself."""
    item = item if isinstance(item, dict) else {}
    dtype, shape, offsets = item.get("dtype"), item.get("shape"), item.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in SAFETENSORS_DTYPES:
        raise FileError(f"{path}: {key}: unknown dtype {dtype!r}, expected one of {', '.join(SAFETENSORS_DTYPES)}")
    if not _naturals(shape) or len(shape) > 8:
        raise FileError(f"{path}: {key}: shape {str(shape)[:80]}, expected a list of at most 8 whole numbers")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise FileError(f"{path}: {key}: data_offsets {str(offsets)[:80]}, expected [begin, end]")
    wanted = math.prod(shape) * SAFETENSORS_DTYPES[dtype][0]
    if offsets[1] - offsets[0] != wanted:
        raise FileError(
            f"{path}: {key}: {dtype} of shape {shape} takes {wanted} bytes, its offsets hold {offsets[1] - offsets[0]}"
        )
    return offsets[0], offsets[1]


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)
