"""Batches of conversations: tokens packed into rows, of which the answers are targets."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from llama3_scratch.data.batches import IGNORE, Batch
from llama3_scratch.data.conversations import SIDES, Dialog
from llama3_scratch.data.documents import placed
from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.text.dialog import encode_conversation
from llama3_scratch.text.tokenizer import Tokenizer

log = logging.getLogger("llama3_scratch")


@dataclass(frozen=True)
class Encoded:
    """A conversation's ids, and of each whether it is a target of the loss."""

    ids: list[int]
    is_target: list[bool]


def encode(messages: Dialog, tokenizer: Tokenizer, *, mask_prompt: bool = True, date: str | None = None) -> Encoded:
    """The conversation as the model will meet it on that date; with `mask_prompt` only answers are targets, up to
    the token that ends each."""
    ids, written = encode_conversation(messages, tokenizer, date=date)
    return Encoded(ids, written if mask_prompt else [True] * len(ids))


class Conversations:
    """Batches of conversations, several in a row where they fit; a `Batches` (data.batches)."""

    def __init__(
        self,
        conversations: Sequence[Dialog],
        tokenizer: Tokenizer,
        *,
        size: int,
        length: int,
        seed: int,
        mask_prompt: bool = True,
        truncate: str = "right",
        date: str | None = None,
        what: str = "conversations",
    ) -> None:
        """`size` rows of up to `length` tokens. Conversations that are longer are cut at the side `truncate`; what then
        has nothing to learn is left out. Both are counted and said of `what` they are. Raises FileError where none is
        left."""
        if truncate not in SIDES:
            raise UsageError(f"`truncate`: expected {' or '.join(SIDES)}, got {truncate!r}")
        self._size, self._length, self._seed = size, length, seed
        cut = empty = 0
        self._encoded: list[Encoded] = []
        for messages in conversations:
            with placed(f"the conversation that begins {messages[0]['content'][:60]!r}"):
                encoded = encode(messages, tokenizer, mask_prompt=mask_prompt, date=date)
            if len(encoded.ids) > length + 1:
                cut += 1
                kept = slice(0, length + 1) if truncate == "right" else slice(-length - 1, None)
                encoded = Encoded(encoded.ids[kept], encoded.is_target[kept])
            if any(encoded.is_target[1:]):
                self._encoded.append(encoded)
            else:
                empty += 1
        if cut:
            log.warning("%d of %d %s are longer than %d tokens and were cut", cut, len(conversations), what, length)
        if empty:
            log.warning("%d %s have no answer left and are left out", empty, what)
        if not self._encoded:
            raise FileError(
                f"none of {len(conversations)} {what} has an answer within {length} tokens; take a larger `length`"
            )
        digest = hashlib.sha256(json.dumps([encoded.ids for encoded in self._encoded]).encode()).hexdigest()
        self.fingerprint = f"{digest[:16]} {size}×{length} seed {seed} {'answers' if mask_prompt else 'all'}"
        self._rows = functools.lru_cache(maxsize=2)(self._packed)

    @property
    def answer_tokens(self) -> int:
        """Targets of an epoch."""
        return sum(sum(encoded.is_target[1:]) for encoded in self._encoded)

    def __len__(self) -> int:
        return -(-len(self._rows(0)) // self._size)

    def batch(self, index: int) -> Batch:
        epoch, within = 0, index
        while within >= (batches := -(-len(self._rows(epoch)) // self._size)):
            epoch, within = epoch + 1, within - batches
        rows = self._rows(epoch)[within * self._size : (within + 1) * self._size]
        longest = max(sum(len(self._encoded[i].ids) - 1 for i in row) for row in rows)
        tokens_BT = torch.zeros(len(rows), longest, dtype=torch.long)
        targets_BT = torch.full_like(tokens_BT, IGNORE)
        documents_BT = torch.full_like(tokens_BT, -1)
        for b, row in enumerate(rows):
            t = 0
            for number, i in enumerate(row):
                ids, is_target = torch.tensor(self._encoded[i].ids), torch.tensor(self._encoded[i].is_target)
                end = t + len(ids) - 1
                tokens_BT[b, t:end] = ids[:-1]
                targets_BT[b, t:end] = torch.where(is_target[1:], ids[1:], IGNORE)
                documents_BT[b, t:end] = number
                t = end
        return Batch(tokens_BT, targets_BT, documents_BT)

    def _packed(self, epoch: int) -> list[list[int]]:
        """An epoch's rows: which conversations are in each, in an order that seed and epoch decide."""
        order = random.Random(f"{self._seed} {epoch}").sample(range(len(self._encoded)), len(self._encoded))
        packed: list[list[int]] = []
        room = 0
        for i in order:
            tokens = len(self._encoded[i].ids) - 1
            if tokens > room:
                packed.append([])
                room = self._length
            packed[-1].append(i)
            room -= tokens
        return packed
