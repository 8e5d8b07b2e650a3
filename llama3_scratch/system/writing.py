"""Files and folders written whole: a reader sees the old or the new one, never half of it."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from llama3_scratch.errors import FileError, ResourceError, UsageError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # errors of a disk that takes no more: full, or beyond a quota


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


# What the writers write, or Meta and Hugging Face put beside it; of the first four every model, adapter or classifier
# has one.
_CONFIG_FILES = ("params.json", "config.json", "adapter_config.json", "classifier.json")
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
