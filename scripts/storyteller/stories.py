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

from storyteller.words import ALONE, BOYS, ENDINGS, GIRLS, PERSONS, TOGETHER, WOMEN, WORDS, plots

_plots = functools.cache(plots)


def story(seed: int) -> str:
    """One story of 90 to 250 words, in paragraphs."""
    chance = random.Random(seed)
    plot = chance.choice(_plots())
    words = {name: chance.choice(choices) for name, choices in (WORDS | plot.words).items()}
    for role, name in zip(("hero", "friend"), chance.sample(GIRLS + BOYS, 2), strict=True):
        child = "girl" if name in GIRLS else "boy"
        words |= {role: name, f"{role}_is": chance.choice((child, child, words[f"{role}_animal"]))}
    for role in PERSONS:
        words |= _pronouns("" if role == "hero" else f"{role[0]}_", she=words[role] in GIRLS + WOMEN)
    beginnings = ALONE if plot.strangers else ALONE + TOGETHER
    endings = ENDINGS[chance.choice(plot.ends)]
    paragraphs = [chance.choice(lines) for lines in (beginnings, *plot.beats, endings)]
    opening, *others = (_filled(paragraph, words, chance) for paragraph in paragraphs)
    if words["friend"] not in opening and not plot.strangers:
        others = _introduced("\n\n".join(others), words).split("\n\n")
    return "\n\n".join([opening, *others])


def stories(seed: int, count: int) -> Iterator[str]:
    """`count` stories, those of one seed different from those of another."""
    return (story(seed << 32 | number) for number in range(count))


def _pronouns(prefix: str, *, she: bool) -> dict[str, str]:
    """{he}, {him}, {his} and {himself} of one person; the hero's have no prefix, the others' f_, g_ or n_."""
    words = ("she", "her", "her", "herself") if she else ("he", "him", "his", "himself")
    return {f"{prefix}{form}": word for form, word in zip(("he", "him", "his", "himself"), words, strict=True)}


def _introduced(text: str, words: dict[str, str]) -> str:
    """Ben, where he is first spoken of, as "her friend Ben"; who is first spoken to needs no introduction."""
    before, name, after = text.partition(words["friend"])
    if before.count('"') % 2:
        return text
    his = words["his"].capitalize() if re.search(r'(^|[.!?]"? |\n)$', before) else words["his"]
    return f"{before}{his} friend {name}{after}" if name else text


def _filled(line: str, words: dict[str, str], chance: random.Random) -> str:
    """The line with one of each [this|that] chosen and its words filled in; {He} is {he} with a capital."""

    def word(match: re.Match[str]) -> str:
        found = words[match[1].lower()]
        return found if match[1].islower() else found[0].upper() + found[1:]

    chosen = re.sub(r"\[([^]]*)\]", lambda match: chance.choice(match[1].split("|")), line)
    filled = re.sub(r"\{(\w+)\}", word, " ".join(chosen.split()))
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", filled)
