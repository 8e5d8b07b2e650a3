"""Texts with a class each, to train a classifier on: read, and split with equally many of each class."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llama3_scratch.data.documents import lines, rows
from llama3_scratch.errors import FileError, UsageError

log = logging.getLogger("llama3_scratch")

READ = ("last", "first")  # the token at which a class is read


@dataclass(frozen=True)
class Labelled:
    """A text and the name of its class."""

    text: str
    label: str


def read_labelled(path: Path) -> list[Labelled]:
    """The texts of a file: `{"text", "label"}` a line in .jsonl, else label, tab, text, as SMSSpamCollection has it.

    A first line whose label is no other line's is taken for the columns' names. Raises FileError, with file and line,
    for what can't be read, and where fewer than two classes are found.
    """
    found: list[Labelled] = []
    if path.suffix == ".jsonl":
        for number, row in rows(path):
            text, label = row.get("text"), row.get("label")
            if not isinstance(text, str) or not text.strip() or not isinstance(label, str | int):
                raise FileError(f"{path}:{number}: expected a text under text and a class under label")
            found.append(Labelled(text, str(label)))
    else:
        for number, line in lines(path):
            label, tab, text = line.partition("\t")
            if line.strip() and not (tab and label and text.strip()):
                raise FileError(f"{path}:{number}: expected a class, a tab and a text, got {line!r:.60}")
            if line.strip():
                found.append(Labelled(text, label))
        if len(found) > 1 and all(row.label != found[0].label for row in found[1:]):
            del found[0]
    if len(classes := {row.label for row in found}) < 2:
        raise FileError(f"{path}: expected texts of at least two classes, got {len(classes)} in {len(found)} texts")
    return found


def balanced(labelled: Sequence[Labelled], count: int, *, seed: int) -> tuple[list[Labelled], list[Labelled]]:
    """`count` texts, equally many of each class, by chance, and all the others."""
    classes = Counter(row.label for row in labelled)
    each = count // len(classes)
    label, fewest = min(classes.items(), key=lambda item: item[1])
    if each < 1 or each > fewest:
        raise UsageError(
            f"{count} texts would be {each} of each of {len(classes)} classes, and there are {fewest} of {label!r}; "
            f"take at least `count={len(classes)}` and at most {fewest * len(classes)}"
        )
    chosen: list[Labelled] = []
    others: list[Labelled] = []
    taken: Counter[str] = Counter()
    for row in random.Random(seed).sample(labelled, len(labelled)):
        (chosen if taken[row.label] < each else others).append(row)
        taken[row.label] += 1
    # Of the rare classes the last ones are left over: whoever tests on the first of the others is to meet all classes.
    return chosen, random.Random(f"{seed} others").sample(others, len(others))
