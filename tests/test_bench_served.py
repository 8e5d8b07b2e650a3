"""Servers under load: what the client measures of a stream, and what a run comes to."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from llama3_scratch import bench
from llama3_scratch.benchmark import load, served
from llama3_scratch.inference.choices import ModelChoice
from llama3_scratch.serving.choices import ServeChoice
from llama3_scratch.serving.run import serving
from tests import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.folder(tmp_path_factory.mktemp("served") / "tiny")


@pytest.fixture(scope="module")
def address(folder):
    with serving(ServeChoice(port=0, max_concurrent=4, pool_gb=0.01), model=ModelChoice(model=folder)) as server:
        yield server.address


def test_users_ask_one_after_the_other_and_all_at_once(address):
    bodies = [
        served.body_of(("user", "a b c"), max_tokens=12),
        served.body_of(("user", "d"), max_tokens=5, continues=True),
    ]
    found = asyncio.run(load.run(load.Load(address, [bodies, bodies, bodies], [0, 0, 0.05], watch_health=True)))
    answers = found["answers"]
    assert sorted(answer["user"] for answer in answers) == [0, 0, 1, 1, 2, 2]
    assert [answer["tokens"] for answer in answers if answer["user"] == 1] == [12, 5]
    first, second = (answer for answer in answers if answer["user"] == 2)
    assert 0.05 <= first["asked"] < first["times"][0] <= first["ended"] <= second["asked"]
    assert second["prompt_tokens"] > first["prompt_tokens"] + 12, "the first answer is in the second prompt"
    assert found["health"] and found["seconds"] >= second["ended"] and found["client_cpu"] > 0


class Scripted(BaseHTTPRequestHandler):
    """Answers as it's told to."""

    status, body = 200, b""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *args):
        pass


