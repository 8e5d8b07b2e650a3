"""What `bench` found: rates, the limits they are held against, ratios of medians; as a table, as JSON, as a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from llama3_scratch.benchmark.peers import llama_cpp_form
from llama3_scratch.config import Config
from llama3_scratch.errors import FileError
from llama3_scratch.system.writing import unwritable

OURS = "llama3_scratch"
Rates = dict[str, float]  # "bandwidth" in bytes/s, and FLOP/s by type: "f32", "bf16", "int8"


@dataclass(frozen=True)
class Trial:
    """One thing to time: `tokens` of each prompt, or as many new ones after `context` tokens."""

    tokens: int
    context: int | None = None  # None: a prompt's

    @property
    def name(self) -> str:
        if self.context is None:
            return f"pp{self.tokens}"
        return f"tg{self.tokens}" + (f"@{self.context}" if self.context else "")


@dataclass
class EngineResult:
    """One engine with one form of weights, one kind of cache and one size of batch; `rates` are tokens/s by test."""

    model: str
    engine: str
    form: str
    kv: int
    batch: int
    config: Config
    load_s: float
    read_bytes: int
    slot_bytes: int
    dtype: str | None = None  # of our activations
    build: str | None = None  # of llama.cpp
    peak_bytes: int = 0
    rates: dict[str, list[float]] = field(default_factory=dict)

    def limit(self, test: Trial, machine: Rates) -> float:
        """Tokens/s that this machine can't exceed: by its FLOP/s for a prompt, by its bytes/s for new tokens.

        Weights in fewer bits may be multiplied in any type that is at least as wide, so the fastest of these counts.
        """
        if test.context is None:
            flops = max(machine[kind] for kind in _types(self.form) if kind in machine)
            return test.tokens * self.batch * flops / prefill_flops(self.config, test.tokens, self.batch)
        return self.batch * machine["bandwidth"] / step_bytes(self.read_bytes, self.slot_bytes, test, self.batch)


def _types(form: str) -> tuple[str, ...]:
    """The types that weights in this form can be multiplied in without loss; integers' inputs are rounded to int8."""
    layers = form.lower().partition(",")[0]
    if layers in ("f32", "f64"):
        return ("f32",)
    return ("f32", "bf16") if layers in ("bf16", "f16") else ("f32", "bf16", "int8")


def prefill_flops(config: Config, tokens: int, batch: int) -> int:
    """FLOPs of `tokens` tokens of each prompt: all layers, the head once."""
    return batch * (config.layer_flops(tokens) + 2 * config.dim * config.vocab_size)


def step_bytes(read_bytes: int, slot_bytes: int, test: Trial, batch: int) -> float:
    """Bytes read for one step of all prompts: the weights once, each prompt's cache as long as it is on average."""
    assert test.context is not None
    return read_bytes + batch * slot_bytes * (test.context + (test.tokens + 1) / 2)


def report(rows: Sequence[EngineResult], tests: Sequence[Trial], roofs: Sequence[Rates], **about: Any) -> dict:
    """All that was found, as JSON holds it. The machine's limits are medians of those measured between the runs."""
    machine = {name: median(roof[name] for roof in roofs) for name in roofs[0]}
    row_dicts = []
    for row in rows:
        found = {}
        for test in tests:
            if rates := row.rates.get(test.name):
                limit = row.limit(test, machine)
                found[test.name] = {
                    "tokens": test.tokens,
                    "context": test.context,
                    "samples": rates,
                    "median": median(rates),
                    "mean": mean(rates),
                    "sd": stdev(rates) if len(rates) > 1 else 0.0,
                    "limit": limit,
                    "percent_of_limit": 100 * median(rates) / limit,
                    "ratios": dict(_ratios(row, rows, test)) if row.engine == OURS else {},
                }
        row_dicts.append(
            {
                **{name: getattr(row, name) for name in ("model", "engine", "form", "dtype", "kv", "batch")},
                **{name: getattr(row, name) for name in ("load_s", "peak_bytes", "read_bytes", "slot_bytes")},
                "tests": found,
            }
        )
    builds = {row.engine: row.build for row in rows if row.build}
    return about | {
        "builds": builds,
        "machine": machine | {"samples": list(roofs)},
        "tests": [test.name for test in tests],
        "rows": row_dicts,
    }


def _ratios(row: EngineResult, rows: Sequence[EngineResult], test: Trial) -> Iterator[tuple[str, float]]:
    """Our median over that of llama.cpp's twin form, and over transformers' best, on the same model and batch."""
    for engine in ("llama.cpp", "hf"):
        peers = [
            other
            for other in rows
            if (other.engine, other.model, other.batch) == (engine, row.model, row.batch)
            and (engine == "hf" or other.form == llama_cpp_form(row.form))
            and other.rates.get(test.name)
        ]
        if peers:
            best = max(peers, key=lambda peer: median(peer.rates[test.name]))
            yield f"{engine} {best.form}", median(row.rates[test.name]) / median(best.rates[test.name])


