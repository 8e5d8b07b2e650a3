"""What all requests share: the model and its names, the engine's thread, who is let in, and the figures."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from llama3_scratch.caches.paged import PAGE_SLOTS
from llama3_scratch.checkpoint.load import Checkpoint
from llama3_scratch.errors import ResourceError
from llama3_scratch.inference.engine.engine import Engine
from llama3_scratch.inference.engine.thread import EngineThread
from llama3_scratch.inference.fast_forward import FastForward
from llama3_scratch.inference.grammar import Grammars
from llama3_scratch.inference.requests import Failure, GeneratedToken
from llama3_scratch.serving.answer import Answer, Part
from llama3_scratch.serving.choices import ServeChoice
from llama3_scratch.serving.errors import RETRY, ApiError, model_not_found, too_long
from llama3_scratch.serving.generation import Generation
from llama3_scratch.serving.metrics import Metrics
from llama3_scratch.serving.said_before import SaidBefore

log = logging.getLogger("llama3_scratch")

TICK = 0.1  # seconds between two looks at who waits for what
T = TypeVar("T")


class Service:
    """A served model. Made before the event loop runs; `run` belongs to the loop."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        engine: Engine,
        models: dict[str | None, FastForward],
        choice: ServeChoice,
        *,
        name: str,
        date: str | None = None,
    ) -> None:
        """`models`: the one without an adapter under None, the others by name. `date`: today, as of PromptChoice."""
        self.checkpoint, self.choice, self.models, self.name, self.date = checkpoint, choice, models, name, date
        self.tokenizer = checkpoint.require_tokenizer()
        self.created = int(time.time())
        self.metrics = Metrics()
        self.said_before = SaidBefore(self.tokenizer)
        self.thread = EngineThread(engine, self._deliver)
        self.pool_tokens, self.pool_bytes = engine.pool.pages * PAGE_SLOTS, engine.cache.n_bytes
        self.stopping = False
        self._in_flight = 0
        self._live: set[Generation] = set()
        self._outbox: deque[tuple[Generation, Part]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        # Text becomes tokens there, and schemas grammars: a long one doesn't keep the event loop from answering.
        self._workers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="encode")

    # Names

    @property
    def names(self) -> list[str]:
        """What clients may call the model: itself, and each adapter."""
        return [self.name, *self.choice.adapters]

    def adapter(self, model: str | None) -> str | None:
        """Which adapter a request's `model` means; None: none. Raises ApiError 404 for a name that isn't served."""
        if model is None or model == self.name:
            return None
        if model not in self.choice.adapters:
            raise model_not_found(model, self.names)
        return model

    @property
    def context(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return self.thread.limit

    @functools.cached_property
    def grammars(self) -> Grammars:
        """Made by whoever asks first, beside the event loop: it takes a moment."""
        return Grammars(self.tokenizer, self.checkpoint.config.vocab_size)

    # On the event loop

    async def run(self, ended: asyncio.Event) -> None:
        """Look after the requests until `ended`."""
        self._loop = asyncio.get_running_loop()
        while not ended.is_set():
            now = time.perf_counter()
            for generation in list(self._live):
                generation.tick(now)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(ended.wait(), TICK)

    def close(self) -> None:
        self.thread.close()
        self._workers.shutdown(wait=False, cancel_futures=True)

    @contextlib.contextmanager
    def place(self, answers: int) -> Iterator[None]:
        """Room for so many answers. Raises ApiError 503 where the queue is full."""
        if self.stopping:
            raise ApiError(503, "the server is shutting down", headers=RETRY)
        most = self.choice.max_concurrent + self.choice.queue
        if self._in_flight + answers > most and self._in_flight:
            busy = f"{self._in_flight} answers are under way or wait, at most {most} may; try again later"
            raise ApiError(503, busy, headers=RETRY)
        self._in_flight += answers
        try:
            yield
        finally:
            self._in_flight -= answers

    async def apart(self, function: Callable[..., T], *args: object) -> T:
        """Run what takes a while, beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._workers, functools.partial(function, *args))

    async def between_steps(self, function: Callable[[], T]) -> T:
        """Run a function on the engine's thread, to which the model belongs."""
        return await asyncio.wrap_future(self.thread.between_steps(function))

    def max_tokens(self, prompt: Sequence[int], wanted: int | None) -> int:
        """How many an answer may have. Raises ApiError where the context has no room for one."""
        room = self.context - len(prompt)
        if room < 1:
            raise too_long(len(prompt), self.context)
        return room if wanted is None else min(wanted, room)

    def start(self, generation: Generation) -> None:
        """Have its answers generated. Raises UsageError for one that can't be, and begins none then."""
        self._live.add(generation)
        try:
            for answer in generation.answers:
                self.thread.submit(answer.request, functools.partial(self._hear, generation, answer))
        except BaseException:
            self.finish(generation)
            raise

    def finish(self, generation: Generation) -> None:
        """It's over, however: what is unfinished is cancelled."""
        self._live.discard(generation)
        for answer in generation.answers:
            if not answer.ended:
                self.thread.cancel(answer.request)

    def end(self, generation: Generation, answers: Sequence[Answer]) -> None:
        """End answers with what there is of them: their time is up."""
        for answer in answers:
            self.thread.cancel(answer.request)

        def end() -> None:
            late = [answer for answer in answers if not answer.ended]
            self._outbox.extend((generation, answer.end("length", generated=0)) for answer in late)
            self._deliver()

        self.thread.between_steps(end)

    def _flush(self) -> None:
        while self._outbox:
            generation, part = self._outbox.popleft()
            if generation in self._live:
                generation.take(part)

    # On the engine's thread

    def _hear(self, generation: Generation, answer: Answer, event: GeneratedToken | Failure) -> None:
        try:
            part = answer.hear(event)
        except Exception as error:
            part = Part(answer.index, error=error, generated=0)
            self._outbox.append((generation, part))
            raise  # the engine's thread forgets the request
        if part.error is not None and not isinstance(part.error, ResourceError):
            log.error("an answer failed: %s: %s", type(part.error).__name__, part.error)
        self._outbox.append((generation, part))

    def _deliver(self) -> None:
        if self._loop is not None and self._outbox:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                self._loop.call_soon_threadsafe(self._flush)
