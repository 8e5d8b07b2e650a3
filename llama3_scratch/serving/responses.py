"""Answers as OpenAI's clients read them: whole bodies, and the chunks of a stream."""

from __future__ import annotations

import itertools
import json
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llama3_scratch.serving.answer import Answer, TokenLogprob

DONE = b"data: [DONE]\n\n"


def new_id(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex}"


def usage(answers: Sequence[Answer]) -> dict[str, Any]:
    """Tokens of a request's answers, whose choices share their prompts."""
    prompts = {id(answer.request.prompt): answer.request for answer in reversed(answers)}
    return usage_of(
        sum(len(request.prompt) for request in prompts.values()),
        sum(len(answer.tokens) for answer in answers),
        sum(request.cached_tokens for request in prompts.values()),
    )


def usage_of(prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }


class Chunks:
    """The frames of one stream, which share an id, a time and a model."""

    def __init__(self, id: str, kind: str, model: str) -> None:
        self._common = {"id": id, "object": kind, "created": int(time.time()), "model": model}
        self._head = b"data: " + json.dumps(self._common, separators=(",", ":"))[:-1].encode() + b',"choices":['

    def choice(self, index: int, said: Mapping[str, Any], logprobs: Any, finish_reason: str | None) -> bytes:
        """One choice's chunk: `said` is {"delta": …} or {"text": …}."""
        choice = {"index": index, **said, "logprobs": logprobs, "finish_reason": finish_reason}
        return b"%b%b]}\n\n" % (self._head, json.dumps(choice, separators=(",", ":")).encode())

    def usage(self, used: Mapping[str, Any], timings: Mapping[str, Any]) -> bytes:
        """The last chunk, without a choice, for those who asked."""
        return frame({**self._common, "choices": [], "usage": used, "timings": timings})


def frame(value: Mapping[str, Any]) -> bytes:
    return b"data: %b\n\n" % json.dumps(value, separators=(",", ":")).encode()


def whole(
    id: str, kind: str, model: str, choices: Sequence[Any], used: Mapping[str, Any], **more: Any
) -> dict[str, Any]:
    """The body of an answer that isn't streamed."""
    made = {"id": id, "object": kind, "created": int(time.time()), "model": model}
    return {**made, "choices": choices, "usage": used, **more}


def chat_logprobs(tokens: Iterable[TokenLogprob]) -> dict[str, Any]:
    """The form of chats: the tokens' texts joined are the content, and so are their bytes."""

    def entry(text: str, data: bytes, logprob: float | None) -> dict[str, Any]:
        return {"token": text, "bytes": list(data), "logprob": finite(logprob)}

    return {
        "content": [
            {
                **entry(token.text, token.data, token.logprob),
                "top_logprobs": [entry(data.decode("utf-8", "replace"), data, value) for data, value in token.top],
            }
            for token in tokens
        ],
        "refusal": None,
    }


def completion_logprobs(tokens: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
    """The older form of completions: lists side by side; `offset` is where in the text the first token begins."""
    offsets = list(itertools.accumulate((len(token.text) for token in tokens[:-1]), initial=offset))
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [finite(token.logprob) for token in tokens],
        "top_logprobs": [None if token.logprob is None else _by_text(token.top) for token in tokens],
        "text_offset": offsets[: len(tokens)],
    }


def _by_text(top: Sequence[tuple[bytes, float]]) -> dict[str, float | None]:
    """The likeliest tokens by their texts; of those that look alike the likelier one."""
    found: dict[str, float | None] = {}
    for data, value in top:
        found.setdefault(data.decode("utf-8", "replace"), finite(value))
    return found


def finite(logprob: float | None) -> float | None:
    """JSON has no infinity; OpenAI writes −9999 for what can't come."""
    return None if logprob is None else max(logprob, -9999.0)
