"""The stories: the same from the same seed, whole, coherent in their names, and hardly two alike."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable

import pytest
from storyteller.stories import stories, story
from storyteller.words import ALONE, BOYS, ENDINGS, GIRLS, MEN, TOGETHER, WOMEN, WORDS, plots

from tests.recipes import script


def named(text: str, words: Iterable[str]) -> list[str]:
    return [word for word in words if re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE)]


def pattern(line: str) -> str:
    """A regular expression for all that the line can be told as."""
    tokens = re.split(r"(\{\w+\}|[][|])", re.sub(r"\b([Aa]) ", r"\1@ ", line))
    known = {"[": "(?:", "]": ")", "|": "|"}
    regexes = (known.get(token) or (".+" if token.startswith("{") else re.escape(token)) for token in tokens)
    return "".join(regexes).replace("@", "n?").replace("\\ ", " *")


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


def test_there_are_many_plots_and_each_beat_has_a_choice():
    assert len(plots()) == len({plot.title for plot in plots()}) >= 24
    for plot in plots():
        assert len(plot.beats) >= 5 and all(len(beat) >= 3 for beat in plot.beats), plot.title
        assert plot.ends and set(plot.ends) <= set(ENDINGS) and set(plot.words) <= set(WORDS), plot.title


@pytest.mark.parametrize("plot", plots(), ids=lambda plot: plot.title)
def test_every_line_has_words_for_its_places(plot):
    persons = {f"{prefix}{form}" for prefix in ("", "f_", "g_", "n_") for form in ("he", "him", "his", "himself")}
    known = {*WORDS, *persons, "hero", "friend", "hero_is", "friend_is"}
    for line in itertools.chain(*plot.beats, *ENDINGS.values(), ALONE, TOGETHER):
        assert {place.lower() for place in re.findall(r"\{(\w+)\}", line)} <= known, line
        assert re.fullmatch(r"([^][{}|]|\{\w+\}|\[([^][{}]|\{\w+\})*\|([^][{}]|\{\w+\})*\])*", line), line
        choices = [
            [text] if number % 2 == 0 else text.split("|") for number, text in enumerate(re.split(r"[][]", line))
        ]
        for told in itertools.product(*choices):
            assert "".join(told).count('"') % 2 == 0, line


def test_a_seed_is_a_story():
    assert story(7) == story(7) != story(8)
    assert list(stories(1, 5)) == list(stories(1, 9))[:5]
    assert not set(stories(1, 50)) & set(stories(2, 50))


def test_every_story_is_whole():
    openings = Counter()
    for text in stories(3, 2000):
        assert 90 <= len(text.split()) <= 250, text
        assert not re.search(r"[][{}|_*]|  | \n|\n | $|\n{3}", text), text
        assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]", text), text
        assert not re.search(r'(?<!Mr)(?<!Mrs)[.!?] "?[a-z]|\." "?[a-z]|(^|\n)"?[a-z]', text), text
        assert text.count('"') % 2 == 0 and len(text.split("\n\n")) == 7
        openings[text.split("\n\n")[0]] += 1
    assert len(openings) > 1500 and openings.most_common(1)[0][1] <= 5


def test_a_story_keeps_to_its_persons_and_things():
    for text in stories(5, 2000):
        assert 1 <= len(named(text, GIRLS + BOYS)) <= 2, text
        assert all(len(named(text, WORDS[kind])) <= 1 for kind in ("grown", "thing", "far", "fruit")), text


def test_every_story_tells_the_beats_of_one_plot_in_their_order():
    patterns = {plot.title: [[pattern(line) for line in beat] for beat in plot.beats] for plot in plots()}
    told: Counter[str] = Counter()
    for text in stories(6, 1000):
        _, *paragraphs, _ = text.split("\n\n")
        fitting = [
            title
            for title, beats in patterns.items()
            if all(any(map(re.fullmatch, beat, [own] * len(beat))) for beat, own in zip(beats, paragraphs, strict=True))
        ]
        assert len(fitting) == 1, text
        told.update(fitting)
    assert set(told) == set(patterns) and min(told.values()) >= 10


def test_pronouns_are_those_of_the_persons():
    men = {*BOYS, *MEN, "Mr. White", "Bear"}
    women = {*GIRLS, *WOMEN}
    for text in stories(4, 2000):
        he, she = (re.search(rf"\b({words})\b", text, re.IGNORECASE) for words in ("he|him|his", "she|her"))
        assert not he or named(text, men), text
        assert not she or named(text, women), text


def test_a_friend_who_comes_in_later_is_introduced():
    found = 0
    for text in stories(8, 1000):
        opening, _, told = text.partition("\n\n")
        hero, *friend = named(opening, GIRLS + BOYS)
        introduced = re.search(r"\b([Hh]is|[Hh]er) friend (\w+)", told)
        if introduced:
            he = "his" if hero in BOYS else "her"
            assert not friend and introduced[1].lower() == he and introduced[2] not in told[: introduced.start()], text
            found += 1
    assert found > 300


def test_what_was_lost_is_what_is_found():
    lost = [text for text in stories(0, 2000) if "not there" in text or "could not find it" in text]
    for text in lost:
        (thing,) = named(text, WORDS["thing"])
        assert text.count(thing) >= 3, text


def test_hardly_two_are_alike():
    assert near_duplicates(list(stories(0, 2000))) < 0.01


@pytest.mark.slow
def test_hardly_two_of_ten_thousand_are_alike():
    assert near_duplicates(list(stories(0, 10_000))) < 0.01


def test_stories_are_written_as_text_or_as_json_lines(tmp_path, capsys):
    write = script("write_stories")
    for name in ("a.txt", "b.jsonl"):
        assert write(["--count", "3", "--seed", "5", "--out", str(tmp_path / name)]) == 0
    assert [text.strip() for text in (tmp_path / "a.txt").read_text().split("\n\n\n")][:3] == list(stories(5, 3))
    rows = [json.loads(line)["text"] for line in (tmp_path / "b.jsonl").read_text().splitlines()]
    assert rows == list(stories(5, 3))
    assert write(["--show", "--out", str(tmp_path / "c.txt")]) == 2 and "give one of them" in capsys.readouterr().err
