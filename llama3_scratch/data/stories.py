"""Short stories for children from a seed: unlimited text to learn on, and hardly two alike.

A plot is a row of beats, a beat a choice of sentences with places for who, what and where; a seed decides all choices.
Whoever and whatever a story has begun with stays in it: what was lost is what is found. All sentences are this
project's own.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Iterator

from llama3_scratch.data.story_words import ALONE, BOYS, ENDINGS, GIRLS, STRANGERS, TOGETHER, WORDS, plots

_plots = functools.cache(plots)


def story(seed: int) -> str:
    """One story of about 80 to 250 words, in paragraphs."""
    chance = random.Random(seed)
    pick = chance.choice
    words = {name: pick(choices) for name, choices in WORDS.items()}
    for role, name in zip(("hero", "friend"), chance.sample(GIRLS + BOYS, 2), strict=True):
        words |= _person(role, name, pick(("child", "child", "animal")), words[f"{role}_animal"])
    title = pick(list(_plots()))
    beats, first = _plots()[title], chance.random() < 0.5
    told = [beat[0 if first else -1] if title.endswith("*") else pick(beat) for beat in beats]
    beginnings = ALONE if title.strip(" *") in STRANGERS else ALONE + TOGETHER
    paragraphs = [pick(beginnings), *told, pick(ENDINGS)]
    return "\n\n".join(_filled(paragraph, words) for paragraph in paragraphs)


def stories(seed: int, count: int) -> Iterator[str]:
    """`count` stories, those of one seed different from those of another."""
    return (story(seed << 32 | number) for number in range(count))


def _person(role: str, name: str, kind: str, animal: str) -> dict[str, str]:
    """The words for a person: its name, what it is, and its pronouns."""
    girl = name in GIRLS
    pronouns = ("she", "her", "her", "herself") if girl else ("he", "him", "his", "himself")
    prefix = "" if role == "hero" else "f_"
    forms = {f"{prefix}{form}": word for form, word in zip(("he", "him", "his", "himself"), pronouns, strict=True)}
    return {role: name, f"{role}_is": animal if kind == "animal" else "girl" if girl else "boy", **forms}


def _filled(text: str, words: dict[str, str]) -> str:
    """The sentences with the words in their places: {He} is {he} with a capital, "a" before a vowel becomes "an"."""

    def word(match: re.Match[str]) -> str:
        found = words[match[1].lower()]
        return found if match[1].islower() else found[0].upper() + found[1:]

    filled = re.sub(r"\{(\w+)\}", word, text)
    filled = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", filled)
    # A sentence begins with a capital, whatever word it begins with.
    return re.sub(r'((?:^|(?<!Mr)(?<!Mrs)[.!?] )"?)([a-z])', lambda match: match[1] + match[2].upper(), filled)
