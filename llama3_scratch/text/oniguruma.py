"""A split pattern as `tokenizers` reads it (Oniguruma, Ruby's syntax) → one that tiktoken's engine reads alike.

The two engines agree on most of a pattern, and where they don't, they differ without a word: `\\p{N}{1,3}+` repeats
the interval in Oniguruma and is possessive in the other, `[[:digit:]]` is every script's digits or ten, `$` is a
line's end or the text's. A construct is carried over as it is, spelt so that both mean the same, or refused by name.
The result reads alike in the package `regex` too. (Oniguruma's doc/RE; docs of the crates regex and fancy-regex.)
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

# Unicode properties on which the engines agree character by character, but for newly assigned ones.
_PROPERTIES = "L Lu Ll Lt Lm Lo M Mn Mc Me N Nd Nl No P Pc Pd Ps Pe Pi Pf Po S Sm Sc Sk So Z Zs Zl Zp C Cc Cf Co"
_PROPERTIES += " Han Hiragana Katakana Hangul Thai Arabic Cyrillic Greek Latin Hebrew Devanagari Bengali Tamil Georgian"
_PROPERTIES += " Armenian Khmer Lao Myanmar Tibetan Common Alphabetic Uppercase Lowercase White_Space Emoji"
_NAMES = {name.lower().replace("_", ""): name for name in _PROPERTIES.split()}
_WORD = r"\p{Alphabetic}\p{M}\p{Nd}\p{Pc}"
# POSIX brackets are Unicode's in Oniguruma, ASCII's in the other.
_POSIX = {
    "alpha": r"\p{Alphabetic}",
    "digit": r"\p{Nd}",
    "alnum": r"\p{Alphabetic}\p{Nd}",
    "upper": r"\p{Uppercase}",
    "lower": r"\p{Lowercase}",
    "space": r"\s",
    "punct": r"\p{P}\p{S}",
    "word": _WORD,
    "xdigit": "0-9A-Fa-f",
    "cntrl": r"\p{Cc}",
    "blank": r"\t\p{Zs}",
    "ascii": r"\x00-\x7F",
}
_SETS = {"d": r"\p{Nd}", "s": r"\s", "w": _WORD, "h": "0-9A-Fa-f"}
# Outside of brackets Oniguruma's \w and \b have Latin-1's superscripts and fractions besides.
_WORD_ALONE = f"[{_WORD}²³¹¼½¾]"
_CONTROLS = {"t": "\t", "n": "\n", "r": "\r", "f": "\f", "v": "\v", "a": "\a", "e": "\x1b"}
_START, _END = r"(?<![\s\S])", r"(?![\s\S])"
_EDGES = {
    "A": _START,
    "z": _END,
    "Z": rf"(?=\n?{_END})",
    "b": rf"(?:(?<={_WORD_ALONE})(?!{_WORD_ALONE})|(?<!{_WORD_ALONE})(?={_WORD_ALONE}))",
    "B": rf"(?:(?<={_WORD_ALONE})(?={_WORD_ALONE})|(?<!{_WORD_ALONE})(?!{_WORD_ALONE}))",
}
# Two or three letters that are one character's folding: Oniguruma's (?i:ss) matches ß too.
_FOLDED = ("ss", "ff", "fi", "fl", "st")


class _Piece(NamedTuple):
    """A part of the translation, with the fewest and the most characters that it matches."""

    text: str
    shortest: int
    longest: int | None


class _Set(NamedTuple):
    """A character class: `items` as they stand between brackets, or, where that can't be, the whole as `text`."""

    items: str | None
    text: str


def translate(pattern: str) -> tuple[str, list[str]]:
    """(the pattern for tiktoken's engine, the constructs of the original that it would have read otherwise).

    ValueError, naming it, for a construct that can't be carried over.
    """
    reader = _Reader(pattern)
    whole = reader.alternatives(fold=False)
    if reader.rest:
        raise ValueError("an unmatched )")
    if whole.shortest == 0:
        raise ValueError("it can match the empty text")
    return whole.text, reader.differing


