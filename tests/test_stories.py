"""The stories: the same from the same seed, whole, coherent in their names, and hardly two alike."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from llama3_scratch.data.stories import stories, story
from llama3_scratch.data.story_words import BOYS, GIRLS, plots


def near_duplicates(texts: list[str]) -> float:
    """The share of texts that an earlier one is near to: of their runs of five words they have 7 in 10 in common."""
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=0.7, num_perm=64)  # names candidates, most of which aren't
    runs = [{" ".join(run) for run in zip(*(text.split()[i:] for i in range(5)), strict=False)} for text in texts]
    found = 0
    for number, own in enumerate(runs):
        signature = MinHash(num_perm=64)
        signature.update_batch([run.encode() for run in own])
        near = (runs[other] for other in index.query(signature))
        found += any(len(own & other) >= 0.7 * len(own | other) for other in near)
        index.insert(number, signature)
    return found / len(texts)


def test_there_are_many_plots_and_each_has_a_choice():
    assert len(plots()) >= 24
    for title, beats in plots().items():
        assert len(beats) >= 5 and all(len(beat) == 2 for beat in beats), title


def test_a_seed_is_a_story():
    assert story(7) == story(7) != story(8)
    assert list(stories(1, 5)) == list(stories(1, 9))[:5]
    assert not set(stories(1, 50)) & set(stories(2, 50))


def test_every_story_is_whole():
    openings = Counter()
    for text in stories(3, 2000):
        assert 80 <= len(text.split()) <= 250, text
        assert not re.search(r"[{}_*]|  | $|\n{3}", text), text
        assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]", text), text
        assert not re.search(r"(?<!Mr)(?<!Mrs)[.!?] [a-z]", text), text
        assert text.count('"') % 2 == 0 and len(text.split("\n\n")) == 7
        named = [name for name in GIRLS + BOYS if re.search(rf"\b{name}\b", text)]
        assert 1 <= len(named) <= 2, text
        openings[text.split("\n\n")[0]] += 1
    assert len(openings) > 1500 and openings.most_common(1)[0][1] <= 5


def test_a_girl_is_she():
    for text in stories(4, 300):
        named = [name for name in GIRLS + BOYS if re.search(rf"\b{name}\b", text)]
        if all(name in GIRLS for name in named):
            assert not re.search(r"\b(he|his|him)\b", text.replace("Mr. Brown", "").lower()), text


def test_hardly_two_are_alike():
    assert near_duplicates(list(stories(0, 2000))) < 0.01


@pytest.mark.slow
def test_hardly_two_of_ten_thousand_are_alike():
    assert near_duplicates(list(stories(0, 10_000))) < 0.01
