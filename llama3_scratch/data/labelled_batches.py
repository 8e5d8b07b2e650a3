"""Batches of labelled texts, a row each, whose only target is the class."""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections.abc import Sequence

import torch

from llama3_scratch.data.batches import IGNORE, Batch
from llama3_scratch.data.documents import placed
from llama3_scratch.data.labelled import READ, Labelled
from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.text.tokenizer import Tokenizer

log = logging.getLogger("llama3_scratch")


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
