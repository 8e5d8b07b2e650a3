"""An engine on a thread of its own: whoever serves many people asks it from theirs.

Commands go to it by a queue and are obeyed between two steps; what has come of a step is told on the engine's thread.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from llama3_scratch.inference.engine.engine import Engine
from llama3_scratch.inference.requests import Failure, GeneratedToken, Request, Stats

log = logging.getLogger("llama3_scratch")

Event = GeneratedToken | Failure
Listener = Callable[[Event], None]
T = TypeVar("T")


class EngineThread:
    """Runs the engine for as long as there is work, and sleeps otherwise.

    `deliver` is called after every step of which something has come, once the listeners have heard it: a server tells
    its event loop then, once a step.
    """

    def __init__(self, engine: Engine, deliver: Callable[[], None] = lambda: None) -> None:
        self._engine, self._deliver = engine, deliver
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._listeners: dict[Request, Listener] = {}
        self._closing = self._draining = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def stats(self) -> Stats:
        return self._engine.stats

    @property
    def limit(self) -> int:
        """Tokens that a sequence may have."""
        return self._engine.limit

    def holders(self) -> list[list[Request] | None]:
        """Of every page who holds it, as of `Engine.holders`; to be called `between_steps`."""
        return self._engine.holders()

    def submit(self, request: Request, listener: Listener) -> None:
        """Have a request answered; `listener` hears of its tokens, and of a Failure. Raises UsageError, here and now,
        for a request that could never be answered."""
        self._engine.check(request)

        def add() -> None:
            self._listeners[request] = listener
            self._engine.add(request)

        self._commands.put(add)

    def cancel(self, request: Request) -> None:
        """Forget a request, before the next step; its listener hears nothing more. One that has ended is no error."""

        def forget() -> None:
            self._listeners.pop(request, None)
            self._engine.cancel(request)

        self._commands.put(forget)

    def between_steps(self, function: Callable[[], T]) -> Future[T]:
        """Run a function on the engine's thread, where it has the model and the processor for itself."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        self._commands.put(run)
        return future

    def close(self, *, drain: bool = False) -> None:
        """End the thread: at once, or with `drain` when all that was asked before is answered."""

        def close() -> None:
            self._closing, self._draining = True, drain

        self._commands.put(close)
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._obey()
            if self._closing and not (self._draining and self._engine.unfinished):
                return
            if self._engine.unfinished:
                self._step()

    def _obey(self) -> None:
        """Obey the commands that are there; without other work, wait for one."""
        wait = not self._engine.unfinished and not self._closing
        while True:
            try:
                command = self._commands.get(block=wait)
            except queue.Empty:
                return
            command()
            wait = False

    def _step(self) -> None:
        events: list[Event]
        try:
            events = list(self._engine.step())
        except Exception as error:  # of no request's own: none of them can go on
            log.exception("the engine's step failed")
            events = [Failure(request, error) for request in self._listeners]
        for event in events:
            listener = self._listeners.get(event.request)
            if isinstance(event, Failure) or event.finish_reason:
                self._listeners.pop(event.request, None)
                self._engine.cancel(event.request)
            if listener is None:
                continue
            try:
                listener(event)
            except Exception:  # whoever can't listen gets no answer; the others do
                log.exception("a listener failed")
                self._listeners.pop(event.request, None)
                self._engine.cancel(event.request)
        if events:
            self._deliver()
