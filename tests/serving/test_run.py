"""A server as a process: what it says at its start and its end, the port, signals; and choices that can't be used."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import subprocess
import sys
import time

import pytest

from llama3_scratch import serve
from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.inference.choices import CacheChoice, ModelChoice
from llama3_scratch.serving.choices import ServeChoice
from llama3_scratch.serving.run import open_service, serving
from tests.serving.http_client import Client, until


class Process:
    """`python -m llama3_scratch.serve`, ready."""

    def __init__(self, folder, *flags: str) -> None:
        command = [sys.executable, "-m", "llama3_scratch.serve", "--model", str(folder), "--port", "0", *flags]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, encoding="utf-8")
        assert self.process.stderr
        self.said = ""
        while not (found := re.search(r"at http://127\.0\.0\.1:(\d+), ", self.said)):
            line = self.process.stderr.readline()
            assert line, self.said
            self.said += line
        self.port = int(found[1])

    def ended(self) -> tuple[int, str]:
        assert self.process.stderr
        self.said += self.process.stderr.read()  # until it's closed
        return self.process.wait(timeout=20), self.said


@contextlib.contextmanager
def running(folder, *flags):
    process = Process(folder, *flags)
    try:
        yield process
    finally:
        process.process.kill()
        process.process.wait()


def asking(port: int, **fields) -> http.client.HTTPConnection:
    """A stream that is under way."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    body = {"messages": [{"role": "user", "content": "hi"}], "stream": True, "ignore_eos": True, **fields}
    connection.request("POST", "/v1/chat/completions", json.dumps(body))
    return connection


def test_f178_sigterm_lets_answers_end_and_takes_no_more(folder):
    with running(folder) as server:
        response = asking(server.port, max_tokens=1000).getresponse()
        response.read(300)
        server.process.send_signal(signal.SIGTERM)
        rest = response.read().decode()
        assert '"finish_reason":"length"' in rest and rest.endswith("data: [DONE]\n\n")
        code, said = server.ended()
    assert code == 0
    lines = said.splitlines()
    loaded = next(place for place, line in enumerate(lines) if line.startswith("tiny loaded in "))
    assert lines[loaded + 1].startswith("tiny at http://127.0.0.1:")
    pool = r"the pool holds [\d,]+ tokens \(.*\), a prompt and its answer 4,096; 16 answers at once, 64 may wait"
    assert re.fullmatch(pool, lines[loaded + 2])
    assert "ending: answers under way are finished first" in said
    assert re.fullmatch(r"1 requests \(1 length, 0 refused\) in \d+ s: .* 1,000 generated", lines[-1])


def test_f178_answers_that_take_too_long_are_cut_when_the_server_ends(folder):
    with running(folder, "--drain-seconds", "1", "--max-concurrent", "64") as server:
        streams = [asking(server.port) for _ in range(40)]
        for stream in streams:
            stream.getresponse().read(300)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        code, _ = server.ended()
    assert code == 0 and time.monotonic() - began < 20


def test_f178_a_second_signal_ends_it(folder):
    with running(folder, "--max-concurrent", "64") as server:
        streams = [asking(server.port) for _ in range(40)]
        for stream in streams:
            stream.getresponse().read(300)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        code, said = server.ended()
    assert code == 128 + signal.SIGTERM and "ending now" in said and time.monotonic() - began < 10


def test_f179_a_port_that_is_taken_is_told_before_the_model_is_read(client, capsys):
    assert serve.main(["--port", str(client.port), "--model", "no such model"]) == 2
    assert f"--port {client.port} of 127.0.0.1 is in use" in capsys.readouterr().err


def test_a_host_that_is_none_is_refused(capsys):
    assert serve.main(["--host", "no.such.host.invalid"]) == 2
    assert "--host no.such.host.invalid" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--port", "70000"], "--port"),
        (["--max-concurrent", "0"], "--max-concurrent"),
        (["--pool-gb", "0"], "--pool-gb"),
        (["--pool-gb", "1e-9"], "--pool-gb"),
        (["--adapter", "x"], "expected NAME=DIR"),
        (["--adapter", "a b=x"], "--adapter"),
        (["--api-key", ""], "--api-key"),
        (["--api-key", "schlüssel"], "--api-key"),
        (["--allow-origin", "localhost"], "--allow-origin"),
        (["--allow-origin", "http://localhost/path"], "--allow-origin"),
        (["--model-name", "x", "--adapter", "x=y"], "--adapter"),
    ],
)
def test_a_flag_that_cannot_be_used_is_named(folder, capsys, flags, said):
    assert serve.main(["--model", str(folder), "--port", "0", *flags]) in (2, 5)
    assert said in capsys.readouterr().err


def test_an_adapter_that_is_not_there_is_told(folder, capsys, tmp_path):
    assert serve.main(["--model", str(folder), "--port", "0", "--adapter", f"x={tmp_path / 'none'}"]) == 3
    assert str(tmp_path / "none") in capsys.readouterr().err


def test_what_a_server_has_no_use_for_is_refused(folder):
    with pytest.raises(UsageError, match="sliding"):
        open_service(ServeChoice(), model=ModelChoice(model=folder), cache=CacheChoice(sliding=64))
    with pytest.raises(UsageError, match="adapters"):
        open_service(ServeChoice(), model=ModelChoice(model=folder, adapters=(folder,)))
    with pytest.raises(FileError):
        open_service(ServeChoice(), model=ModelChoice(model=folder / "none"))


def test_a_small_pool_bounds_prompts_and_says_so(folder):
    with serving(ServeChoice(port=0, pool_gb=1e-3), model=ModelChoice(model=folder)) as server:
        client = Client(server)
        limit = client.get("/v1/models").json["data"][0]["meta"]["n_ctx"]
        assert limit == server.service.pool_tokens < 4096
        got = client.chat("x" * limit)
        assert got.status == 400 and got.error["type"] == "exceed_context_size_error" and got.error["n_ctx"] == limit
        assert client.chat("x", max_tokens=5).status == 200


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_every_form_of_cache_is_served(folder, bits):
    with serving(ServeChoice(port=0), model=ModelChoice(model=folder), cache=CacheChoice(kv_bits=bits)) as server:
        assert Client(server).chat("hello", max_tokens=9, ignore_eos=True).json["usage"]["completion_tokens"] == 9


def test_while_it_ends_nothing_new_is_begun(client):
    service = client.server.service
    service.stopping = True
    try:
        for got in (client.chat("hi"), client.get("/health")):
            assert got.status == 503 and got.headers["retry-after"]
    finally:
        service.stopping = False
    until(lambda: client.get("/health").status == 200)
