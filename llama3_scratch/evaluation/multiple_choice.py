"""Multiple choice: which of the answers to a question the model finds likeliest."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llama3_scratch.checkpoint.load import Checkpoint
from llama3_scratch.data.documents import placed, rows
from llama3_scratch.errors import FileError
from llama3_scratch.evaluation.scoring import Asked, TooLongError, ask, choose, estimate
from llama3_scratch.system.timings import remaining

log = logging.getLogger("llama3_scratch")


def read_questions(path: Path) -> Iterator[tuple[str, str, list[str], int]]:
    """Place, query, choices and the right one's index."""
    for number, row in rows(path):
        place = f"{path}:{number}"
        query, choices, gold = row.get("query"), row.get("choices"), row.get("gold")
        if (
            not isinstance(query, str)
            or not isinstance(choices, list)
            or len(choices) < 2
            or not all(isinstance(choice, str) for choice in choices)
        ):
            raise FileError(f"{place}: expected a text under query and at least two under choices")
        if "" in choices:
            raise FileError(f"{place}: choice {choices.index('')} is empty, so nothing of it could be predicted")
        if not isinstance(gold, int) or isinstance(gold, bool) or not 0 <= gold < len(choices):
            raise FileError(f"{place}: gold must be the index of a choice, 0 to {len(choices) - 1}, got {gold!r}")
        yield place, query, choices, gold


def on_choices(path: Path, checkpoint: Checkpoint, *, limit: int | None = None) -> dict[str, Any]:
    """How many of the first `limit` questions the model answers right, by log p and by log p a byte."""
    tokenizer, context = checkpoint.require_tokenizer(), checkpoint.config.max_seq_len
    questions: list[tuple[Asked, int]] = []  # all of them first: a mistake in the last line is told at once
    left_out = 0
    for place, query, choices, gold in itertools.islice(read_questions(path), limit):
        try:
            with placed(place):
                questions.append((ask(f"{query}\nAnswer:", choices, tokenizer, context), gold))
        except TooLongError as error:
            left_out += 1
            log.warning("%s: %s; the question is left out", place, error)
    if not questions:
        raise FileError(f"{path}: no question is left to ask")
    plain: list[float] = []
    by_byte: list[float] = []
    begun = time.perf_counter()
    for number, (asked, gold) in enumerate(questions, start=1):
        chosen = choose(asked, checkpoint.params, checkpoint.config)
        plain.append(float(chosen.plain == gold))
        by_byte.append(float(chosen.by_byte == gold))
        if number % 50 == 0:
            left = remaining(begun, number, len(questions))
            log.info("question %d of %d: %.3f right so far · %s", number, len(questions), sum(plain) / number, left)
    right, right_by_byte = estimate(plain), estimate(by_byte)
    return {
        "file": str(path),
        "questions": len(plain),
        "cut": sum(asked.cut > 0 for asked, _ in questions),
        "left_out": left_out,
        "accuracy": right.mean,
        "accuracy_error": right.error,
        "accuracy_by_byte": right_by_byte.mean,
        "accuracy_by_byte_error": right_by_byte.error,
    }
