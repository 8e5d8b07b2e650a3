"""Stories asked for by words: from stories to conversations to learn from, and from a model to new stories."""

from __future__ import annotations

import json
import random
from pathlib import Path

import ask_for_stories
import pytest
from storyteller.requests import MAX_SHARE, MIN_SHARE, REQUESTED_WORDS, content_words, request, words_of
from storyteller.stories import stories

from llama3_scratch.data.conversations import read_conversations
from llama3_scratch.inference.answers import answers
from tests import tiny
from tests.recipes import script

TALES = list(stories(4, 300))


@pytest.fixture
def tales(tmp_path) -> Path:
    path = tmp_path / "tales.jsonl"
    path.write_text("".join(json.dumps({"text": tale}) + "\n" for tale in TALES))
    return path


def test_content_words_are_neither_common_nor_rare():
    known = content_words(TALES)
    assert known == sorted(set(known)) and len(known) > 100
    for word in random.Random(0).sample(known, 20):
        holding = sum(f" {word} " in f" {' '.join(words(tale))} " for tale in TALES)
        assert max(2, MIN_SHARE * 300) <= holding <= MAX_SHARE * 300
    assert not {"the", "and", "was"} & set(known) and all(word == word.lower() for word in known)
    assert content_words(["A cat's hat.", "The cat isn't here.", "Cats"] * 1) == []


def words(tale: str) -> list[str]:
    return "".join(c if c.isalnum() or c == "'" else " " for c in tale).split()


def test_the_words_asked_for_are_the_storys_own():
    known = content_words(TALES)
    for tale in TALES[:20]:
        chosen = words_of(tale, known, random.Random(1))
        assert chosen == words_of(tale, known, random.Random(1)) and len(set(chosen)) == len(chosen) <= REQUESTED_WORDS
        assert all(word in words(tale) for word in chosen)
    assert words_of("Nothing.", known, random.Random(1)) == []
    assert request(["cat", "hat", "sun"]).endswith("with these words: cat, hat, sun.")


def test_stories_become_conversations(tales, tmp_path, capsys):
    out = tmp_path / "requests.jsonl"
    assert script("story_requests")([str(tales), "--count", "50", "--seed", "2", "--out", str(out)]) == 0
    assert capsys.readouterr().out.startswith("50 conversations, ")
    rows = read_conversations(out)
    assert len(rows) == 50 and len({row[1]["content"] for row in rows}) == 50
    for asked, told in rows:
        assert told["content"] in TALES
        assert all(word in words(told["content"]) for word in asked["content"].split(": ")[1].strip(".").split(", "))
    assert (
        script("story_requests")([str(tales), "--count", "50", "--seed", "2", "--out", str(tmp_path / "b.jsonl")]) == 0
    )
    assert (tmp_path / "b.jsonl").read_bytes() == out.read_bytes()


def test_asking_goes_on_where_it_stopped(tales, tmp_path, capsys):
    model = tiny.folder(tmp_path / "model", "llama3")
    named = [str(tales), "--model", str(model), "--batch", "3", "--max-tokens", "4", "--temperature", "0.01"]
    ask = script("ask_for_stories")
    assert ask([*named, "--count", "6", "--out", str(tmp_path / "whole.jsonl")]) == 0
    assert "6 of 6 · " in capsys.readouterr().err
    assert ask([*named, "--count", "3", "--out", str(tmp_path / "part.jsonl")]) == 0
    assert ask([*named, "--count", "6", "--out", str(tmp_path / "part.jsonl")]) == 0
    assert (tmp_path / "part.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "whole.jsonl").read_text().splitlines()]
    assert len({row["prompt"] for row in rows}) == 6 and all(set(row) == {"prompt", "text"} for row in rows)


def test_answers_are_written_part_by_part(tales, tmp_path, monkeypatch):
    """A run that is stopped keeps the parts that were whole, and its end is the same."""
    model = tiny.folder(tmp_path / "model", "llama3")
    whole, part = tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    ask = ask_for_stories.main
    named = [str(tales), "--model", str(model), "--batch", "2", "--max-tokens", "4", "--count", "7"]
    assert ask([*named, "--out", str(whole)]) == 0
    monkeypatch.setattr(ask_for_stories, "WRITTEN_AT_ONCE", 3)
    asked: list[int] = []

    def stopping(prompts, *rest, **how):
        asked.append(len(prompts))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return answers(prompts, *rest, **how)

    with monkeypatch.context() as stopped:
        stopped.setattr("llama3_scratch.inference.answers.answers", stopping)
        assert ask([*named, "--out", str(part)]) == 130
    assert asked == [3, 3, 1] and part.read_bytes() == b"".join(whole.read_bytes().splitlines(keepends=True)[:6])
    assert ask([*named, "--out", str(part)]) == 0
    assert part.read_bytes() == whole.read_bytes()


def test_what_cannot_be_asked(tales, tmp_path, capsys):
    ask = script("ask_for_stories")
    plain = tiny.folder(tmp_path / "plain", None)
    assert ask([str(tales), "--model", str(plain), "--out", str(tmp_path / "x.jsonl")]) == 2
    assert "expected a model that chats" in capsys.readouterr().err
    model = tiny.folder(tmp_path / "model", "llama3")
    (tmp_path / "few.txt").write_text("A cat sat.")
    assert ask([str(tmp_path / "few.txt"), "--model", str(model), "--out", str(tmp_path / "x.jsonl")]) == 2
    assert "too few stories to take 3 words from" in capsys.readouterr().err
    assert script("story_requests")([str(tmp_path / "few.txt"), "--out", str(tmp_path / "y.jsonl")]) == 2
    assert "too few stories to take 3 words of any" in capsys.readouterr().err and not (tmp_path / "y.jsonl").exists()
