"""Fields of a JSON object or of other metadata, checked one by one: whole numbers, floats, texts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from llama3_scratch.errors import FileError

_REQUIRED = object()
_MAX_INT_FIELD = 2**32 - 1  # no size of a model is larger, and products of a few still fit a float


def int_field(data: dict[str, Any], key: str, path: Path, default: Any = _REQUIRED) -> Any:
    """`data[key]` as a whole number from 1 to 2³²-1; `default` where the key is absent or null."""
    value = data.get(key)
    if value is None:
        if default is _REQUIRED:
            raise FileError(f"{path}: {key} is missing, expected a whole number")
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MAX_INT_FIELD:
        raise FileError(f"{path}: {key} must be a whole number from 1 to {_MAX_INT_FIELD}, got {value!r:.99}")
    return value


def float_field(data: dict[str, Any], key: str, path: Path, default: Any = _REQUIRED) -> Any:
    """`data[key]` as a positive float; `default` where the key is absent or null."""
    value = data.get(key)
    if value is None:
        if default is _REQUIRED:
            raise FileError(f"{path}: {key} is missing, expected a number")
        return default
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= sys.float_info.max:
        raise FileError(f"{path}: {key} must be a positive number, got {value!r:.99}")
    return float(value)


def text_field(data: dict[str, Any], key: str, path: Path, default: Any = None) -> Any:
    """`data[key]` as a string; `default` where the key is absent or null."""
    value = data.get(key)
    if value is None:
        return default
    if not isinstance(value, str):
        raise FileError(f"{path}: {key} must be a text, got {value!r}")
    return value
