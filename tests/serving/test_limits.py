"""What a client may take before it's answered, on sockets of its own."""

from __future__ import annotations

import json
import time

import pytest

from llama3_scratch.serving import limits
from tests.serving.http_client import read_all, until


def error_of(response: bytes) -> tuple[int, dict]:
    head, _, body = response.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]


def test_f172_a_header_of_ten_megabytes_is_refused(client):
    with client.opened() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Much: " + b"x" * 10_000_000 + b"\r\n\r\n")
        status, error = error_of(read_all(connection))
    assert status == 431 and error["type"] == "invalid_request_error"


def test_f172_a_header_that_comes_at_once_is_counted_too(client):
    with client.opened() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Much: " + b"x" * 20_000 + b"\r\n\r\n")
        assert error_of(read_all(connection))[0] == 431
    assert client.get("/health", **{"X-Much": "x" * 15_000}).status == 200


def test_what_is_no_http_is_refused(client):
    with client.opened(b"hello\r\n\r\n") as connection:
        assert error_of(read_all(connection))[0] == 400


def test_f173_a_header_that_comes_byte_by_byte_is_closed_and_others_are_served(client, monkeypatch):
    monkeypatch.setattr(limits, "MAX_HEADER_SECONDS", 0.3)
    with client.opened() as slow:
        began = time.monotonic()
        for byte in b"GET /health HTTP/1.1\r\nHost: loc":
            try:
                slow.sendall(bytes([byte]))
            except OSError:
                break
            time.sleep(0.02)
            assert client.get("/health").status == 200
        status, error = error_of(read_all(slow))
    assert status == 408 and "header" in error["message"]
    assert time.monotonic() - began < 5


def test_f173_the_second_header_of_a_connection_has_a_clock_too(client, monkeypatch):
    monkeypatch.setattr(limits, "MAX_HEADER_SECONDS", 0.2)
    with client.opened(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n") as connection:
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        time.sleep(0.4)  # a connection may rest
        connection.sendall(b"GET /health HTTP/1.1\r\n")
        assert error_of(read_all(connection))[0] == 408


def test_f154_a_body_that_says_it_is_too_large_is_not_read(client):
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {10**12}\r\n\r\n"
    with client.opened(head.encode()) as connection:
        began = time.monotonic()
        got = connection.recv(65536)
        assert got.startswith(b"HTTP/1.1 413") and time.monotonic() - began < 1


def test_f154_a_body_that_turns_out_too_large_is_not_read_on(client):
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    with client.opened(head) as connection:
        for _ in range(limits.MAX_BODY_BYTES // 0x10000 + 1):
            connection.sendall(chunk)
        got = connection.recv(65536)
    assert got.startswith(b"HTTP/1.1 413")
    assert client.get("/health").status == 200


def test_f154_a_client_that_writes_all_before_it_reads_is_told(client):
    got = client.post("/v1/chat/completions", b"x" * (limits.MAX_BODY_BYTES + 1))
    assert got.status == 413 and got.error["type"] == "invalid_request_error"
    assert got.headers["connection"] == "close"


def test_f173_a_body_that_comes_byte_by_byte_is_closed(client, monkeypatch):
    monkeypatch.setattr(limits, "MAX_BODY_SECONDS", 0.3)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
    with client.opened(head) as connection:
        time.sleep(0.1)
        connection.sendall(b" ")
        got = connection.recv(65536)
    assert got.startswith(b"HTTP/1.1 408")


def test_a_client_that_reads_nothing_of_its_answer_is_closed(client, says, monkeypatch):
    monkeypatch.setattr(limits, "MAX_UNREAD_SECONDS", 0.3)
    says(*[None] * 4)
    stats = client.server.service.thread
    body = {
        "messages": [{"role": "user", "content": "hi"}],
        "n": 4,
        "stream": True,
        "logprobs": True,
        "top_logprobs": 20,
    }
    with client.opened(client.request("/v1/chat/completions", body)):
        until(lambda: stats.stats.running)
        until(lambda: not stats.stats.running, seconds=20)
    assert client.get("/health").status == 200


@pytest.mark.parametrize("length", ["-1", "x", "1" * 30])
def test_a_length_that_is_none_is_refused(client, length):
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
    with client.opened(head.encode()) as connection:
        assert int(connection.recv(65536).split()[1]) in (400, 413)
