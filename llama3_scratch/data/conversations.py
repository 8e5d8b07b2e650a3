"""Conversations to learn from: rows of messages or of instructions, read and split."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama3_scratch.data.documents import objects
from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.text.dialog import Message, check_messages

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
