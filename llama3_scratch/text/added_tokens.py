"""Added tokens: words that are one token wherever they stand in a text, found before anything is split or merged.

Hugging Face's rule (`added_tokens` of tokenizer.json): of the words that begin leftmost the longest is taken, all of
them in one pass, and those that match the normalized text in a second. llama.cpp's (GGUF's USER_DEFINED tokens): the
longest word first, wherever it stands, then the next one. The two differ where words overlap. No torch here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial

import regex

# By default special tokens match the text as it stands and other words the normalized text, as `tokenizers` has it.
FLAGS = ("lstrip", "rstrip", "single_word", "normalized")
# Unicode's White_Space, as Rust has it: str.strip would take U+001C to U+001F too.
WHITE_SPACE = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
WHITE_SPACE += "\u2028\u2029\u202f\u205f\u3000"
_WORD = regex.compile(r"[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]")


class AddedTokens:
    """Special tokens and added words of a vocabulary, with the flags of those that have any that isn't the default.

    `longest_first`: llama.cpp's rule instead of Hugging Face's.
    """

    def __init__(
        self,
        special: Mapping[str, int],
        words: Mapping[str, int],
        flags: Mapping[str, Mapping[str, bool]],
        *,
        longest_first: bool,
    ) -> None:
        self._ids = {**special, **words}
        self._special = special
        self._flags = flags
        self._longest_first = longest_first
        passes: tuple[list[str], list[str]] = ([], [])
        for name in self._ids:
            passes[flags.get(name, {}).get("normalized", name not in special)].append(name)
        self._passes = [_alternation(names) for names in passes if names]

    def split(self, text: str, allowed: Collection[str]) -> list[str | int]:
        """`text` as the ids of its added words and of the special tokens in `allowed`, and the texts between them."""
        parts: list[str | int] = [text] if text else []
        if len(self._ids) == len(self._special) and not allowed:
            return parts
        if self._longest_first:
            names = [name for name in self._ids if name in allowed or name not in self._special]
            for name in sorted(names, key=lambda name: (-len(name.encode(errors="replace")), self._ids[name])):
                if name in text:
                    parts = list(_each(parts, partial(_around, name=name, id=self._ids[name])))
            return parts
        for pattern in self._passes:
            parts = list(_each(parts, partial(self._matches, pattern=pattern, allowed=allowed)))
        return parts

    def _matches(self, text: str, pattern: re.Pattern[str], allowed: Collection[str]) -> Iterator[str | int]:
        done = 0
        for match in pattern.finditer(text):
            name, (begin, end) = match[0], match.span()
            # A special token that stays text isn't searched for shorter words either.
            if name in self._special and name not in allowed:
                continue
            flags = self._flags.get(name, {})
            if flags.get("single_word") and any(map(_WORD.fullmatch, (*text[:begin][-1:], *text[end : end + 1]))):
                continue
            if flags.get("lstrip"):
                begin = max(done, len(text[:begin].rstrip(WHITE_SPACE)))
            if flags.get("rstrip"):
                end = len(text) - len(text[end:].lstrip(WHITE_SPACE))
            if done < begin:
                yield text[done:begin]
            yield self._ids[name]
            done = end
        if done < len(text):
            yield text[done:]


def _alternation(names: list[str]) -> re.Pattern[str]:
    """Finds the leftmost of the names and of those the longest."""
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))))


def _each(parts: Iterable[str | int], cut: Callable[[str], Iterator[str | int]]) -> Iterator[str | int]:
    for part in parts:
        if isinstance(part, str):
            yield from cut(part)
        else:
            yield part


def _around(text: str, name: str, id: int) -> Iterator[str | int]:
    for index, piece in enumerate(text.split(name)):
        if index:
            yield id
        if piece:
            yield piece
