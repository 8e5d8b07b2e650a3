"""Documents out of files, one by one: plain text cut at a separator, or JSON lines; files may be larger than memory."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.files import require_file

PARAGRAPH = ""  # the separator that is an empty line


def documents(paths: Sequence[Path], *, separator: str = PARAGRAPH, field: str = "text") -> Iterator[str]:
    """The documents of all files: of `.jsonl` files each row's `field`, of others what stands between separator lines.

    Empty documents are left out. Raises FileError, with file and line, for what can't be read.
    """
    for path in paths:
        if path.suffix == ".jsonl":
            for number, row in rows(path):
                text = row.get(field)
                if not isinstance(text, str):
                    raise FileError(f"{path}:{number}: expected a text under {field!r}, got {text!r:.60}")
                if text.strip():
                    yield text
        else:
            yield from _separated(path, separator)


def rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of each line of a JSONL file; empty lines are passed over."""
    for number, line in lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise FileError(f"{path}:{number}:{error.colno}: not valid JSON: {error.msg}") from error
        except (RecursionError, ValueError) as error:
            raise FileError(f"{path}:{number}: not valid JSON: {error}") from error
        if not isinstance(row, dict):
            raise FileError(f"{path}:{number}: expected a JSON object, got {type(row).__name__}")
        yield number, row


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a UTF-8 file, a byte order mark left out. Raises FileError where it's empty or isn't UTF-8."""
    require_file(path, "text in UTF-8")
    offset = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise FileError(f"{path}:{number}: byte {offset + error.start} isn't UTF-8") from error
            offset += len(raw)
            yield number, line.rstrip("\r\n")


@contextlib.contextmanager
def placed(place: str) -> Iterator[None]:
    """Whatever can't be used of the text at `place` is said with the place, since its reader doesn't know it."""
    try:
        yield
    except UsageError as error:
        raise FileError(f"{place}: {error}") from error


def _separated(path: Path, separator: str) -> Iterator[str]:
    """What stands between lines that are the separator and nothing else."""
    kept: list[str] = []
    for _, line in lines(path):
        if line.strip() == separator:
            if text := "\n".join(kept).strip():
                yield text
            kept = []
        else:
            kept.append(line)
    if text := "\n".join(kept).strip():
        yield text
