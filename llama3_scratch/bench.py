"""Measure how fast and small a model runs here: tokens/s, load time, memory, beside others and the machine's limits."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import importlib.util
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama3_scratch.benchmark.peers import BYTES, HF_BYTES, PEERS, llama_cpp_form, read_bytes
from llama3_scratch.benchmark.report import (
    OURS,
    Row,
    Trial,
    draw,
    markdown,
    report,
    require_matplotlib,
    startup_markdown,
)
from llama3_scratch.benchmark.worker import Worker
from llama3_scratch.config import OFFICIAL, Config, official_name
from llama3_scratch.errors import FileError, Llama3Error, UsageError
from llama3_scratch.inference.choices import ModelChoice
from llama3_scratch.inference.opening import find_model
from llama3_scratch.system import cli, stdio
from llama3_scratch.terminal.flags import add_device_flags

log = logging.getLogger("llama3_scratch")


def _several(one: Callable[[str], Any]) -> Callable[[str], list]:
    """An argparse `type`: values between commas, each once."""
    return lambda text: list(dict.fromkeys(one(part.strip()) for part in text.split(",")))


def _parser() -> cli.Parser:
    parser = cli.Parser("bench", __doc__ or "")
    parser.add_argument("models", nargs="*", metavar="MODEL", help="folders, .gguf files or names; the default model")
    parser.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="NAME",
        help=f"random weights of an official shape: {', '.join(OFFICIAL)}; repeatable",
    )
    count, size = cli.number(int, least=1), cli.number(int, least=0)
    parser.add_argument(
        "--forms",
        "--quantize",  # as `generate` has it
        type=_several(str),
        metavar="F,…",
        help="of the weights: f32, bf16, f16, int8, int4, int4-sym, nf4, int8-row; as `generate` runs them",
    )
    add_device_flags(parser)
    parser.add_argument(
        "--kv", type=_several(count), default=[None], metavar="BITS,…", help="of the cache: 32, 16, 8, 4; as --dtype"
    )
    parser.add_argument("--batch", type=_several(count), default=[1], metavar="N,…", help="prompts at once (1)")
    parser.add_argument("--pp", type=size, default=512, metavar="N", help="tokens of a prompt, 0: none (%(default)s)")
    parser.add_argument("--tg", type=size, default=128, metavar="N", help="new tokens, 0: none (%(default)s)")
    parser.add_argument(
        "--contexts", type=_several(size), default=[0], metavar="N,…", help="tokens before the new ones (0)"
    )
    parser.add_argument("-r", "--repeats", type=count, default=5, metavar="N", help="runs of each (%(default)s)")
    parser.add_argument("--threads", type=count, metavar="N", help="torch's own number unless given")
    parser.add_argument(
        "--against", type=_several(str), default=[], metavar="PEER,…", help=f"also measure {', '.join(PEERS)}"
    )
    parser.add_argument(
        "--llama-bench",
        metavar="FILE",
        help="with --against llama.cpp: its own program in the place of the wheel, which is built for AVX2; "
        "scripts/native_llama_bench.sh builds it for this processor",
    )
    parser.add_argument(
        "--startup", action="store_true", help="measure `generate --max-tokens 1` from start to end instead"
    )
    parser.add_argument("--json", action="store_true", help="print all samples as JSON, in the place of the table")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="tokens/s by context and by batch")
    return parser


@dataclass(frozen=True)
class Subject:
    """A model: a path, or an official shape to fill with random weights. `given` is what --model would say."""

    name: str
    path: str | None
    shape: str | None
    given: str | None = None

    @property
    def source(self) -> dict[str, str | None]:
        return {"model": self.path, "shape": self.shape}


@cli.verb(_parser)
def main(options: argparse.Namespace) -> int:
    command = shlex.join(["python", "-m", "llama3_scratch.bench", *sys.argv[1:]])
    if options.startup:
        _check_startup(options)
        found = _startup(_subjects(options), options) | _about(command, options)
        stdio.print_json(found) if options.json else print(startup_markdown(found))
        return 0
    _check(options)
    found = measured(_subjects(options), options, command)
    if options.plot:
        draw(found, options.plot)
    stdio.print_json(found) if options.json else print(markdown(found))
    return 0


def _check(options: argparse.Namespace) -> None:
    """Refuse what can't be measured before anything is loaded."""
    if not options.pp and not options.tg:
        raise UsageError("--pp 0 and --tg 0 leave nothing to measure")
    if unknown := [peer for peer in options.against if peer not in PEERS]:
        raise UsageError(f"--against {unknown[0]}: expected {' or '.join(PEERS)}")
    if options.llama_bench:
        if "llama.cpp" not in options.against:
            raise UsageError("--llama-bench goes with --against llama.cpp")
        if shutil.which(options.llama_bench) is None:
            raise FileError(
                f"--llama-bench {options.llama_bench}: no such program; scripts/native_llama_bench.sh builds it"
            )
    if unknown := [name for name in options.shape if official_name(name) is None]:
        raise UsageError(f"--shape {unknown[0]}: expected one of {', '.join(OFFICIAL)}")
    if options.plot:
        if not options.tg:
            raise UsageError("--plot draws new tokens per second, and --tg 0 asks for none")
        require_matplotlib(options.plot)
    from llama3_scratch.benchmark.ours import KEEPS, MEASURED_FORMS

    if unknown := [form for form in options.forms or [] if form not in MEASURED_FORMS]:
        raise UsageError(f"--forms {unknown[0]}: expected some of {', '.join(MEASURED_FORMS)}")
    if others := [bits for bits in options.kv if bits not in (None, *KEEPS)]:
        raise UsageError(f"--kv {others[0]}: a cache is kept in {', '.join(map(str, KEEPS))} bits")