def markdown(found: dict) -> str:
    """The table, mean ± sd as llama-bench prints it, and the machine beneath it."""
    tests = found["tests"]
    heads = ["model", "engine", "weights", "KV bits", "batch", "load s", "peak MB"]
    heads += [head for test in tests for head in (f"{test} tok/s", "% of limit")]
    compared = any(cell["ratios"] for row in found["rows"] for cell in row["tests"].values())
    lines = [heads + (["ours / peer"] if compared else [])]
    lines.append(["---"] * 3 + ["---:"] * (len(heads) - 3) + (["---"] if compared else []))
    for row in found["rows"]:
        cells = [row["model"], row["engine"], row["form"], row["kv"], row["batch"]]
        cells += [f"{row['load_s']:.2f}", f"{row['peak_bytes'] / 1e6:.0f}"]
        for test in tests:
            cell = row["tests"].get(test)
            cells += [f"{cell['mean']:.1f} ± {cell['sd']:.1f}", f"{cell['percent_of_limit']:.0f}"] if cell else ["", ""]
        lines.append([*map(str, cells), *([_compared(row)] if compared else [])])
    machine = found["machine"]
    flops = ", ".join(f"{machine[kind] / 1e9:.0f} in {kind}" for kind in ("f32", "bf16", "int8") if kind in machine)
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    dtypes = ", ".join(dict.fromkeys(row["dtype"] for row in found["rows"] if row["dtype"]))
    builds = "".join(f"\n{engine}: {build}" for engine, build in found["builds"].items())
    new = [cell for row in found["rows"] for cell in row["tests"].values() if cell["context"] is not None]
    if any(cell["percent_of_limit"] > 100 for cell in new):
        builds = f"\nover 100 % of the limit for new tokens: weights in the processor's cache aren't read again{builds}"
    return (
        f"{table}\n\n{found['cpu']}, {found['threads']} threads, which read {machine['bandwidth'] / 1e9:.1f} GB/s "
        f"and do {flops} GFLOP/s; {found['date']}; {_runs(found['repeats'])}; "
        f"ratios and % of limit are of medians; our activations are in {dtypes}{builds}"
    )


def _runs(repeats: int) -> str:
    return "1 run" if repeats == 1 else f"{repeats} runs, in turns"


def _compared(row: dict) -> str:
    by_peer: dict[str, list[str]] = {}
    for test, cell in row["tests"].items():
        for peer, ratio in cell["ratios"].items():
            by_peer.setdefault(peer, []).append(f"{test} {ratio:.2f}×")
    return "; ".join(f"{peer}: {', '.join(ratios)}" for peer, ratios in by_peer.items())


def draw(found: dict, path: Path) -> None:
    """Write a picture: new tokens/s by the tokens before them, and by the batch; all prompts' tokens are counted."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    points = [
        (f"{row['model']} {row['engine']} {row['form']}, KV {row['kv']}", row["batch"], cell["context"], cell["median"])
        for row in found["rows"]
        for cell in row["tests"].values()
        if cell["context"] is not None
    ]
    batch, context = min(point[1] for point in points), min(point[2] for point in points)
    # (label of the axis, the places on it, of each line the rates there)
    by_context = (
        f"tokens in the cache (batch {batch})",
        [(name, c, rate) for name, b, c, rate in points if b == batch],
    )
    by_batch = (
        f"batch ({context} tokens in the cache)",
        [(name, b, rate) for name, b, c, rate in points if c == context],
    )
    panels = [(label, seen) for label, seen in (by_context, by_batch) if len({at for _, at, _ in seen}) > 1]
    panels = panels or [by_context]
    figure, axes = pyplot.subplots(1, len(panels), figsize=(5 * len(panels), 4), sharey=True, squeeze=False)
    for (label, seen), panel in zip(panels, axes[0], strict=True):
        for line in dict.fromkeys(name for name, _, _ in seen):
            panel.plot(
                *zip(*sorted((at, rate) for name, at, rate in seen if name == line), strict=True), "o-", label=line
            )
        panel.set(xlabel=label, ylim=(0, None), xticks=sorted({at for _, at, _ in seen}))
    axes[0][0].set_ylabel("new tokens/s, all prompts")
    axes[0][-1].legend(fontsize=7)
    try:
        figure.savefig(path, format="svg", metadata={"Date": None}, bbox_inches="tight")
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        pyplot.close(figure)


def startup_markdown(found: dict) -> str:
    lines = ["| command | seconds | median | peak MB |", "|---|---:|---:|---:|"]
    for row in found["rows"]:
        seconds = row["seconds"]
        spread = stdev(seconds) if len(seconds) > 1 else 0.0
        lines.append(
            f"| `{row['command']}` | {mean(seconds):.2f} ± {spread:.2f} | {median(seconds):.2f} "
            f"| {row['peak_bytes'] / 1e6:.0f} |"
        )
    return "\n".join(lines) + f"\n\n{found['cpu']}; {found['date']}; {_runs(found['repeats'])}"


def require_matplotlib(path: Path) -> None:
    """Raise FileError, before anything is measured, where the picture couldn't be drawn."""
    import importlib.util

    if importlib.util.find_spec("matplotlib") is None:
        raise FileError(f'{path}: is drawn by matplotlib, which is missing: pip install -e ".[pictures]"')
    if not path.parent.is_dir():
        raise FileError(f"{path}: there is no folder {path.parent} to write it in")
