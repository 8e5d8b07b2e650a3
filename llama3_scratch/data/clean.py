"""Which documents are worth learning from: published rules, each with its name and its threshold.

"gopher" is arXiv:2112.11446, A.1.1 (quality and repetition), "c4" arXiv:1910.10683, §2.2, without its bad words. They
were made for English web pages. Where a text is mostly Chinese, each character counts as a word, its stop words and
full stops are Chinese ones, and the length of words says nothing and isn't asked for.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

_HAN = r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_STOP_WORDS = {"the", "be", "to", "of", "and", "that", "have", "with"}
_HAN_STOP_WORDS = set("的是了在和不有我")
_ENDS = tuple(".!?\"'”。！？」』…")


def tidy(text: str) -> str:
    """The text in composed characters (NFC), with "\\n" alone for line ends and no control or private characters."""
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    kept = (
        c for c in text if c in "\n\t" or (unicodedata.category(c) not in ("Cc", "Co", "Cs", "Cn") and c != "\ufeff")
    )
    return "".join(kept)


@dataclass(frozen=True)
class WebPage:
    """A document as the rules look at it."""

    text: str

    @cached_property
    def words(self) -> list[str]:
        return re.findall(rf"[{_HAN}]|[^\s{_HAN}]+", self.text)

    @cached_property
    def lines(self) -> list[str]:
        return [line.strip() for line in self.text.split("\n") if line.strip()]

    @cached_property
    def paragraphs(self) -> list[str]:
        return [part.strip() for part in re.split(r"\n\s*\n", self.text) if part.strip()]

    @cached_property
    def chinese(self) -> bool:
        """Whether most letters are Chinese."""
        letters = sum(map(str.isalpha, self.text))
        return 2 * len(re.findall(rf"[{_HAN}]", self.text)) > letters

    def stop_words(self) -> int:
        """How many different stop words there are."""
        known = _HAN_STOP_WORDS if self.chinese else _STOP_WORDS
        return len(known & {word.lower().strip(".,;:!?\"'()") for word in self.words})

    def share_of_lines(self, test: Callable[[str], object]) -> float:
        return sum(bool(test(line)) for line in self.lines) / max(1, len(self.lines))

    def repeated(self, parts: Sequence[str], *, by_characters: bool) -> float:
        """The share of parts, or of their characters, that stood there before."""
        seen: set[str] = set()
        again = total = 0
        for part in parts:
            size = len(part) if by_characters else 1
            total += size
            again += size * (part in seen)
            seen.add(part)
        return again / max(1, total)

    def top_ngram(self, n: int) -> float:
        """The share of characters in the most frequent n-gram of words."""
        ngrams = Counter(zip(*(self.words[i:] for i in range(n)), strict=False))
        if not ngrams:
            return 0.0
        ngram, count = max(ngrams.items(), key=lambda item: (item[1], sum(map(len, item[0]))))
        return count * sum(map(len, ngram)) / max(1, sum(map(len, self.words))) if count > 1 else 0.0

    def repeated_ngrams(self, n: int) -> float:
        """The share of characters in n-grams of words that stood there before, each character counted once."""
        seen: set[tuple[str, ...]] = set()
        again = [False] * len(self.words)
        for at in range(len(self.words) - n + 1):
            ngram = tuple(self.words[at : at + n])
            if ngram in seen:
                again[at : at + n] = [True] * n
            seen.add(ngram)
        total = sum(map(len, self.words))
        return sum(len(word) for word, is_again in zip(self.words, again, strict=True) if is_again) / max(1, total)


Rule = Callable[[WebPage], bool]  # whether a page may stay


def _top(n: int, limit: float) -> Rule:
    return lambda page: page.top_ngram(n) <= limit


def _repeated(n: int, limit: float) -> Rule:
    return lambda page: page.repeated_ngrams(n) <= limit


GOPHER: dict[str, Rule] = {
    "50 to 100,000 words": lambda page: 50 <= len(page.words) <= 100_000,
    "words of 3 to 10 letters on average": lambda page: (
        page.chinese or 3 <= sum(map(len, page.words)) / max(1, len(page.words)) <= 10
    ),
    "at most a symbol (#, …) for 10 words": lambda page: (
        page.text.count("#") + page.text.count("…") + page.text.count("...") <= 0.1 * len(page.words)
    ),
    "at most 90% of lines are bullets": lambda page: page.share_of_lines(re.compile(r"[-*•●‣·]").match) <= 0.9,
    "at most 30% of lines end in an ellipsis": lambda page: (
        page.share_of_lines(lambda line: line.endswith(("...", "…"))) <= 0.3
    ),
    "80% of words have a letter": lambda page: (
        sum(any(map(str.isalpha, word)) for word in page.words) >= 0.8 * len(page.words)
    ),
    "2 stop words": lambda page: page.stop_words() >= 2,
    "at most 30% of lines repeat": lambda page: page.repeated(page.lines, by_characters=False) <= 0.3,
    "at most 30% of paragraphs repeat": lambda page: page.repeated(page.paragraphs, by_characters=False) <= 0.3,
    "at most 20% in repeated lines": lambda page: page.repeated(page.lines, by_characters=True) <= 0.2,
    "at most 20% in repeated paragraphs": lambda page: page.repeated(page.paragraphs, by_characters=True) <= 0.2,
    **{
        f"at most {limit:.0%} in the top run of {n} words": _top(n, limit)
        for n, limit in ((2, 0.2), (3, 0.18), (4, 0.16))
    },
    **{
        f"at most {limit:.0%} in repeated runs of {n} words": _repeated(n, limit)
        for n, limit in ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))
    },
}

C4: dict[str, Rule] = {
    "no curly bracket": lambda page: "{" not in page.text,
    'no "lorem ipsum"': lambda page: "lorem ipsum" not in page.text.lower(),
    "3 sentences in lines that end as sentences do": lambda page: (
        len(re.findall(r"[.!?。！？]+", "\n".join(c4_lines(page.text)))) >= 3
    ),
}

RULES = {"gopher": GOPHER, "c4": C4}


def c4_lines(text: str) -> list[str]:
    """The lines that c4 keeps: of five words at least, ended as a sentence is, without words of web pages' own."""
    kept = []
    for line in text.split("\n"):
        few = len(WebPage(line).words) < 5
        own = re.search(r"javascript|terms of use|privacy policy|cookie policy|uses cookies", line, re.IGNORECASE)
        if not few and not own and line.strip().endswith(_ENDS):
            kept.append(line)
    return kept


def broken_rule(text: str, rules: Sequence[str]) -> str | None:
    """The first rule that a text breaks, as "gopher: 50 to 100,000 words"; None where it may stay."""
    page = WebPage(text)
    for name in rules:
        for rule, holds in RULES[name].items():
            if not holds(page):
                return f"{name}: {rule}"
    return None