def _check_startup(options: argparse.Namespace) -> None:
    defaults = vars(_parser().parse_args([]))
    for name in defaults.keys() - {"models", "startup", "repeats", "json", "quiet", "debug"}:
        if getattr(options, name) != defaults[name]:
            raise UsageError(f"--startup measures whole commands; --{name.replace('_', '-')} isn't for it")


def _subjects(options: argparse.Namespace) -> list[Subject]:
    """What is to be measured, as `generate` finds it: --forms begin with floats."""
    real = []
    for given in options.models or ([] if options.shape else [None]):
        choice = ModelChoice(model=given, device=options.device, dtype=options.dtype)
        path, _ = find_model(choice, as_floats=bool(options.forms))
        real.append(Subject(given or path.name, str(path), None, given))
    return real + [
        Subject(f"{shape} (random)", None, shape) for shape in filter(None, map(official_name, options.shape))
    ]


def measured(subjects: Sequence[Subject], options: argparse.Namespace, command: str) -> dict:
    """Measure everything that the options ask for, all engines and forms of a model and batch in turns."""
    tests = [Trial(options.pp)] if options.pp else []
    tests += [Trial(options.tg, context) for context in options.contexts] if options.tg else []
    peers = [peer for peer in options.against if (peer == "llama.cpp" and options.llama_bench) or _installed(peer)]
    rows: list[Row] = []
    roofs: list[dict[str, float]] = []
    with contextlib.closing(Worker("roof", threads=options.threads, device=options.device)) as roof:
        threads = roof("about")["threads"]
        for subject in subjects:
            for batch in options.batch:
                with tempfile.TemporaryDirectory(prefix="bench-") as folder, contextlib.ExitStack() as stack:
                    group = list(_group(subject, batch, threads, peers, tests, Path(folder), options, stack))
                    for repeat in range(options.repeats):
                        roofs.append(roof("measure"))
                        _turn(group, tests)
                        log.info("%s, batch %d: run %d of %d", subject.name, batch, repeat + 1, options.repeats)
                    for row, worker in group:
                        row.peak_bytes = worker("peak")
                        rows.append(row)
    return report(rows, tests, roofs, **_about(command, options), threads=threads)


def _turn(group: list[tuple[Row, Worker]], tests: Sequence[Trial]) -> None:
    """Measure each test once with every engine: A B C, so that a disturbance hits all alike."""
    for test in tests:
        for row, worker in group:
            if test.context is None:
                seconds = worker("prefill", tokens=test.tokens)
            else:
                seconds = worker("decode", tokens=test.tokens, context=test.context)
            if seconds is not None:
                row.rates.setdefault(test.name, []).append(row.batch * test.tokens / seconds)


def _installed(peer: str) -> bool:
    package = PEERS[peer]
    if importlib.util.find_spec(package) is None:
        log.warning("--against %s needs the package %s, which isn't installed; it is left out", peer, package)
        return False
    return True


