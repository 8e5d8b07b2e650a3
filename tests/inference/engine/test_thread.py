"""The engine on a thread of its own: asked from any other, obeyed between two steps."""

from __future__ import annotations

import threading
from collections import defaultdict

import pytest

from llama3_scratch.errors import UsageError
from llama3_scratch.inference.engine.thread import EngineThread
from llama3_scratch.inference.requests import Failure, Request
from llama3_scratch.inference.sample import sampler
from tests.inference.engine.engines import PROMPTS, alone, engine


@pytest.fixture
def running():
    delivered = []
    thread = EngineThread(engine(), lambda: delivered.append(threading.current_thread().name))
    thread.delivered = delivered
    yield thread
    thread.close()


def listening():
    """A listener, what it has heard, and when it has heard the end."""
    heard, ended = [], threading.Event()

    def listen(event):
        heard.append(event)
        if isinstance(event, Failure) or event.finish_reason:
            ended.set()

    return listen, heard, ended


def test_many_threads_ask_and_each_hears_its_own(running):
    heard = defaultdict(list)
    done = threading.Barrier(5, timeout=60)

    def ask(place):
        listen, mine, ended = listening()
        running.submit(Request(PROMPTS[place], sampler(), 6), listen)
        assert ended.wait(60)
        heard[place] = [event.token for event in mine]
        done.wait()

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    done.wait()
    for thread in threads:
        thread.join()
    assert heard == {place: [token for token, _ in alone("int8", "floats", place, None, 6)] for place in range(4)}
    assert set(running.delivered) == {"engine"}


def test_a_bad_request_is_refused_where_it_is_made(running):
    with pytest.raises(UsageError, match="no tokens"):
        running.submit(Request([], sampler(), 6), lambda event: None)


def test_a_cancelled_request_says_nothing_more_and_frees_its_pages(running):
    listen, heard, _ = listening()
    started = threading.Event()
    request = Request(PROMPTS[9], sampler(), 10_000)
    running.submit(request, lambda event: (listen(event), started.set()))
    assert started.wait(60)
    running.cancel(request)
    stats = running.between_steps(lambda: running.stats).result(60)
    assert (stats.running, stats.pages_held) == (0, 0)
    n = len(heard)
    assert running.between_steps(lambda: len(heard)).result(60) == n


def test_what_runs_between_steps_tells_its_result_and_its_error(running):
    assert running.between_steps(lambda: threading.current_thread().name).result(60) == "engine"
    with pytest.raises(ZeroDivisionError):
        running.between_steps(lambda: 1 / 0).result(60)


def test_a_listener_that_raises_harms_nobody_else(running):
    def broken(event):
        raise ValueError("gone")

    listen, heard, ended = listening()
    running.submit(Request(PROMPTS[1], sampler(), 50), broken)
    running.submit(Request(PROMPTS[2], sampler(), 5), listen)
    assert ended.wait(60) and len(heard) == 5
    assert running.between_steps(lambda: running.stats).result(60).running == 0


def test_a_step_that_fails_fails_all_and_the_next_request_is_answered(running, monkeypatch):
    from llama3_scratch.inference.fast_forward import FastForward

    chunks = FastForward.chunks
    broken = [True]

    def once(self, given, cache):
        if broken.pop():
            raise MemoryError("none left")
        broken.append(False)
        return chunks(self, given, cache)

    monkeypatch.setattr(FastForward, "chunks", once)
    listen, heard, ended = listening()
    running.submit(Request(PROMPTS[1], sampler(), 5), listen)
    assert ended.wait(60) and isinstance(heard[0], Failure)
    broken.append(False)
    listen, heard, ended = listening()
    running.submit(Request(PROMPTS[1], sampler(), 5), listen)
    assert ended.wait(60) and len(heard) == 5


@pytest.mark.parametrize("drain", [True, False])
def test_it_ends_at_once_or_when_all_is_answered(drain):
    thread = EngineThread(engine())
    listen, heard, ended = listening()
    thread.submit(Request(PROMPTS[1], sampler(), 300), listen)
    thread.close(drain=drain)
    assert ended.is_set() == drain and (len(heard) == 300) == drain
