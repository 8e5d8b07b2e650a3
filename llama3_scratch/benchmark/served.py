"""Servers under load, in turns: ours, and llama.cpp's `llama-server` on the same weights.

The scenarios are those that a small server meets: short questions, a system prompt that everybody shares, a long prompt
among people who are being answered, a chat of several turns.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llama3_scratch.benchmark.environment import about
from llama3_scratch.benchmark.load import Load
from llama3_scratch.benchmark.peers import Files, llama_cpp_form
from llama3_scratch.benchmark.report import OURS
from llama3_scratch.benchmark.worker import Worker
from llama3_scratch.errors import FileError, Llama3Error, UsageError
from llama3_scratch.inference.choices import ModelChoice
from llama3_scratch.inference.loading import find_model
from llama3_scratch.system.fields import Checked, text, whole

log = logging.getLogger("llama3_scratch")

ANSWER_TOKENS = 64
MAX_CONCURRENT = 16
DECODE_TOKENS, DECODE_CONTEXT = 160, 47  # of `decode`: tokens of an answer and of its prompt
SYSTEM_WORDS, LONG_WORDS = 700, 1460  # each of which is a token of SmolLM2's
_WORDS = ("river", "stone", "lamp", "garden", "winter", "letter", "bridge", "copper", "violet", "engine", "harbour")


@dataclass(frozen=True)
class Scenario:
    """A load by a name: every user's bodies, anew for each run, so that no cache knows them."""

    name: str
    users: int
    bodies: Callable[[random.Random], list[list[dict[str, Any]]]]
    delays: tuple[float, ...] = ()


def _text(draw: random.Random, words: int) -> str:
    return " ".join(draw.choice(_WORDS) for _ in range(words))


def body_of(*messages: tuple[str, str], max_tokens: int = ANSWER_TOKENS, **more: Any) -> dict[str, Any]:
    said = [{"role": role, "content": content} for role, content in messages]
    # `ignore_eos` is no field of OpenAI's, but of both servers: every answer is as long as it's asked to be.
    return {"messages": said, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True, **more}


def scenarios(users: Sequence[int]) -> list[Scenario]:
    """What is measured, the first three for each number of users.

    `short`: questions of 14 words, prompts of 47 tokens with SmolLM2's chat template. `shared`: likewise behind a
    system prompt of 700 tokens that all have in common and that is new to the server. `decode`: short questions with
    long answers, of which the time counts in which all are under way. `cached`: one user's system prompt, which the
    server knows from the second question on. `intruder`: a prompt of 1,500 tokens while four are answered. `turns`:
    chats of six turns.
    """

    def short(n: int) -> Callable[[random.Random], list[list[dict[str, Any]]]]:
        return lambda draw: [[body_of(("user", _text(draw, 14))) for _ in range(4)] for _ in range(n)]

    def shared(n: int) -> Callable[[random.Random], list[list[dict[str, Any]]]]:
        def bodies(draw: random.Random) -> list[list[dict[str, Any]]]:
            system = _text(draw, SYSTEM_WORDS)
            return [[body_of(("system", system), ("user", _text(draw, 8))) for _ in range(4)] for _ in range(n)]

        return bodies

    def cached(draw: random.Random) -> list[list[dict[str, Any]]]:
        system = _text(draw, SYSTEM_WORDS)
        return [[body_of(("system", system), ("user", _text(draw, 8)), max_tokens=8) for _ in range(12)]]

    def intruder(draw: random.Random) -> list[list[dict[str, Any]]]:
        four = [[body_of(("user", _text(draw, 14)), max_tokens=256)] for _ in range(4)]
        return [*four, [body_of(("user", _text(draw, LONG_WORDS)), max_tokens=16)]]

    def turns(draw: random.Random) -> list[list[dict[str, Any]]]:
        def chat() -> list[dict[str, Any]]:
            return [body_of(("user", _text(draw, 20)), max_tokens=32, continues=turn > 0) for turn in range(6)]

        return [chat() for _ in range(4)]

    def decode(n: int) -> Callable[[random.Random], list[list[dict[str, Any]]]]:
        return lambda draw: [[body_of(("user", _text(draw, 14)), max_tokens=DECODE_TOKENS)] for _ in range(n)]

    makers = (("short", short), ("shared", shared), ("decode", decode))
    found = [Scenario(name, n, make(n)) for name, make in makers for n in users]
    found += [Scenario("cached", 1, cached), Scenario("intruder", 5, intruder, (0, 0, 0, 0, 1.0))]
    return [*found, Scenario("turns", 4, turns)]


