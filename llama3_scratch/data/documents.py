"""Documents out of files, one by one: JSON lines, or plain text, whole or cut; one at a time is held in memory."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.system.files import decode, read_text, require_file

FILE, BLANK_LINE, LINE = "file", "blank-line", "line"


def documents(paths: Sequence[Path], *, cut: str = BLANK_LINE, field: str = "text") -> Iterator[str]:
    """The documents of all files: of `.jsonl` and `.json` files each row's `field`; of others, by `cut`, the whole
    file, what stands between empty lines, each line, or what stands between lines that are `cut` and nothing else.

    Empty documents are left out. Raises FileError, with file and line, for what can't be read.
    """
    for path in paths:
        if path.suffix in (".jsonl", ".json"):
            for place, row in objects(path):
                text = row.get(field)
                if not isinstance(text, str):
                    others = ", ".join(repr(name) for name, value in row.items() if isinstance(value, str))
                    remedy = f"`field` names another of {others}" if others else "no field of this row is one"
                    raise FileError(f"{place}: expected a text under {field!r}, got {text!r:.60}; {remedy}")
                if text.strip():
                    yield text
        else:
            yield from _cut(path, cut)


def objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and object of each row of a file of JSON lines, or of a `.json` file that holds a list, which is read
    whole."""
    if path.suffix != ".json" or not _is_list(path):
        yield from ((f"{path}:{number}", row) for number, row in rows(path))
        return
    try:
        listed = json.loads(read_text(path, "a JSON list"))
    except json.JSONDecodeError as error:
        raise FileError(f"{path}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}") from error
    except (RecursionError, ValueError) as error:
        raise FileError(f"{path}: not valid JSON: {error}") from error
    for number, row in enumerate(listed, start=1):
        yield f"{path}: row {number}", _object(row, f"{path}: row {number}", "as each row")


def _is_list(path: Path) -> bool:
    return next((line.lstrip().startswith("[") for _, line in lines(path) if line.strip()), False)


def rows(path: Path, errors: str = "strict") -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of each line of a JSONL file; empty lines are passed over."""
    for number, line in lines(path, errors):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise FileError(
                f"{path}:{number}:{error.colno}: not valid JSON: {error.msg}; expected an object on each line"
            ) from error
        except (RecursionError, ValueError) as error:
            raise FileError(f"{path}:{number}: not valid JSON: {error}") from error
        yield number, _object(row, f"{path}:{number}", "on each line")


def _object(row: Any, place: str, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise FileError(f"{place}: expected a JSON object {where}, got {type(row).__name__}")
    if lone := _lone_surrogate(row):
        raise FileError(f"{place}: {lone!r} is half a character, expected Unicode; remove or replace it")
    return row


def _lone_surrogate(row: dict[str, Any]) -> str:
    """Half of a character of two halves that stands in the row alone, as JSON can write it and UTF-8 can't; else ""."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        return error.object[error.start]
    return ""


def require_text(path: Path) -> None:
    """Raise FileError, with what to do, unless `path` is a file that can be read and isn't empty."""
    if not path.exists():
        raise FileError(
            f"{path}: no such file in {Path.cwd()}; expected text in UTF-8: give its path, or make it first"
        )
    if path.is_file() and not path.stat().st_size:
        raise FileError(f"{path}: empty file, expected text in UTF-8; whatever should have written it didn't")
    require_file(path, "text in UTF-8")


def lines(path: Path, errors: str = "strict") -> Iterator[tuple[int, str]]:
    """Numbered lines of a UTF-8 file, a byte order mark left out. Raises FileError where it's empty or isn't UTF-8."""
    require_text(path)
    with path.open("rb") as file:
        yield from numbered(file, str(path), errors)


def numbered(file: Iterable[bytes], source: str, errors: str = "strict") -> Iterator[tuple[int, str]]:
    """`lines` of what is open already, which messages call `source`."""
    offset = 0
    for number, raw in enumerate(file, start=1):
        try:
            line = decode(raw, errors, offset=offset)
        except ValueError as error:
            raise FileError(f"{source}:{number}: {error}") from error
        offset += len(raw)
        yield number, line.rstrip("\r\n")


@contextlib.contextmanager
def placed(place: str) -> Iterator[None]:
    """Whatever can't be used of the text at `place` is said with the place, since its reader doesn't know it."""
    try:
        yield
    except UsageError as error:
        raise FileError(f"{place}: {error}") from error


def _cut(path: Path, cut: str) -> Iterator[str]:
    mark = "" if cut == BLANK_LINE else cut.strip()
    kept: list[str] = []
    for _, line in lines(path):
        if cut == LINE:
            kept, ends = [line], True
        else:
            ends = cut != FILE and line.strip() == mark
            if not ends:
                kept.append(line)
        if ends:
            if text := "\n".join(kept).strip():
                yield text
            kept = []
    if text := "\n".join(kept).strip():
        yield text
