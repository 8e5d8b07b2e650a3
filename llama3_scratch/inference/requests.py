"""What an engine is asked, and what it says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from llama3_scratch.errors import UsageError
from llama3_scratch.inference.sample import Sampler


def never(token: int) -> bool:
    return False


@dataclass(eq=False)
class Request:
    """One answer that is wanted. n answers to a prompt are n requests: the prompt is computed once all the same."""

    prompt: Sequence[int]
    sampler: Sampler
    max_tokens: int
    stop: Callable[[int], bool] = never  # hears of every token once it's drawn: whether it ends the answer
    salt: str = ""  # beginnings are shared only with requests of the same salt
    adapter: str | None = None  # which of the engine's adapters answers
    row: int = 0  # its place among the requests of whoever asks
    cached_tokens: int = 0  # of the prompt: they came from shared pages
    let_in_at: float = 0.0  # when the first step began to work on it, in seconds of time.perf_counter()


def check_prompt(prompt: Sequence[int], limit: int, vocab_size: int) -> None:
    """Raise UsageError for a prompt that is empty, leaves no room in `limit` tokens or has ids that don't exist."""
    if not prompt:
        raise UsageError("the prompt has no tokens; a base model wants at least its begin-of-text token")
    if len(prompt) >= limit:
        raise UsageError(f"prompt {len(prompt)} tokens, limit {limit - 1}, so that one more fits the context")
    if bad := [token for token in prompt if not 0 <= token < vocab_size]:
        raise UsageError(f"token {bad[0]} in the prompt, the model's vocabulary has {vocab_size}")


@dataclass(frozen=True)
class GeneratedToken:
    """One token of one answer. `finish_reason` is "stop" or "length" on the last one, else None.

    `logits_V` are the model's own, before any filter.
    """

    request: Request
    token: int
    logits_V: Tensor
    finish_reason: str | None

    @property
    def row(self) -> int:
        """The place of its request."""
        return self.request.row


@dataclass(frozen=True)
class Failure:
    """A request that ended without an answer: its logits weren't finite, or its sampler or its `stop` raised."""

    request: Request
    error: Exception


@dataclass(frozen=True)
class Stats:
    """What an engine is doing, and all that it has done since it was made."""

    running: int
    waiting: int
    pages: int
    pages_free: int
    pages_cached: int  # full of a beginning that nobody uses now
    prompt_tokens: int  # of all requests that were let in
    cached_tokens: int  # of these: they came from shared pages
    generated_tokens: int
    preemptions: int

    @property
    def pages_held(self) -> int:
        return self.pages - self.pages_free - self.pages_cached
