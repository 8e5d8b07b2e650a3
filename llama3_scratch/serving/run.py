"""A server from start to end: the port, the model, what it says of itself, and how it stops."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from llama3_scratch.checkpoint.names import BLOCKS, DEFAULT
from llama3_scratch.errors import UsageError
from llama3_scratch.inference.choices import CacheChoice, ModelChoice
from llama3_scratch.inference.loading import open_model
from llama3_scratch.serving.app import make_app
from llama3_scratch.serving.choices import ServeChoice
from llama3_scratch.serving.engine import make_engine, make_models
from llama3_scratch.serving.limits import MAX_HEADER_BYTES, Protocol
from llama3_scratch.serving.service import Service
from llama3_scratch.system.memory import format_bytes

log = logging.getLogger("llama3_scratch")

KEEP_ALIVE_SECONDS = 65  # that a connection may rest: longer than clients keep one, so that it's they who close it


def serve(
    choice: ServeChoice, *, model: ModelChoice | None = None, cache: CacheChoice | None = None, date: str | None = None
) -> int:
    """Answer until SIGTERM or Ctrl-C, then let the answers under way end; a second one ends them too. The exit code."""
    listener = listen(choice)  # before the model is read: a port that is taken is told at once
    with contextlib.closing(listener):
        service = open_service(choice, model=model, cache=cache, date=date)
        server = Server(service, listener)
        with server.signals():
            asyncio.run(server.serve())
        summary(service)
        return server.exit_code


@contextlib.contextmanager
def serving(
    choice: ServeChoice, *, model: ModelChoice | None = None, cache: CacheChoice | None = None, date: str | None = None
) -> Iterator[Server]:
    """A server on a thread of its own, for a notebook or a test, as long as the block lasts; its `address` is where."""
    with contextlib.closing(listen(choice)) as listener:
        server = Server(open_service(choice, model=model, cache=cache, date=date), listener)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve()), name="server", daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.stop()
            thread.join()


def open_service(
    choice: ServeChoice, *, model: ModelChoice | None = None, cache: CacheChoice | None = None, date: str | None = None
) -> Service:
    """The model, read and ready, under a name."""
    model, cache = model or ModelChoice(), cache or CacheChoice()
    if cache.sliding:
        raise UsageError("`sliding`: an engine's pages hold whole contexts; leave it out")
    if model.adapters:
        raise UsageError("`adapters`: a server's have names; give them to the ServeChoice")
    started = time.perf_counter()
    checkpoint, dtype = open_model(model)
    name = choice.model_name or _name(checkpoint.path)
    if name in choice.adapters:
        raise UsageError(f"`adapters`: {name!r} is what the model itself is called; choose another name")
    models = make_models(checkpoint, choice, dtype)
    engine = make_engine(models, cache, choice)
    log.info("%s loaded in %.1f s", name, time.perf_counter() - started)
    return Service(checkpoint, engine, models, choice, name=name, date=date)


def _name(path: Path) -> str:
    """What clients call a model that lies there, unless told otherwise."""
    path = path.resolve()
    name = path.parent.name if path.name == "original" else path.stem if path.is_file() else path.name
    return DEFAULT if name == BLOCKS else name


def listen(choice: ServeChoice) -> socket.socket:
    """The socket, bound. Raises UsageError for a host that isn't this machine's and a port that is taken."""
    try:
        found = socket.getaddrinfo(choice.host, choice.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        # A name may be both, as localhost is; clients try either.
        family, kind, protocol, _, place = min(found, key=lambda one: one[0] != socket.AF_INET)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"`host` {choice.host}: isn't an address or a name of this machine") from error
    listener = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # or a port rests for a minute after a server that ended
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
        listener.listen(1024)
    except OSError as error:
        listener.close()
        taken = "is in use" if "in use" in (error.strerror or "").lower() else f"can't be had: {error.strerror}"
        raise UsageError(f"`port` {choice.port} of {choice.host} {taken}; take another, or 0 for a free one") from error
    return listener


class Server:
    """uvicorn around the service, on a socket that is bound."""

    def __init__(self, service: Service, listener: socket.socket) -> None:
        self.service, self._listener = service, listener
        self.exit_code = 0
        config = uvicorn.Config(
            make_app(service),
            http=Protocol,
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            log_level=logging.CRITICAL,  # its own lines say what ours do
            access_log=False,
            proxy_headers=False,
            server_header=False,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=max(1, round(service.choice.drain_seconds)),
        )
        self._uvicorn = _Uvicorn(config)

    @property
    def address(self) -> str:
        host, port = self._listener.getsockname()[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def serve(self) -> None:
        """Answer until `stop`."""
        ended = asyncio.Event()
        looking_after = asyncio.create_task(self.service.run(ended))
        _announce(self.service, self.address)
        try:
            await self._uvicorn.serve(sockets=[self._listener])
        finally:
            ended.set()
            await looking_after
            self.service.close()

    def stop(self, *, now: bool = False) -> None:
        """Take no more requests, and end when those under way have ended, or now."""
        self.service.stopping = True
        self._uvicorn.should_exit = True
        self._uvicorn.force_exit = self._uvicorn.force_exit or now

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C stop the server; a second one stops it now."""

        def hear(number: int, frame: FrameType | None) -> None:
            again = self.service.stopping
            log.info("ending now" if again else "ending: answers under way are finished first; once more ends them too")
            self.exit_code = 128 + number if again else 0
            self.stop(now=again)

        before = {number: signal.signal(number, hear) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Uvicorn(uvicorn.Server):
    """uvicorn's server, which leaves signals to ours."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


def _announce(service: Service, at: str) -> None:
    choice = service.choice
    log.info("%s at %s, for OpenAI's clients %s/v1", ", ".join(service.names), at, at)
    log.info(
        "the pool holds %s tokens (%s), a prompt and its answer %s; %d answers at once, %d may wait",
        f"{service.pool_tokens:,}",
        format_bytes(service.pool_bytes),
        f"{service.context:,}",
        choice.max_concurrent,
        choice.queue,
    )
    if not choice.local and not choice.api_keys:
        log.warning("whoever reaches this machine's port can use the model: there is no `api_keys`")


def summary(service: Service) -> None:
    """What was done, as the last line of the log."""
    metrics, stats = service.metrics, service.thread.stats
    answers = ", ".join(f"{number} {reason}" for reason, number in sorted(metrics.finished.items())) or "no answers"
    log.info(
        "%d requests (%s, %d refused) in %.0f s: %s tokens of prompts, %s of them cached, %s generated",
        metrics.requests,
        answers,
        sum(metrics.refused.values()),
        time.time() - metrics.started,
        f"{stats.prompt_tokens:,}",
        f"{stats.cached_tokens:,}",
        f"{stats.generated_tokens:,}",
    )