@pytest.mark.parametrize(
    "status, body, said",
    [
        (503, b"busy", "503 Service Unavailable: busy"),
        (200, b'data: {"error":{"message":"out of pages"}}\n\n', "out of pages"),
        (200, b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n', "ended before its end"),
    ],
)
def test_a_server_that_fails_is_an_error(status, body, said):
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Now", (Scripted,), {"status": status, "body": body}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(OSError, match=said):
            where = f"http://127.0.0.1:{server.server_port}"
            asyncio.run(load.ask(where, served.body_of(("user", "a")), load.Answered(0, 0.0), 0.0))
    finally:
        server.shutdown()


def answered(user, asked, times, **more):
    return asdict(load.Answered(user, asked, times, times[-1], tokens=len(times), prompt_tokens=10, **more))


def test_what_a_run_comes_to():
    found = {
        "seconds": 4.0,
        "answers": [answered(0, 0.0, [1.0, 1.5, 1.6]), answered(4, 1.0, [3.0, 3.9], cached_tokens=5)],
        "health": [0.001] * 99 + [0.5],
        "client_cpu": 0.25,
    }
    short = served.figures(served.Scenario("short", 2, list), found, 3.0)
    assert short.tokens_per_second == 5 / 4 and (short.first_p50, short.first_p95) == (1.0, 2.0)
    assert (short.between_p50, short.between_max) == (pytest.approx(0.5), pytest.approx(0.9))
    assert short.cached_share == 0.25 and short.health_p99 == 0.001
    assert (short.server_cpu, short.client_cpu) == (3.0, 0.25)
    intruder = served.figures(served.Scenario("intruder", 5, list), found, 3.0)
    assert intruder.between_max == pytest.approx(0.5), "the times of those that were there before"
    cached = served.figures(served.Scenario("cached", 1, list), found, 3.0)
    assert (cached.first_p50, cached.first_p95) == (2.0, 2.0), "not of the first, which fills the cache"


def test_the_rate_while_all_are_answered():
    answers = [answered(0, 0.0, [1.0, 2.0, 3.0, 4.0]), answered(1, 0.0, [1.5, 2.5, 9.0])]
    assert served.steady_rate(answers) == pytest.approx(4 / 2.5), "from 1.5 to 4.0 the first says 3 tokens, the other 1"
    found = {"seconds": 9.0, "answers": answers, "health": [], "client_cpu": 0.1}
    assert served.figures(served.Scenario("decode", 2, list), found, 1.0).tokens_per_second == pytest.approx(4 / 2.5)
    answers[1]["tokens"] = 6  # twice as many tokens as pieces of text
    assert served.steady_rate(answers) == pytest.approx(4 / 2.5 * 10 / 7)
    assert served.steady_rate([answered(0, 0.0, [1.0]), answered(1, 0.0, [2.0])]) == 0


def run_of(**more):
    zeros = dict.fromkeys(served.Figures.__dataclass_fields__, 0.0)
    return zeros | more


KEPT = {
    "rows": [
        {"server": server, "scenario": scenario, "users": 8, "runs": [run_of(tokens_per_second=rate) for rate in rates]}
        for server, scenario, rates in (
            ("llama3_scratch", "short", [90.0, 600.0, 700.0]),
            ("llama3_scratch", "decode", [80.0, 850.0, 900.0]),
            ("llama.cpp", "short", [200.0, 300.0, 310.0]),
        )
    ],
    "batches": [{"users": 8, "tokens_per_second": [1000.0, 10.0, 1001.0]}],
    **{"cpu": "AMD EPYC", "threads": 2, "model": "m", "form": "int8", "date": "2026-11-27", "repeats": 3},
}


def test_ratios_are_of_medians():
    assert served.ratios(KEPT) == {("short", 8): 2.0}
    assert served.shares(KEPT) == {8: (1000.0, 0.85)}
    table = served.served_markdown(KEPT)
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    assert {len(line) for line in lines} == {10} and [line[-1] for line in lines[2:]] == ["2.00×", "", ""]
    assert "8: 85% of 1000 tok/s" in table and table.endswith("medians of 3 runs, in turns")


def test_every_run_has_prompts_of_its_own_and_all_users_of_one_share_theirs():
    for scenario in served.scenarios([1, 3]):
        one, same, other = (scenario.bodies(random.Random(seed)) for seed in (1, 1, 2))
        assert len(one) == scenario.users and one == same != other
        systems = {m["content"] for bodies in one for body in bodies for m in body["messages"] if m["role"] == "system"}
        assert len(systems) == (scenario.name in ("shared", "cached"))


def test_a_whole_run_makes_a_table(folder, capsys, monkeypatch):
    few = [one for one in served.scenarios([2]) if one.name in ("short", "decode", "turns")]
    monkeypatch.setattr(served, "scenarios", lambda users: few)
    monkeypatch.setattr(served, "ANSWER_TOKENS", 4)
    monkeypatch.setattr(served, "DECODE_TOKENS", 4)
    argv = [str(folder), "--serve", "--forms", "nf4", "--users", "2", "-r", "1", "--threads", "1", "--json"]
    assert bench.main(argv) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(row["server"], row["scenario"], row["users"]) for row in found["rows"]] == [
        ("llama3_scratch", "short", 2),
        ("llama3_scratch", "decode", 2),
        ("llama3_scratch", "turns", 4),
    ]
    assert [batch["users"] for batch in found["batches"]] == [2] and found["batches"][0]["tokens_per_second"][0] > 0
    table = served.served_markdown(found)
    assert "| llama3_scratch | short | 2 |" in table and "1 threads; tiny in nf4" in table


@pytest.mark.parametrize(
    "argv, said",
    [
        (["--serve", "--pp", "3"], "--serve measures servers; --pp isn't for it"),
        (["--users", "3"], "bench measures tokens; --users isn't for it"),
        (["--serve", "--forms", "int8,int4"], "takes one model in one of its --forms"),
        (["--serve", "--against", "hf"], "--serve is measured against llama.cpp alone"),
        (["--serve", "--against", "llama.cpp"], "goes with --llama-server"),
        (["--serve", "--against", "llama.cpp", "--llama-server", "/nowhere"], "no such program; scripts/native_llama"),
    ],
)
def test_usage(argv, said, capsys):
    assert bench.main(argv) in (2, 3)
    assert said in capsys.readouterr().err
