"""Clients that leave, full queues, answers that take too long or fail: pages come back, and others are unharmed."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import time

import pytest

from llama3_scratch.errors import UsageError
from llama3_scratch.inference.requests import Failure
from llama3_scratch.serving import answering, chat, generation
from llama3_scratch.serving.answer import Answer
from tests.serving.http_client import until

HI = [{"role": "user", "content": "hi"}]
LONG = [{"role": "user", "content": "x" * 3500}]


def stats(client):
    return client.server.service.thread.stats


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("messages", [HI, LONG], ids=["decode", "prefill"])
def test_f174_a_client_that_leaves_frees_its_pages(client, says, stream, messages):
    says(None)
    before = stats(client).generated_tokens
    with client.opened(client.request("/v1/chat/completions", {"messages": messages, "stream": stream})) as connection:
        until(lambda: stats(client).running)
        if messages is HI:
            until(lambda: stats(client).generated_tokens > before + 3)
        if stream:
            assert connection.recv(12).startswith(b"HTTP/1.1 200")
    until(lambda: not stats(client).running, seconds=2)
    assert stats(client).pages_held == 0


def test_f174_a_client_that_leaves_the_queue_is_forgotten(client, says):
    says(*[None] * 5)
    body = client.request("/v1/chat/completions", {"messages": HI})
    others = [client.opened(body) for _ in range(4)]
    sockets = [other.__enter__() for other in others]
    until(lambda: stats(client).running == 4)
    with client.opened(body):
        until(lambda: stats(client).waiting == 1)
    until(lambda: stats(client).waiting == 0)
    assert stats(client).running == 4, "the others go on"
    for connection in sockets:
        connection.close()


def test_f175_a_full_queue_is_told_with_a_time_to_come_back(client, says):
    says(*[None] * 8)
    body = client.request("/v1/chat/completions", {"messages": HI, "n": 4})
    with client.opened(body), client.opened(body):
        until(lambda: stats(client).running + stats(client).waiting == 8)
        got = client.chat("hi")
        assert got.status == 503 and got.error["type"] == "server_error" and int(got.headers["retry-after"]) >= 1
        assert client.get("/health").status == 200
    until(lambda: not stats(client).running)
    says("ok")
    assert client.chat("hi").status == 200


def test_f176_an_answer_that_takes_too_long_ends_with_length(client, says, monkeypatch):
    choice = client.server.service.choice
    monkeypatch.setattr(client.server.service, "choice", dataclasses.replace(choice, max_seconds=0.3))
    says(None, None)
    began = time.monotonic()
    got = client.chat("hi").json["choices"][0]
    assert got["finish_reason"] == "length" and got["message"]["content"].startswith("aaa")
    frames = client.frames("/v1/chat/completions", {"messages": HI})
    assert frames[-2]["choices"][0]["finish_reason"] == "length" and frames[-1] == "[DONE]"
    assert time.monotonic() - began < 5


def test_f177_an_answer_that_fails_is_a_500_and_the_next_is_answered(client, says, monkeypatch):
    def fails(choice, prompt_tokens):
        def sample(logits_V, seen):
            raise RuntimeError("a secret of the code's")

        return sample

    monkeypatch.setattr(answering, "make_sampler", fails)
    got = client.chat("hi")
    assert got.status == 500 and got.error["type"] == "server_error" and "secret" not in got.error["message"]
    frames = client.frames("/v1/chat/completions", {"messages": HI})
    assert frames[0]["choices"][0]["delta"]["role"] == "assistant"
    assert frames[-1]["error"]["type"] == "server_error" and "[DONE]" not in frames
    says("ok")
    assert client.chat("hi").status == 200


def test_f177_a_fault_of_our_own_is_a_500(client, monkeypatch, says):
    says("ok", "ok")
    monkeypatch.setattr(chat, "make_answers", lambda *_, **__: 1 / 0)
    got = client.chat("hi")
    assert got.status == 500 and "division" not in got.error["message"]
    monkeypatch.undo()
    says("ok")
    assert client.chat("hi").status == 200


def test_f177_where_one_of_several_answers_cannot_be_begun_none_is(client, says, monkeypatch):
    says(*[None] * 3)
    thread, begun = client.server.service.thread, []
    submit = thread.submit

    def third_fails(request, listener):
        if len(begun) == 2:
            raise UsageError("no more of them")
        begun.append(request)
        submit(request, listener)

    monkeypatch.setattr(thread, "submit", third_fails)
    assert client.chat("hi", n=3).error["message"] == "no more of them"
    until(lambda: not stats(client).running and not stats(client).waiting)


def test_f177_a_listener_that_fails_harms_no_other(client, says, monkeypatch):
    real = Answer.hear

    def hear(self, event):
        if not isinstance(event, Failure) and event.token == ord("b"):
            raise RuntimeError("broken")
        return real(self, event)

    monkeypatch.setattr(Answer, "hear", hear)
    says("aab", "aaa")
    assert client.chat("hi").status == 500
    assert client.chat("hi").json["choices"][0]["message"]["content"] == "aaa"


@pytest.mark.parametrize("tools", [[], [{"type": "function", "function": {"name": "f"}}]], ids=["content", "held back"])
def test_a_silent_stream_says_that_it_is_still_there(client, monkeypatch, tools):
    """Where no token comes, and where tokens come and what they say is held back, since it may be a call."""
    monkeypatch.setattr(generation, "SILENCE", 0.1)
    texts = ["a"] if not tools else list('{"name":')
    slowly = 0.6 / len(texts)

    def slow(choice, prompt_tokens):
        script = iter([*map(ord, texts), 257])

        def sample(logits_V, seen):
            time.sleep(slowly)
            return next(script)

        return sample

    monkeypatch.setattr(answering, "make_sampler", slow)
    frames = client.frames("/v1/chat/completions", {"messages": HI, "tools": tools}, comments=True)
    assert frames[1].startswith(":") and frames[-1] == "[DONE]"
    deltas = [frame["choices"][0]["delta"] for frame in frames if not isinstance(frame, str)]
    assert deltas[1:] == [{"content": "".join(texts)}, {}]


def test_health_and_metrics_are_answered_while_a_prompt_is_read(client, says):
    says(None, None)
    body = client.request("/v1/chat/completions", {"messages": LONG})
    with client.opened(body), client.opened(body):
        until(lambda: stats(client).running)
        for _ in range(5):
            began = time.monotonic()
            assert client.get("/health").status == client.get("/metrics").status == 200
            assert time.monotonic() - began < 1


def test_no_content_crosses_requests(client):
    """40 marked prompts, concurrent, and a model that repeats: every answer is what the prompt gets alone."""

    def ask(number: int) -> str:
        got = client.chat(f"prompt number {number} " * (1 + number % 7), max_tokens=24)
        while got.status == 503:
            time.sleep(0.01)
            got = client.chat(f"prompt number {number} " * (1 + number % 7), max_tokens=24)
        return json.dumps(got.json["choices"][0]["message"])

    alone = [ask(number) for number in range(40)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(40))) == alone
    assert len(set(alone)) > 20