class _Reader:
    def __init__(self, pattern: str) -> None:
        self.rest = pattern
        self.differing: list[str] = []

    def take(self, *starts: str) -> str | None:
        """The first of `starts` that comes next, which is then read; else None."""
        found = next((start for start in starts if self.rest.startswith(start)), None)
        if found is not None:
            self.rest = self.rest[len(found) :]
        return found

    def match(self, expression: str) -> re.Match[str] | None:
        """What comes next, if it matches; then it is read."""
        found = re.match(expression, self.rest)
        if found:
            self.rest = self.rest[found.end() :]
        return found

    def differs(self, construct: str) -> None:
        self.differing.append(construct)

    def alternatives(self, *, fold: bool) -> _Piece:
        if self.take("(?i)"):  # here it is all of the group; further on the engines differ
            fold = True
        branches = [self.branch(fold=fold)]
        while self.take("|"):
            branches.append(self.branch(fold=fold))
        longest = [branch.longest for branch in branches]
        return _Piece(
            "|".join(branch.text for branch in branches),
            min(branch.shortest for branch in branches),
            None if None in longest else max(each for each in longest if each is not None),
        )

    def branch(self, *, fold: bool) -> _Piece:
        text, letters, shortest = "", "", 0
        longest: int | None = 0
        while self.rest and self.rest[0] not in "|)":
            if self.match(r"\(\?#[^)]*\)"):
                continue
            before = self.rest
            piece = self.repeated(self.atom(fold=fold))
            letters = letters + before[0].lower() if fold and before[0].isalpha() else ""
            if letters.endswith(_FOLDED):
                raise ValueError(f"(?i: with {letters[-2:]}, which is one character's case folding")
            text, shortest = text + piece.text, shortest + piece.shortest
            longest = None if longest is None or piece.longest is None else longest + piece.longest
        return _Piece(text, shortest, longest)

    def atom(self, *, fold: bool) -> _Piece:
        if self.rest[0] == "(":
            return self.group(fold=fold)
        if self.take("["):
            return _Piece(self.brackets(fold=fold).text, 1, 1)
        character, self.rest = self.rest[0], self.rest[1:]
        match character:
            case ".":
                return _Piece(r"[^\n]", 1, 1)
            case "^":
                self.differs("^")
                return _Piece(rf"(?:{_START}|(?<=\n)(?!{_END}))", 0, 0)
            case "$":
                self.differs("$")
                return _Piece(r"(?![^\n])", 0, 0)
            case "*" | "+" | "?":
                raise ValueError(f"{character} with nothing before it")
            case "\\":
                return self.escape(fold=fold)
        return _Piece(_literal(character, fold=fold), 1, 1)

    def group(self, *, fold: bool) -> _Piece:
        opening = self.take("(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:", "(?-i:")
        if opening is None:
            named = self.match(r"\(\?<[A-Za-z_]\w*>")
            if named is None and self.rest.startswith("(?"):
                if self.rest.startswith("(?i)"):
                    raise ValueError("(?i) in the middle")
                raise ValueError(f"the group {self.rest[:4]}")
            if named is None:
                self.take("(")
            opening = "(?:"  # nothing refers to a group, so none needs to be captured
        inner = self.alternatives(fold=opening == "(?i:" or (fold and opening != "(?-i:"))
        if not self.take(")"):
            raise ValueError("a ( without )")
        if opening in ("(?<=", "(?<!") and inner.shortest != inner.longest:
            raise ValueError("a lookbehind without a fixed length")
        opening = "(?:" if "i" in opening else opening
        ahead_or_behind = opening not in ("(?:", "(?>")
        return _Piece(f"{opening}{inner.text})", *((0, 0) if ahead_or_behind else inner[1:]))

    def escape(self, *, fold: bool) -> _Piece:
        kind = self.rest[:1]
        if kind in "dswhDSWH" and kind:
            return _Piece(self.shorthand().text.replace(f"{_WORD}]", f"{_WORD_ALONE[1:]}"), 1, 1)
        if kind in "pP" and kind:
            self.check_unfolded(fold, rf"\{self.rest[:20]}")
            return _Piece(self.unicode_property(), 1, 1)
        if kind in _EDGES:
            self.rest = self.rest[1:]
            self.differs(f"\\{kind}")
            return _Piece(_EDGES[kind], 0, 0)
        if self.take("R"):
            self.differs(r"\R")
            return _Piece("(?>\\r\\n|[\\n-\\r\x85\u2028\u2029])", 1, 2)
        return _Piece(_literal(self.character(), fold=fold), 1, 1)

    def shorthand(self) -> _Set:
        """\\d, \\s, \\w, \\h or what isn't one of them."""
        kind, self.rest = self.rest[0], self.rest[1:]
        items = _SETS[kind.lower()]
        if kind not in "sSdD":
            self.differs(f"\\{kind}")
        if kind in "sd":
            return _Set(items, items)
        if kind in "SD":
            return _Set(*2 * (items.replace("p", "P").replace("s", "S"),))
        return _Set(items, f"[{items}]") if kind.islower() else _Set(None, f"[^{items}]")

    def unicode_property(self) -> str:
        found = self.match(r"([pP])\{(\^?)([A-Za-z _-]+)\}")
        name = found and _NAMES.get(re.sub("[ _-]", "", found[3]).lower())
        if not found or not name:
            raise ValueError(f"the property \\{self.rest[:20] if not found else found[0]}")
        return f"\\{'P' if (found[1] == 'P') != bool(found[2]) else 'p'}{{{name}}}"

    def character(self) -> str:
        """The character that an escape stands for."""
        if found := self.match(r"x\{([0-9A-Fa-f]{1,6})\}|u([0-9A-Fa-f]{4})|x([0-7][0-9A-Fa-f])(?![0-9A-Fa-f])"):
            number = int(found[1] or found[2] or found[3], 16)
            if number < 0x110000 and not 0xD800 <= number < 0xE000:
                return chr(number)
            raise ValueError(f"the escape \\{found[0]}")
        character, self.rest = self.rest[:1], self.rest[1:]
        if character in _CONTROLS:
            return _CONTROLS[character]
        if not character or character.isalnum():
            raise ValueError(f"the escape \\{character}" + self.rest[:3] * (character == "x"))
        return character

    def brackets(self, *, fold: bool) -> _Set:
        """A character class, whose [ was read."""
        negated = bool(self.take("^"))
        self.check_unfolded(fold and negated, f"[^{self.rest[:20]}")
        if self.rest.startswith("]"):
            raise ValueError("[] with nothing in it")
        operands = [self.operand(fold=fold)]
        while self.take("&&"):
            operands.append(self.operand(fold=fold))
        if not self.take("]"):
            raise ValueError("a [ without ]")
        if len(operands) == 1:
            whole = operands[0]
        else:
            *others, last = (operand.text for operand in operands)
            whole = _Set(None, f"(?:{''.join(f'(?={other})' for other in others)}{last})")
        if not negated:
            return whole
        return _Set(None, f"[^{whole.items}]" if whole.items is not None else rf"(?:(?!{whole.text})[\s\S])")

    def operand(self, *, fold: bool) -> _Set:
        """What stands before ], or before or after &&."""
        items, others = "", []
        while self.rest and not self.rest.startswith(("]", "&&")):
            found = self.member(fold=fold)
            if found.items is None:
                others.append(found.text)
            else:
                items += found.items
        if not items and not others:
            raise ValueError("&& with nothing beside it")
        if not others:
            return _Set(items, f"[{items}]")
        if not items and len(others) == 1:
            return _Set(None, others[0])
        return _Set(None, f"(?:{'|'.join([f'[{items}]'] * bool(items) + others)})")

    def member(self, *, fold: bool) -> _Set:
        if self.rest.startswith("[:"):
            found = self.match(r"\[:(\^?)([a-z]+):\]")
            if not found or found[2] not in _POSIX:
                raise ValueError(f"the bracket {self.rest[:9]}" if not found else f"the bracket {found[0]}")
            if found[2] not in ("xdigit", "ascii", "cntrl"):
                self.differs(found[0])
            self.check_unfolded(fold, found[0])
            items = _POSIX[found[2]]
            return _Set(None, f"[^{items}]") if found[1] else _Set(items, f"[{items}]")
        if self.take("["):
            return self.brackets(fold=fold)
        if re.match(r"\\[dswhDSWH]", self.rest):
            self.rest = self.rest[1:]
            return self._no_range(self.shorthand())
        if re.match(r"\\[pP]", self.rest):
            self.check_unfolded(fold, self.rest[:20])
            self.rest = self.rest[1:]
            text = self.unicode_property()
            return self._no_range(_Set(text, text))
        first = self.single()
        if not re.match(r"-[^\]]", self.rest):
            text = _literal(first, fold=fold, within=True)
            return _Set(text, text)
        self.take("-")
        if self.rest.startswith("["):
            raise ValueError("a range that ends with [")
        last = self.single()
        if last < first:
            raise ValueError(f"the range {first}-{last}")
        if fold:
            raise ValueError(f"(?i: with the range {first}-{last}")
        text = f"{_literal(first, within=True)}-{_literal(last, within=True)}"
        return self._no_range(_Set(text, text))

    def _no_range(self, found: _Set) -> _Set:
        if re.match(r"-[^\]]", self.rest):
            raise ValueError(f"a - after {found.text} in brackets")
        return found

    def check_unfolded(self, fold: bool, construct: str) -> None:
        if fold:
            raise ValueError(f"(?i: with {construct}")

    def single(self) -> str:
        if self.take("\\"):
            if self.rest[:1] in ("b", "R", "X"):
                raise ValueError(f"the escape \\{self.rest[0]} in brackets")
            return self.character()
        character, self.rest = self.rest[0], self.rest[1:]
        return character

    def repeated(self, piece: _Piece) -> _Piece:
        """`piece` with the quantifier that follows it."""
        if found := self.match(r"([?*+])([?+]?)"):
            low, high = {"?": (0, 1), "*": (0, None), "+": (1, None)}[found[1]]
            piece = _times(piece, found[0], low, high)
        elif found := self.match(r"\{(\d+)\}|\{(\d*),(\d*)\}(?!(?<=\{,\}))"):
            if found[1]:
                low = high = int(found[1])
            else:
                low, high = int(found[2] or 0), int(found[3]) if found[3] else None
                if not found[2]:
                    self.differs(found[0])
            if high is not None and (high < low or high > 1000):
                raise ValueError(f"the interval {found[0]}")
            lazy = "?" if not found[1] and self.take("?") else ""
            shown = f"{{{low}}}" if found[1] else f"{{{low},{'' if high is None else high}}}"
            piece = _times(piece, shown + lazy, low, high)
            if more := None if lazy else self.match(r"[?*+]"):
                # Ruby's syntax: no possessive intervals, and {n}? is no lazy one, so this repeats what was repeated.
                self.differs(found[0] + more[0])
                low, high = {"?": (0, 1), "*": (0, None), "+": (1, None)}[more[0]]
                piece = _times(piece._replace(text=f"(?:{piece.text})"), more[0], low, high)
        else:
            return piece
        if again := re.match(r"[?*+]|\{\d*,?\d*\}", self.rest):
            raise ValueError(f"two quantifiers in a row, the second {again[0]}")
        return piece


