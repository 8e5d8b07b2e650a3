"""Marks inside the control tokens that somebody typed: what a template renders can then be told from what it wrote."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from llama3_scratch.text.added_tokens import WHITE_SPACE


def control_pattern(names: Iterable[str], mark: str, flags: Mapping[str, Mapping[str, bool]]) -> re.Pattern[str]:
    """Any of these control tokens without a mark, the longest first, each in a group, with the spaces that it takes."""

    def spaces(name: str, flag: str) -> str:
        return f"[{WHITE_SPACE}]*" if flags.get(name, {}).get(flag) else ""

    # A single character has its mark behind it.
    each = ((name, re.escape(name) + f"(?!{mark})" * (len(name) == 1)) for name in longest_first(names))
    return re.compile("|".join(f"{spaces(n, 'lstrip')}({part}){spaces(n, 'rstrip')}" for n, part in each) or "(?!)")


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