@dataclass
class Figures:
    """One run's."""

    tokens_per_second: float
    first_p50: float
    first_p95: float
    between_p50: float
    between_p95: float
    between_max: float
    cached_share: float
    health_p99: float
    client_cpu: float
    server_cpu: float


def figures(scenario: Scenario, found: dict[str, Any], server_cpu: float) -> Figures:
    """What a load's result comes to. Of an intruder's run, the times between tokens are those of the others; of a
    cached run, the first answer, which fills the cache, doesn't count for the first token."""
    answers = found["answers"]
    counted = answers[1:] if scenario.name == "cached" else answers
    first = [answer["times"][0] - answer["asked"] for answer in counted if answer["times"]]
    others = [answer for answer in answers if scenario.name != "intruder" or answer["user"] < 4]
    between = [b - a for answer in others for a, b in zip(answer["times"], answer["times"][1:], strict=False)] or [0.0]
    prompt = sum(answer["prompt_tokens"] for answer in answers)
    rate = sum(answer["tokens"] for answer in answers) / found["seconds"]
    return Figures(
        steady_rate(answers) if scenario.name == "decode" else rate,
        quantile(first, 0.5),
        quantile(first, 0.95),
        quantile(between, 0.5),
        quantile(between, 0.95),
        max(between),
        sum(answer["cached_tokens"] for answer in answers) / prompt if prompt else 0.0,
        quantile(found["health"], 0.99) if found["health"] else 0.0,
        found["client_cpu"],
        server_cpu,
    )


def steady_rate(answers: Sequence[dict[str, Any]]) -> float:
    """Tokens/s while all of these answers are under way; a token that shows no text counts with the one behind it."""
    begin = max(answer["times"][0] for answer in answers)
    end = min(answer["times"][-1] for answer in answers)
    if end <= begin:
        return 0.0
    pieces = sum(begin < time <= end for answer in answers for time in answer["times"])
    tokens_a_piece = sum(answer["tokens"] for answer in answers) / sum(len(answer["times"]) for answer in answers)
    return pieces * tokens_a_piece / (end - begin)


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that so large a share of them doesn't exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]


