"""The answers to one request, on the event loop: their parts as they come, their deadline, a client that may leave."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Protocol

from llama3_scratch.serving.answer import Answer, Part
from llama3_scratch.serving.metrics import Metrics

STILL_HERE = b": still here\n\n"  # a comment, which clients pass over
SILENCE = 1.0  # seconds after which a stream says that it's still there


class ClientLeftError(Exception):
    """The client is gone: there is nobody to answer."""


class Generates(Protocol):
    """Who has answers generated: the service."""

    metrics: Metrics

    def start(self, generation: Generation) -> None:
        """Begin all of them, or raise."""

    def end(self, generation: Generation, answers: Sequence[Answer]) -> None:
        """End these with what there is of them."""

    def finish(self, generation: Generation) -> None:
        """Cancel what is unfinished."""


class Generation:
    """Answers under way. Used as `async with`: whatever ends the block, what is unfinished is cancelled."""

    def __init__(self, service: Generates, answers: Sequence[Answer], began: float, max_seconds: float) -> None:
        """`began`: when the request came, as of time.perf_counter()."""
        self.answers = answers
        self.began = began
        self.deadline = began + max_seconds
        self._said_at = time.perf_counter()  # when something was last said to the client
        self._service = service
        self._ready: list[Part] = []
        self._event = asyncio.Event()
        self._left = False
        self._watch: asyncio.Task[None] | None = None
        self._first_token: dict[int, float] = {}
        self._last_token: dict[int, float] = {}

    async def parts(self, receive: Callable[[], Awaitable[Any]]) -> AsyncIterator[list[Part]]:
        """What has come since the last time, until all answers have ended; maybe nothing, after a second of silence.

        Raises ClientLeftError when the client is gone, and what an answer failed with.
        """
        self._watch = asyncio.ensure_future(self._leaving(receive))
        open_answers = {answer.index for answer in self.answers}
        while open_answers:
            await self._event.wait()
            self._event.clear()
            if self._left:
                raise ClientLeftError
            parts, self._ready = self._ready, []
            for part in parts:
                if part.error is not None:
                    raise part.error
                if part.finish_reason:
                    open_answers.discard(part.index)
            yield parts

    def spoken(self, frames: bytes) -> bytes:
        """What a stream says now: the frames, or where there are none and it has been silent, that it's still there."""
        if not frames and time.perf_counter() - self._said_at < SILENCE:
            return b""
        self._said_at = time.perf_counter()
        return frames or STILL_HERE

    def take(self, part: Part) -> None:
        """A part has come."""
        metrics, answer = self._service.metrics, part.index
        if part.error is None and part.generated:
            if answer not in self._last_token:
                self._first_token[answer] = part.at
                metrics.first_token.observe(part.at - self.began)
                metrics.queued.observe(max(0.0, self.answers[answer].request.let_in_at - self.began))
            else:
                metrics.between_tokens.observe(part.at - self._last_token[answer])
            self._last_token[answer] = part.at
        if part.finish_reason:
            metrics.finished[part.finish_reason] += 1
        self._ready.append(part)
        self._event.set()

    @property
    def timings(self) -> dict[str, float]:
        """How long the prompts took, the queue included, and the answers, and how fast both were: llama.cpp's names."""
        read = {id(answer.request.prompt): answer.request for answer in reversed(self.answers)}
        prompt_n = sum(len(request.prompt) - request.cached_tokens for request in read.values())
        predicted_n = sum(len(answer.tokens) for answer in self.answers)
        first = min(self._first_token.values(), default=self.began)
        prompt_ms = 1000 * (first - self.began)
        predicted_ms = 1000 * (max(self._last_token.values(), default=first) - first)
        after_first = predicted_n - len(self._first_token)
        return {
            "cache_n": sum(request.cached_tokens for request in read.values()),
            "prompt_n": prompt_n,
            "prompt_ms": round(prompt_ms, 3),
            "prompt_per_second": round(1000 * prompt_n / prompt_ms, 3) if prompt_ms else 0.0,
            "predicted_n": predicted_n,
            "predicted_ms": round(predicted_ms, 3),
            "predicted_per_second": round(1000 * after_first / predicted_ms, 3) if predicted_ms else 0.0,
        }

    def tick(self, now: float) -> None:
        """Time goes by: wake a stream that has been silent, end answers that took too long."""
        if now > self.deadline:
            self.deadline = float("inf")
            self._service.end(self, [answer for answer in self.answers if not answer.ended])
        if now - self._said_at >= SILENCE:
            self._event.set()

    async def _leaving(self, receive: Callable[[], Awaitable[Any]]) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._left = True
        self._event.set()

    async def __aenter__(self) -> Generation:
        self._service.start(self)
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._watch is not None:
            self._watch.cancel()
        if all(answer.ended for answer in self.answers):
            self._service.metrics.whole_request.observe(time.perf_counter() - self.began)
        self._service.finish(self)