def _times(piece: _Piece, quantifier: str, low: int, high: int | None) -> _Piece:
    if piece.shortest == 0 and high != 1:
        raise ValueError(f"{quantifier} after what can match the empty text")
    product = None if high is None or piece.longest is None else high * piece.longest
    return _Piece(piece.text + quantifier, low * piece.shortest, product)


def _literal(character: str, *, fold: bool = False, within: bool = False) -> str:
    """A character as both engines read it, alone or within brackets; with `fold` in every case that it has."""
    written: Callable[[str], str] = _in_brackets if within else _alone
    if fold and character.isascii() and character.isalpha():
        cases = character.lower() + character.upper() + {"k": "\u212a", "s": "ſ"}.get(character.lower(), "")
        return cases if within else f"[{cases}]"
    if fold and (character.casefold() != character or character.upper() != character):
        raise ValueError(f"(?i: with {character!r}, which isn't an ASCII letter")
    return written(character)


def _alone(character: str) -> str:
    return "\\" + character if character in r"\.^$|?*+()[]{}" else _visible(character)


def _in_brackets(character: str) -> str:
    return "\\" + character if character in r"\[]^-&~" else _visible(character)


def _visible(character: str) -> str:
    named = {"\t": r"\t", "\n": r"\n", "\r": r"\r"}
    hidden = character < "\x80" and not character.isprintable()
    return named.get(character) or (f"\\x{ord(character):02X}" if hidden else character)
