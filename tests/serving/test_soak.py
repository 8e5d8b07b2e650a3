"""Many requests, a fifth of them cut off: every page comes back, memory stays flat, and each answer is its own."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llama3_scratch.inference.choices import ModelChoice
from llama3_scratch.serving.choices import ServeChoice
from llama3_scratch.serving.run import serving
from tests.serving.http_client import Client, read_all, until


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def soak(client: Client, requests: int, seed: int) -> int:
    """How many were answered; all in company, some streamed, a fifth left at a moment of its own."""
    dice = random.Random(seed)
    plans = [(number, dice.random() < 0.2, dice.random() < 0.5, dice.random() * 0.05) for number in range(requests)]
    shared = "You are one of many. " * 12

    def body(number: int, stream: bool) -> dict:
        messages = [{"role": "system", "content": shared}, {"role": "user", "content": f"number {number % 50}"}]
        return {
            "messages": messages,
            "temperature": 0,
            "max_tokens": 8 + number % 24,
            "stream": stream,
            "ignore_eos": True,
        }

    lock, wrong, answered = threading.Lock(), list[str](), 0
    wanted: dict[int, str] = {}

    def run(plan) -> None:
        nonlocal answered
        number, leaves, stream, seconds = plan
        if leaves:
            with client.opened(client.request("/v1/chat/completions", body(number, stream))) as connection:
                connection.settimeout(seconds + 0.001)
                with contextlib.suppress(socket.timeout):
                    connection.recv(1 + number % 400)
            return
        if stream:
            frames = client.frames("/v1/chat/completions", body(number, True))
            text = "".join(frame["choices"][0]["delta"].get("content") or "" for frame in frames[:-1])
        else:
            text = client.post("/v1/chat/completions", body(number, False)).json["choices"][0]["message"]["content"]
        length = 8 + number % 24
        with lock:
            answered += 1
            before = wanted.setdefault(number % 50, text)
            if not (text.startswith(before[: length // 2]) or before.startswith(text[: length // 2])):
                wrong.append(json.dumps([number, text, before]))

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(run, plans))
    assert not wrong
    return answered


@pytest.fixture(scope="module")
def many(folder):
    with serving(ServeChoice(port=0, pool_gb=0.02, queue=100), model=ModelChoice(model=folder)) as server:
        yield Client(server)


def settle(client: Client) -> None:
    thread = client.server.service.thread
    until(lambda: not thread.stats.running and not thread.stats.waiting)
    assert thread.stats.pages_held == 0
    assert thread.stats.pages_free + thread.stats.pages_cached == thread.stats.pages
    gc.collect()


def test_a_hundred_requests_leave_nothing_behind(many):
    assert soak(many, 100, seed=1) > 60
    settle(many)
    assert many.server.service.thread.stats.cached_tokens > 1000, "the shared beginning is computed once"


@pytest.fixture(scope="module")
def smollm2_in_int8(smollm2):
    with serving(
        ServeChoice(port=0, pool_gb=0.2, queue=100), model=ModelChoice(model=smollm2, quantize="int8")
    ) as server:
        yield Client(server)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
@pytest.mark.parametrize(
    "served",
    [pytest.param("many", marks=pytest.mark.slow), pytest.param("smollm2_in_int8", marks=pytest.mark.long)],
    ids=["tiny", "SmolLM2"],
)
def test_two_thousand_requests_leave_nothing_behind(served, request, capsys):
    client = request.getfixturevalue(served)
    soak(client, 200, seed=2)  # what is made once is made
    settle(client)
    before, begun = resident(), time.perf_counter()
    answered = soak(client, 2000, seed=3)
    seconds = time.perf_counter() - begun
    settle(client)
    grown = resident() - before
    with capsys.disabled():
        print(f"\n2,000 requests, {answered} answered, in {seconds:.0f} s; memory grew by {grown / 1e6:.1f} MB")
    assert answered > 1400 and grown < (20e6 if served == "many" else 40e6)


def test_a_socket_that_is_closed_at_once_is_no_fault(many):
    for _ in range(20):
        with many.opened(b"POST /v1/chat"):
            pass
        with many.opened():
            pass
    with many.opened(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3 + b"GET / HTTP/1.0\r\n\r\n") as connection:
        assert read_all(connection).count(b'{"status":"ok"}') == 3
    assert many.get("/health").status == 200
