"""What every door checks before it believes a file: present, whole, not a web page, and JSON that means one thing."""

from __future__ import annotations

import codecs
import contextlib
import errno
import json
import logging
import math
import os
import shutil
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llama3_scratch.errors import FileError, MissingFileError, ResourceError, UsageError

log = logging.getLogger("llama3_scratch")

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # errors of a disk that takes no more: full, or beyond a quota

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


def listed(names: Sequence[str], most: int = 10) -> str:
    """The first names and how many more there are, with the verb: `a is`, `a, b are`, `a, b and 3 more are`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more} {'is' if len(names) == 1 else 'are'}"


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


@contextlib.contextmanager
def fresh_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the body ends well: a reader sees the old or the new."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "expected a file to write, found a folder", str(path))
    temporary = path.parent / f".{path.name}.tmp-{os.getpid()}"  # with_name knows no name for "."
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes | str) -> None:
    """Write a small file so that a reader sees the old one or the new one, never half of it."""
    with fresh_file(path) as temporary:
        # A file's name may hold what is no text; in JSON that is written as an escape.
        temporary.write_bytes(data.encode(errors="backslashreplace") if isinstance(data, str) else data)


def make_folder(path: Path) -> None:
    """Make a folder to write into, with those above it. Raises UsageError or FileError where that can't be."""
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path}: expected a folder to write into, found a file; name another")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error


@contextlib.contextmanager
def fresh_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its place when the body ends well; else all stays as it was.

    An older model there is replaced; a folder that holds anything else is refused.
    """
    target = target.resolve()
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target}: expected a folder to write, found a file")
    if target.exists() and (name := foreign(target)):
        raise UsageError(f"{target}: holds {name}, which no checkpoint has, and isn't replaced; choose another folder")
    temporary, old = (target.with_name(f".{target.name}.{kind}-{os.getpid()}") for kind in ("tmp", "old"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        yield temporary
        if target.exists():
            target.replace(old)
        temporary.replace(target)
    except OSError as error:
        raise unwritable(target, error) from error
    finally:
        if old.exists() and not target.exists():
            old.replace(target)
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(temporary, ignore_errors=True)


# What the writers write, or Meta and Hugging Face put beside it; of the first three every model or adapter has one.
_CONFIG_FILES = ("params.json", "config.json", "adapter_config.json")
_CHECKPOINT_ENDINGS = (".json", ".safetensors", ".pth", ".model", ".chk", ".jinja")


def foreign(folder: Path) -> str | None:
    """The name of something in `folder` that no checkpoint has; None where it's empty or all is a model's."""
    paths = sorted(folder.iterdir())
    strange = [path.name for path in paths if path.is_dir() or path.suffix not in _CHECKPOINT_ENDINGS]
    if not any(path.name in _CONFIG_FILES for path in paths):
        strange += [path.name for path in paths]
    return next(iter(strange), None)


def unwritable(path: Path, error: OSError) -> ResourceError | FileError:
    """The error of a write to `path` that failed and left what was there before."""
    # torch's writer, which meets a full disk as a wrong position in the file, leaves no errno.
    kind = ResourceError if error.errno in (None, *DISK_FULL) else FileError
    why = error.strerror or f"the disk took no more ({str(error).splitlines()[0].rpartition(' . ')[2]})"
    return kind(f"{path}: can't be written: {why}; nothing was changed")


def require_space(folder: Path, needed: int, remedy: str = "free some") -> None:
    """Raise ResourceError unless the disk of `folder` has `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ResourceError(f"{folder}: needs {needed / 1e9:.2f} GB of disk, {free / 1e9:.2f} GB are free; {remedy}")


def move_into_place(written: Path, folder: Path) -> None:
    """Give a finished folder its name, unless another process was first with the same files."""
    try:
        written.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