@contextlib.contextmanager
def started(how: Start, say: Path) -> Iterator[tuple[str, int]]:
    """A server's address and its process, once it answers; its messages go to the file `say`."""
    with say.open("wb") as file:
        process = subprocess.Popen(how.command, env=how.environment, stdout=file, stderr=file, stdin=subprocess.DEVNULL)
    try:
        yield _ready(process, how.address, say, how.command[0]), process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ready(process: subprocess.Popen, address: str | None, say: Path, name: str) -> str:
    """Wait until /health answers. Ours says at which port it listens."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        if process.poll() is not None:
            raise Llama3Error(f"{name} ended by itself: {_read(say)[-500:].strip()}")
        if address is None and (told := re.search(r"http://[\d.]+:\d+", _read(say))):
            address = told[0]
        if address is not None:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=5):
                return address
        time.sleep(0.1)
    raise Llama3Error(f"{name} didn't answer within two minutes")


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def cpu_seconds(process: int) -> float:
    """What the process has used so far, where the system tells (Linux)."""
    try:
        fields = _read(Path(f"/proc/{process}/stat")).rpartition(")")[2].split()
    except OSError:
        return float("nan")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class ServeBench(Checked):
    """Which servers are loaded: ours with this model in this form, and llama.cpp's where `against` names it."""

    models: tuple[str, ...] = ()  # one; none: the default model
    forms: tuple[str, ...] = ()  # one; none: int8
    users: tuple[int, ...] = (1, 4, 8, 16)
    repeats: int = whole(5, minimum=1)
    threads: int | None = whole(None, minimum=1)
    against: tuple[str, ...] = ()
    llama_server: str | None = text()

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.models) > 1 or len(self.forms) > 1:
            raise UsageError("`serve` takes one model in one of its `forms`")
        if set(self.against) - {"llama.cpp"}:
            raise UsageError("`serve` is measured against llama.cpp alone")
        if bool(self.against) != bool(self.llama_server):
            raise UsageError("`against=llama.cpp` goes with `llama_server`, its program, and the other way round")
        if self.llama_server and shutil.which(self.llama_server) is None:
            raise FileError(
                f"`llama_server` {self.llama_server}: no such program; scripts/native_llama_bench.sh builds it"
            )

    def measure(self, command: str) -> dict[str, Any]:
        """All scenarios, `repeats` times, each time on servers that have just started, which take turns."""
        form = self.forms[0] if self.forms else "int8"
        path, _ = find_model(ModelChoice(model=self.models[0] if self.models else None), as_floats=True)
        runs: dict[tuple[str, str, int], list[Figures]] = {}
        batches: dict[int, list[float]] = {}
        with tempfile.TemporaryDirectory() as folder:
            servers: dict[str, Callable[[], Start]] = {OURS: _ours(str(path), form, self.threads)}
            if self.llama_server:
                gguf = Path(folder) / "model.gguf"
                Files(model=str(path), shape=None).write(str(gguf), "gguf", llama_cpp_form(form))
                servers["llama.cpp"] = _theirs(self.llama_server, gguf, self.threads)
            for turn in range(self.repeats):
                with contextlib.ExitStack() as stack:
                    running = {
                        name: stack.enter_context(started(make(), Path(folder) / f"{name}.log"))
                        for name, make in servers.items()
                    }
                    for scenario in scenarios(self.users):
                        about_it = (turn + 1, self.repeats, scenario.name, scenario.users)
                        log.info("run %d of %d: %s, %d users", *about_it)
                        for name, (where, process) in running.items():  # whoever rests takes nothing of the processor
                            draw = random.Random(f"{turn} {scenario.name} {scenario.users}")
                            made = figures(scenario, *_run(where, process, scenario, draw))
                            runs.setdefault((name, scenario.name, scenario.users), []).append(made)
                        if scenario.name == "decode":
                            rate = batch_rate(str(path), form, scenario.users, self.threads)
                            batches.setdefault(scenario.users, []).append(rate)
        rows: list[dict[str, Any]] = [
            {"server": server, "scenario": scenario, "users": n, "runs": [asdict(one) for one in found]}
            for (server, scenario, n), found in runs.items()
        ]
        return {
            "kind": "serve",
            "model": path.name,
            "form": form,
            "threads": self.threads or os.cpu_count(),
            "rows": rows,
            "builds": {"llama.cpp": _version(self.llama_server)} if self.llama_server else {},
            "batches": [{"users": n, "tokens_per_second": rates} for n, rates in batches.items()],
        } | about(command, self.repeats)


def _version(program: str) -> str:
    """The line in which llama.cpp says which one it is: `version: 0 (llama-cpp-python-0.3.36, native)`."""
    done = subprocess.run([program, "--version"], capture_output=True, encoding="utf-8", errors="replace")
    lines = (done.stdout + done.stderr).splitlines()
    return next((line.removeprefix("version: ") for line in lines if line.startswith("version: ")), "unknown")


def batch_rate(model: str, form: str, batch: int, threads: int | None) -> float:
    """Tokens/s of as many prompts at once as `bench --batch` measures them: the engine's steps, and no server."""
    sizes = {"batch": batch, "slots": DECODE_CONTEXT + DECODE_TOKENS + 1, "threads": threads or os.cpu_count() or 1}
    with contextlib.closing(Worker("ours", model=model, shape=None, form=form, kv=None, **sizes)) as worker:
        seconds: float = worker("decode", tokens=DECODE_TOKENS, context=DECODE_CONTEXT)
    return batch * DECODE_TOKENS / seconds


@dataclass(frozen=True)
class Start:
    """How a server is started; ours says itself where it listens."""

    command: list[str]
    environment: dict[str, str]
    address: str | None = None


