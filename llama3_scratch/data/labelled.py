"""Texts with a class each, to train a classifier on."""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from llama3_scratch.data.batches import IGNORE, Batch
from llama3_scratch.data.documents import lines, placed, rows
from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.text.tokenizer import Tokenizer

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


class LabelledTexts:
    """Batches of texts, a row each, whose only target is the class, at the token where it is read; a `Batches`."""

    def __init__(
        self,
        labelled: Sequence[Labelled],
        classes: Sequence[str],
        tokenizer: Tokenizer,
        *,
        size: int,
        length: int,
        seed: int | None,
        read: str = "last",
    ) -> None:
        """`size` rows of up to `length` tokens, the ends of longer texts cut off, which is counted and said. Without a
        seed texts come by length, so that few rows are filled up, which is for looking only. Raises FileError for a
        class not in `classes`."""
        if read not in READ:
            raise UsageError(f"`read`: expected {' or '.join(READ)}, got {read!r}")
        index = {label: number for number, label in enumerate(classes)}
        if odd := [row for row in labelled if row.label not in index]:
            raise FileError(f"{odd[0].label!r}: a class that isn't among {', '.join(classes)}")
        self._size, self._seed, self._read = size, seed, read
        self._rows = []
        cut = 0
        for row in labelled:
            with placed(f"{row.text!r:.40}"):
                ids = tokenizer.encode(row.text, bos=tokenizer.add_bos, eos=False)
            cut += len(ids) > length
            self._rows.append((ids[:length], index[row.label]))
        if cut:
            log.warning("%d of %d texts are longer than %d tokens, and their ends were cut", cut, len(labelled), length)
        digest = hashlib.sha256(json.dumps(self._rows).encode()).hexdigest()
        self.fingerprint = f"{digest[:16]} {size}×{length} seed {seed} {read}"

    def __len__(self) -> int:
        return -(-len(self._rows) // self._size)

    def batch(self, index: int) -> Batch:
        epoch, within = divmod(index, len(self))
        numbers = range(len(self._rows))
        if self._seed is None:
            order = sorted(numbers, key=lambda number: len(self._rows[number][0]))
        else:
            order = random.Random(f"{self._seed} {epoch}").sample(numbers, len(self._rows))
        rows = [self._rows[number] for number in order[within * self._size : (within + 1) * self._size]]
        longest = max(len(ids) for ids, _ in rows)
        tokens_BT = torch.zeros(len(rows), longest, dtype=torch.long)
        targets_BT = torch.full_like(tokens_BT, IGNORE)
        for b, (ids, label) in enumerate(rows):  # what fills a row up stands behind the text, which can't see it
            tokens_BT[b, : len(ids)] = torch.tensor(ids)
            targets_BT[b, len(ids) - 1 if self._read == "last" else 0] = label
        return Batch(tokens_BT, targets_BT, torch.zeros_like(tokens_BT))
