"""Requests for a story with three given words in it, which is how TinyStories got its variety (arXiv:2305.07759).

A model that has learnt to answer them writes other stories for other words.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence

MIN_SHARE, MAX_SHARE = 0.002, 0.04  # of the stories that a word stands in: neither in hardly any nor in most
REQUESTED_WORDS = 3  # in a request


def content_words(stories: Iterable[str]) -> list[str]:
    """The words, sorted, that say what a story is about: in small letters, neither very common nor very rare."""
    count: Counter[str] = Counter()
    total = 0
    for story in stories:
        count.update(set(_words(story)))
        total += 1
    return sorted(word for word, n in count.items() if MIN_SHARE * total <= n <= MAX_SHARE * total and n > 1)


def words_of(story: str, known: Sequence[str], chance: random.Random) -> list[str]:
    """Three of the known words of one story, or those it has, in the order of chance."""
    found = sorted(set(known).intersection(_words(story)))
    return chance.sample(found, min(REQUESTED_WORDS, len(found)))


def request(words: Sequence[str]) -> str:
    """What a person asks for."""
    return f"Write a short story for a small child with these words: {', '.join(words)}."


def _words(story: str) -> list[str]:
    return re.findall(r"(?<![\w'])[a-z]{3,}(?![\w'])", story)
