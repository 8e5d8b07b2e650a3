"""Measure engines on models in turns, each in a process of its own."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llama3_scratch.benchmark.environment import about
from llama3_scratch.benchmark.peers import BYTES, HF_BYTES, PEERS, llama_cpp_form, read_bytes
from llama3_scratch.benchmark.report import (
    OURS,
    EngineResult,
    Trial,
    report,
)
from llama3_scratch.benchmark.worker import Worker
from llama3_scratch.config import OFFICIAL, Config, official_name
from llama3_scratch.errors import FileError, Llama3Error, UsageError
from llama3_scratch.inference.choices import ModelChoice
from llama3_scratch.inference.loading import find_model
from llama3_scratch.system.fields import Checked, text, whole

log = logging.getLogger("llama3_scratch")


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


@dataclass(frozen=True)
class BenchChoice(Checked):
    """What is measured: prompts of `pp` tokens and `tg` new ones after `contexts`, of models and shapes in these forms
    of weights and bits of cache, `repeats` times and `batch` prompts at once, beside the peers of `against`."""

    models: tuple[str, ...] = ()  # folders, files or names; with no shape either, the default model
    shape: tuple[str, ...] = ()  # official shapes to fill with random weights
    forms: tuple[str, ...] = ()  # of the weights; none: as `generate` runs them
    device: str = text("cpu")
    dtype: str = text("auto")
    kv: tuple[int | None, ...] = (None,)  # bits of the cache; None: the activations' dtype
    batch: tuple[int, ...] = (1,)
    pp: int = whole(512, minimum=0)  # tokens of a prompt, 0: none
    tg: int = whole(128, minimum=0)  # new tokens, 0: none
    contexts: tuple[int, ...] = (0,)  # tokens before the new ones
    repeats: int = whole(5, minimum=1)
    threads: int | None = whole(None, minimum=1)  # None: torch's own number
    against: tuple[str, ...] = ()
    llama_bench: str | None = text()  # llama.cpp's own program in the place of its wheel

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.pp and not self.tg:
            raise UsageError("`pp=0` and `tg=0` leave nothing to measure")
        if unknown := [peer for peer in self.against if peer not in PEERS]:
            raise UsageError(f"`against` {unknown[0]}: expected {' or '.join(PEERS)}")
        if self.llama_bench:
            if "llama.cpp" not in self.against:
                raise UsageError("`llama_bench` goes with `against=llama.cpp`")
            if shutil.which(self.llama_bench) is None:
                raise FileError(
                    f"`llama_bench` {self.llama_bench}: no such program; scripts/native_llama_bench.sh builds it"
                )
        if unknown := [name for name in self.shape if official_name(name) is None]:
            raise UsageError(f"`shape` {unknown[0]}: expected one of {', '.join(OFFICIAL)}")
        from llama3_scratch.benchmark.ours import MEASURED_FORMS, SLOTS

        if unknown := [form for form in self.forms if form not in MEASURED_FORMS]:
            raise UsageError(f"`forms` {unknown[0]}: expected some of {', '.join(MEASURED_FORMS)}")
        if others := [bits for bits in self.kv if bits not in (None, *SLOTS)]:
            raise UsageError(f"`kv` {others[0]}: a cache is kept in {', '.join(map(str, SLOTS))} bits")


def subjects_of(choice: BenchChoice) -> list[Subject]:
    """What is to be measured, as `generate` finds it; other forms of weights are made of floats."""
    real = []
    for given in choice.models or (() if choice.shape else (None,)):
        model = ModelChoice(model=given, device=choice.device, dtype=choice.dtype)
        path, _ = find_model(model, as_floats=bool(choice.forms))
        real.append(Subject(given or path.name, str(path), None, given))
    return real + [
        Subject(f"{shape} (random)", None, shape) for shape in filter(None, map(official_name, choice.shape))
    ]


def measured(subjects: Sequence[Subject], choice: BenchChoice, command: str) -> dict:
    """Measure everything that the options ask for, all engines and forms of a model and batch in turns."""
    tests = [Trial(choice.pp)] if choice.pp else []
    tests += [Trial(choice.tg, context) for context in choice.contexts] if choice.tg else []
    peers = [peer for peer in choice.against if (peer == "llama.cpp" and choice.llama_bench) or _installed(peer)]
    rows: list[EngineResult] = []
    roofs: list[dict[str, float]] = []
    with contextlib.closing(Worker("roof", threads=choice.threads, device=choice.device)) as roof:
        threads = roof("about")["threads"]
        for subject in subjects:
            for batch in choice.batch:
                with tempfile.TemporaryDirectory(prefix="bench-") as folder, contextlib.ExitStack() as stack:
                    group = list(_group(subject, batch, threads, peers, tests, Path(folder), choice, stack))
                    for repeat in range(choice.repeats):
                        roofs.append(roof("measure"))
                        _turn(group, tests)
                        log.info("%s, batch %d: run %d of %d", subject.name, batch, repeat + 1, choice.repeats)
                    for row, worker in group:
                        row.peak_bytes = worker("peak")
                        rows.append(row)
    return report(rows, tests, roofs, **about(command, choice.repeats), threads=threads)


def _turn(group: list[tuple[EngineResult, Worker]], tests: Sequence[Trial]) -> None:
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
        log.warning("`against` %s needs the package %s, which isn't installed; it is left out", peer, package)
        return False
    return True


def _group(
    subject: Subject,
    batch: int,
    threads: int,
    peers: Sequence[str],
    tests: Sequence[Trial],
    folder: Path,
    choice: BenchChoice,
    stack: contextlib.ExitStack,
) -> Iterator[tuple[EngineResult, Worker]]:
    """Start a process for every engine and form; each waits for its turns until `stack` closes."""
    slots = max(test.tokens + (test.context or 0) + 1 for test in tests)
    common = {"batch": batch, "slots": slots, "threads": threads}
    forms: list[str] = []
    for form in choice.forms or (None,):
        for kv in choice.kv:
            log.info("%s: loading %s", subject.name, form or "the weights as `generate` runs them")
            how = {"form": form, "kv": kv, "device": choice.device, "dtype": choice.dtype}
            worker = stack.enter_context(contextlib.closing(Worker("ours", **subject.source, **how, **common)))
            about = worker("about")
            config = Config(**about["sizes"])
            forms.append(about["form"])
            numbers = {name: about[name] for name in ("load_s", "read_bytes", "slot_bytes", "dtype")}
            yield EngineResult(subject.name, OURS, about["form"], about["kv"], batch, config, **numbers), worker
    for peer in peers:
        kinds = list(HF_BYTES) if peer == "hf" else list(dict.fromkeys(map(llama_cpp_form, forms)))
        for kind in kinds:
            log.info("%s: loading %s %s", subject.name, peer, kind)
            try:
                worker = stack.enter_context(
                    contextlib.closing(
                        _peer(peer, kind, subject, config.vocab_size, common, folder, choice.llama_bench)
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
            row = EngineResult(
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
