"""What is checked before a file is believed: that it is there, whole, no web page, and UTF-8 text or JSON."""

from __future__ import annotations

import codecs
import json
import logging
import math
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama3_scratch.errors import FileError, MissingFileError

log = logging.getLogger("llama3_scratch")

LFS_MAGIC = b"version https://git-lfs"


def require_file(path: Path, what: str) -> None:
    """Raise FileError unless `path` is a readable file that isn't empty, a web page or a git-lfs pointer."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise FileError(f"{path}: expected a file ({what}), found a folder")
        if not stat.S_ISREG(mode):
            return  # what is looked at in a pipe is gone from it
        with path.open("rb") as file:
            head = file.read(512)
    except FileNotFoundError:
        raise MissingFileError(f"{path}: {what} not found") from None
    except OSError as error:
        raise FileError(f"{path}: {what} can't be read: {error.strerror}") from error
    if not head:
        raise FileError(f"{path}: empty file, expected {what}; download it again")
    if head.startswith(LFS_MAGIC):
        size = next((line.split()[-1].decode() for line in head.splitlines() if line.startswith(b"size ")), "?")
        raise FileError(
            f"{path}: this is a git-lfs pointer to {size} bytes, expected {what}; run 'git lfs pull' where it came from"
        )
    if head.removeprefix(codecs.BOM_UTF8).lstrip()[:15].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise FileError(f"{path}: looks like a web page, expected {what}; the download failed, do it again")


def require_utf8_name(path: Path) -> None:
    """Raise FileError for a path that torch and safetensors can't open, since it holds bytes that aren't UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise FileError(f"{path}: its name isn't UTF-8, and torch and safetensors can't open it; rename it") from None


# UTF-32's little-endian mark begins with UTF-16's.
_OTHER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def decode(data: bytes, errors: str = "strict", *, offset: int = 0) -> str:
    """The text of UTF-8 bytes that begin at `offset` of a file, a byte order mark left out.

    Raises ValueError saying which byte isn't UTF-8, or which other encoding the byte order mark is of.
    """
    if not offset and (encoding := next((name for mark, name in _OTHER_MARKS.items() if data.startswith(mark)), None)):
        raise ValueError(f"text in {encoding}, expected UTF-8; save it as that")
    try:
        text = data.decode("utf-8", errors)
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {offset + error.start} isn't UTF-8") from error
    return text if offset else text.removeprefix("\ufeff")


def read_text(path: Path, what: str) -> str:
    """The text of a file in UTF-8, a byte order mark left out and lines ended by \\n. Raises FileError."""
    require_file(path, what)
    try:
        text = decode(path.read_bytes())
    except ValueError as error:
        raise FileError(f"{path}: {error}") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The JSON object in a file, strictly: no NaN or infinity, a key given twice is named in a warning."""

    def constant(name: str) -> float:
        raise FileError(f"{path}: {name} isn't a number that a configuration can hold")

    def number(text: str) -> float:
        value = float(text)
        return value if math.isfinite(value) else constant(text)

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in items:
            if key in seen:
                log.warning("%s: key %r stands twice, the last one counts", path, key)
            seen[key] = value
        return seen

    try:
        value = json.loads(read_text(path, what), object_pairs_hook=pairs, parse_float=number, parse_constant=constant)
    except json.JSONDecodeError as error:
        raise FileError(f"{path}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}") from error
    except ValueError as error:  # an integer of thousands of digits
        raise FileError(f"{path}: not valid JSON: {error}") from error
    except RecursionError as error:
        raise FileError(f"{path}: not valid {what}: JSON nested too deeply") from error
    if not isinstance(value, dict):
        raise FileError(f"{path}: expected {what}: a JSON object, got {type(value).__name__}")
    return value


def listed(names: Sequence[str], limit: int = 10) -> str:
    """The first names and how many more there are, with the verb: `a is`, `a, b are`, `a, b and 3 more are`."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{', '.join(names[:limit])}{more} {'is' if len(names) == 1 else 'are'}"
