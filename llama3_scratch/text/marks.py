"""Marks inside the control tokens that somebody typed: what a template renders can then be told from what it wrote."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from llama3_scratch.text.added_tokens import WHITE_SPACE


def control_pattern(names: Iterable[str], mark: str, flags: Mapping[str, Mapping[str, bool]]) -> re.Pattern[str]:
    """Any of these control tokens without a mark, the longest first, each in a group, with the spaces that it takes."""

    def found(name: str) -> str:
        # A single character has its mark behind it.
        spaces = f"[{WHITE_SPACE}]*" if flags.get(name, {}).get("rstrip") else ""
        return f"({re.escape(name)}{f'(?!{mark})' * (len(name) == 1)}){spaces}"

    names = longest_first(names)
    pattern = _any_of(names, found)
    if taking := [name for name in names if flags.get(name, {}).get("lstrip")]:
        # From the first of the spaces on: to begin anew at each would be quadratic.
        pattern += f"|(?<![{WHITE_SPACE}])[{WHITE_SPACE}]+{_any_of(taking, found)}"
    return re.compile(pattern)


def typed_pattern(names: Iterable[str]) -> re.Pattern[str]:
    """Any of these control tokens, whatever its case, since a template may change that."""
    return re.compile(_any_of(longest_first(names), re.escape), re.IGNORECASE)


def _any_of(names: Sequence[str], found: Callable[[str], str]) -> str:
    """The pattern of any of these names: where no character begins one, none of hundreds is tried."""
    begins = re.escape("".join(sorted({name[0] for name in names})))
    return f"(?=[{begins}])(?:{'|'.join(map(found, names))})" if names else "(?!)"


def longest_first(names: Iterable[str]) -> list[str]:
    return sorted(names, key=len, reverse=True)


def unused_mark(text: str) -> str:
    """A character for private use that isn't in the text, nor its escape in JSON and Python."""
    return next(mark for mark in map(chr, range(0xE000, 0xF900)) if mark not in text and _escape(mark) not in text)


def _escape(mark: str) -> str:
    return f"\\u{ord(mark):04x}"


def unmarked(text: str, mark: str) -> str:
    return text.replace(mark, "").replace(_escape(mark), "")


def texts_in(value: Any) -> Iterator[str]:
    """Every string in a value out of JSON, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from (*texts_in(key), *texts_in(item))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts_in(item)


def marked(value: Any, mark: str, typed: re.Pattern[str]) -> Any:
    """A value out of JSON with a mark inside all that `typed` finds in its strings."""
    if isinstance(value, str):  # behind the first character, where trimming doesn't reach
        return typed.sub(lambda found: f"{found[0][0]}{mark}{found[0][1:]}", value)
    if isinstance(value, Mapping):
        return {marked(key, mark, typed): marked(item, mark, typed) for key, item in value.items()}
    return [marked(item, mark, typed) for item in value] if isinstance(value, list | tuple) else value