def _run(address: str, process: int, scenario: Scenario, draw: random.Random) -> tuple[dict[str, Any], float]:
    load = Load(address, scenario.bodies(draw), list(scenario.delays), watch_health=scenario.users > 1)
    before = cpu_seconds(process)
    done = subprocess.run(
        [sys.executable, "-m", "llama3_scratch.benchmark.load"],
        input=json.dumps(asdict(load)),
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode:
        raise Llama3Error(f"{scenario.name} with {scenario.users} users: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout), cpu_seconds(process) - before


def _ours(model: str, form: str, threads: int | None) -> Callable[[], Start]:
    command = [sys.executable, "-m", "llama3_scratch.serve", "--model", model, "--quantize", form, "--port", "0"]
    command += ["--max-concurrent", str(MAX_CONCURRENT)]
    environment = dict(os.environ) | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    return lambda: Start(command, environment)


def _theirs(program: str, gguf: Path, threads: int | None) -> Callable[[], Start]:
    n = str(threads or os.cpu_count() or 1)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}

    def make() -> Start:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [program, "-m", str(gguf), "--host", "127.0.0.1", "--port", str(port), "-np", str(MAX_CONCURRENT)]
        command += ["-c", str(2048 * MAX_CONCURRENT), "-t", n, "-tb", n, "--no-webui"]
        return Start(command, environment, f"http://127.0.0.1:{port}")

    return make


def medians(row: dict[str, Any]) -> dict[str, float]:
    """Of each of a row's figures, over its runs."""
    return {name: statistics.median(run[name] for run in row["runs"]) for name in row["runs"][0]}


def ratios(found: dict[str, Any]) -> dict[tuple[str, int], float]:
    """Our output tokens/s over llama.cpp's, by scenario and users: of medians, where both were measured."""
    rates = {(row["server"], row["scenario"], row["users"]): medians(row)["tokens_per_second"] for row in found["rows"]}
    return {
        (scenario, users): rate / rates["llama.cpp", scenario, users]
        for (server, scenario, users), rate in rates.items()
        if server == OURS and rates.get(("llama.cpp", scenario, users))
    }


def shares(found: dict[str, Any]) -> dict[int, tuple[float, float]]:
    """By users: tokens/s of the engine without a server, and the share of it that `decode` has through the server."""
    alone = {batch["users"]: statistics.median(batch["tokens_per_second"]) for batch in found["batches"]}
    return {
        row["users"]: (alone[row["users"]], medians(row)["tokens_per_second"] / alone[row["users"]])
        for row in found["rows"]
        if row["server"] == OURS and row["scenario"] == "decode"
    }


def served_markdown(found: dict[str, Any]) -> str:
    """The medians of all runs as a table, ours beside others'."""
    head = ["server", "scenario", "users", "output tok/s", "first token p50, p95 s", "between tokens p50, p95, max ms"]
    head += ["of the prompts cached", "/health p99 ms", "CPU s: server, client", "ours / theirs"]
    lines = ["| " + " | ".join(head) + " |", "| --- | --- " + "| ---: " * (len(head) - 2) + "|"]
    compared = ratios(found)
    for row in found["rows"]:
        m = medians(row)
        cells = [row["server"], row["scenario"], str(row["users"]), f"{m['tokens_per_second']:.0f}"]
        cells += [f"{m['first_p50']:.3f}, {m['first_p95']:.3f}"]
        cells += [", ".join(f"{1000 * m[f'between_{name}']:.1f}" for name in ("p50", "p95", "max"))]
        cells += [f"{100 * m['cached_share']:.0f} %", f"{1000 * m['health_p99']:.0f}" if m["health_p99"] else ""]
        cells += [f"{m['server_cpu']:.1f}, {m['client_cpu']:.1f}"]
        ratio = compared.get((row["scenario"], row["users"])) if row["server"] == OURS else None
        lines.append("| " + " | ".join([*cells, f"{ratio:.2f}×" if ratio else ""]) + " |")
    through = [f"{n}: {share:.0%} of {rate:.0f} tok/s" for n, (rate, share) in shares(found).items()]
    lines += [
        "",
        f"through the server, of what the engine decodes without one, by users: {'; '.join(through)}",
        f"{found['cpu']}, {found['threads']} threads; {found['model']} in {found['form']}; {found['date']}; "
        f"medians of {found['repeats']} run{'' if found['repeats'] == 1 else 's, in turns'}",
    ]
    return "\n".join(lines)
