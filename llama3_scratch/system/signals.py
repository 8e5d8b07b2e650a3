"""Ending in good order: what runs for long hears SIGTERM and Ctrl-C, and ends where nothing is lost."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from typing import Any

log = logging.getLogger("llama3_scratch")


@contextlib.contextmanager
def heard_signals(message: str) -> Iterator[list[int]]:
    """The numbers of SIGTERM and of the first Ctrl-C, at which `message` is logged; a second Ctrl-C interrupts."""
    heard: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only the main thread hears signals
        yield heard
        return

    def hear(number: int, frame: Any) -> None:
        if number == signal.SIGINT and heard:
            raise KeyboardInterrupt
        log.info(message)
        heard.append(number)

    before = {number: signal.signal(number, hear) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