def _group(
    subject: Subject,
    batch: int,
    threads: int,
    peers: Sequence[str],
    tests: Sequence[Trial],
    folder: Path,
    options: argparse.Namespace,
    stack: contextlib.ExitStack,
) -> Iterator[tuple[Row, Worker]]:
    """Start a process for every engine and form; each waits for its turns until `stack` closes."""
    slots = max(test.tokens + (test.context or 0) + 1 for test in tests)
    common = {"batch": batch, "slots": slots, "threads": threads}
    forms: list[str] = []
    for form in options.forms or [None]:
        for kv in options.kv:
            log.info("%s: loading %s", subject.name, form or "the weights as `generate` runs them")
            how = {"form": form, "kv": kv, "device": options.device, "dtype": options.dtype}
            worker = stack.enter_context(contextlib.closing(Worker("ours", **subject.source, **how, **common)))
            about = worker("about")
            config = Config(**about["sizes"])
            forms.append(about["form"])
            numbers = {name: about[name] for name in ("load_s", "read_bytes", "slot_bytes", "dtype")}
            yield Row(subject.name, OURS, about["form"], about["kv"], batch, config, **numbers), worker
    for peer in peers:
        kinds = list(HF_BYTES) if peer == "hf" else list(dict.fromkeys(map(llama_cpp_form, forms)))
        for kind in kinds:
            log.info("%s: loading %s %s", subject.name, peer, kind)
            try:
                worker = stack.enter_context(
                    contextlib.closing(
                        _peer(peer, kind, subject, config.vocab_size, common, folder, options.llama_bench)
                    )
                )
            except Llama3Error as error:
                log.warning("%s %s is left out: %s", peer, kind, error)
                continue
            if peer == "hf":
                kv, of_layers, of_head = 8 * HF_BYTES[kind], float(HF_BYTES[kind]), float(HF_BYTES[kind])
            else:
                kv, (of_layers, of_head) = 16, BYTES[kind]  # llama.cpp's own choice
            about = worker("about")
            row = Row(
                subject.name,
                peer,
                kind,
                kv,
                batch,
                config,
                load_s=about["load_s"],
                build=about.get("build"),
                read_bytes=read_bytes(config, of_layers, of_head),
                slot_bytes=config.kv_bytes(1, 1, kv // 8),
            )
            yield row, worker


def _peer(
    peer: str,
    kind: str,
    subject: Subject,
    vocab_size: int,
    common: dict[str, int],
    folder: Path,
    llama_bench: str | None,
) -> Worker:
    """A peer's process, its files written first where it needs others than there are."""
    if peer == "hf":
        source = subject.path
        if source is not None and not (Path(source) / "config.json").exists():
            source = _written(subject, folder / "hf", "hf", None)
        return Worker("hf", folder=source, shape=subject.shape, form=kind, **common)
    file = _written(subject, folder / f"{kind}.gguf", "gguf", kind)
    if llama_bench:
        return Worker("llama-bench", program=llama_bench, file=file, **common)
    return Worker("llama.cpp", file=file, vocab_size=vocab_size, **common)


def _written(subject: Subject, target: Path, layout: str, kind: str | None) -> str:
    if not target.exists():
        with contextlib.closing(Worker("files", **subject.source)) as files:
            files("write", target=str(target), layout=layout, kind=kind)
    return str(target)


def _about(command: str, options: argparse.Namespace) -> dict[str, Any]:
    packages = ("llama3_scratch", "torch", *PEERS.values())
    versions = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "command": command,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": _cpu(),
        "repeats": options.repeats,
        "versions": {"python": platform.python_version(), **versions},
    }


def _cpu() -> str:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line for line in lines if line.startswith("model name")).partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _startup(subjects: Sequence[Subject], options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of whole commands in turns: one token of each model, and what torch alone takes to be imported."""
    commands = [
        ["-m", "llama3_scratch.generate", "Hello", *model, "--max-tokens", "1"]
        for model in (["--model", subject.given] if subject.given else [] for subject in subjects)
    ]
    commands.append(["-c", "import torch"])
    rows: list[dict[str, Any]] = [{"command": shlex.join(["python", *words]), "seconds": []} for words in commands]
    for repeat in range(-1, options.repeats):  # the first brings the files into the system's cache, uncounted
        for row, words in zip(rows, commands, strict=True):
            seconds, row["peak_bytes"] = _whole(words)
            if repeat >= 0:
                row["seconds"].append(seconds)
    return {"rows": rows}


def _whole(words: Sequence[str]) -> tuple[float, int]:
    """Seconds and peak memory of a command of Python's."""
    with tempfile.TemporaryFile() as said:
        begun = time.perf_counter()
        process = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            last = said.read().decode(errors="replace").strip().splitlines()[-1:]
            raise Llama3Error(f"{shlex.join(['python', *words])} ended with {process.returncode}: {''.join(last)}")
    return seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    raise SystemExit(main())
