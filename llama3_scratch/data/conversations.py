"""Conversations to learn from: rows of messages or of instructions → tokens, of which the answers are targets."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llama3_scratch.data.batches import IGNORE, Batch
from llama3_scratch.data.documents import objects, placed
from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.text.dialog import Message, check_messages, encode_conversation
from llama3_scratch.text.tokenizer import Tokenizer

log = logging.getLogger("llama3_scratch")

SIDES = ("right", "left")  # from which a conversation that is too long is cut

Dialog = list[Message]


def read_conversations(path: Path) -> list[Dialog]:
    """The conversations of a JSONL file or a JSON list: `{"messages": [{"role", "content"}, …]}`, or rows of
    `{"instruction", "input", "output"}`, of which the first two are the user's message and the last is the answer.

    Raises FileError with the row's place for one that is neither, has no answer, or an empty one.
    """
    found = []
    for place, row in objects(path):
        messages = _messages(row, place)
        answers = [message["content"] for message in messages if message["role"] == "assistant"]
        if not answers:
            raise FileError(f"{place}: no message is the assistant's, so there is nothing to learn")
        if not all(answer.strip() for answer in answers):
            raise FileError(f"{place}: an answer of the assistant is empty")
        try:
            check_messages(messages)
        except UsageError as error:
            raise FileError(f"{place}: {error}") from error
        found.append(messages)
    distinct = {json.dumps(messages, sort_keys=True) for messages in found}
    if len(distinct) < len(found):
        log.warning(
            "%s: %d of %d conversations stand there before already", path, len(found) - len(distinct), len(found)
        )
    return found


def _messages(row: dict[str, Any], place: str) -> Dialog:
    if "messages" in row:
        messages = row["messages"]
        if not isinstance(messages, list) or not all(
            isinstance(message, dict)
            and isinstance(message.get("role"), str)
            and isinstance(message.get("content"), str)
            for message in messages
        ):
            raise FileError(f"{place}: messages must be a list of objects with a role and a content, both texts")
        return messages
    if missing := [field for field in ("instruction", "output") if not isinstance(row.get(field), str)]:
        raise FileError(f"{place}: {missing[0]} is missing or no text; expected messages, or instruction and output")
    asked = row["instruction"] + (f"\n\n{row['input']}" if row.get("input") else "")
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": row["output"]}]


def split(
    conversations: Sequence[Dialog], shares: Sequence[float] = (0.85, 0.05, 0.10), *, seed: int
) -> list[list[Dialog]]:
    """The conversations in shuffled parts of these shares; the last one takes what rounding leaves."""
    mixed = random.Random(seed).sample(list(conversations), len(conversations))
    parts, begin = [], 0
    for index, share in enumerate(shares):
        end = len(mixed) if index == len(shares) - 1 else begin + round(share * len(mixed))
        parts.append(mixed[begin:end])
        begin = end
    return parts


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
