"""What the tracer costs: passes with it off, on, with statistics and with costs, in turns; medians and their ratios.

    python scripts/bench_trace.py smollm2-135m

prints a line each, and how much longer a pass takes than without.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

import llama3_scratch as l3
from llama3_scratch.checkpoint.names import DEFAULT
from llama3_scratch.system import cli

WAYS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "off": nullcontext,
    "off again": nullcontext,  # what two equal ways differ by is noise
    "on, no statistics": lambda: l3.trace.watch(statistics=False),
    "on": l3.trace.watch,
    "on, with costs": lambda: l3.trace.watch(costs=True),
}


def make_parser() -> cli.Parser:
    parser = cli.script("bench_trace", __doc__)
    parser.add_argument("model", nargs="?", default=DEFAULT, metavar="MODEL", help="(%(default)s)")
    parser.add_argument("--rounds", type=cli.number(int, minimum=1), default=15, metavar="N", help="(%(default)s)")
    return parser


@cli.verb(make_parser)
def main(options: argparse.Namespace) -> int:
    checkpoint, _ = l3.open_model(l3.ModelChoice(options.model), as_floats=True, needs_tokenizer=False)
    config = checkpoint.config
    print(f"{options.model}, {config.n_layers} layers, {torch.get_num_threads()} threads")
    print(f"median ms of {options.rounds} passes of the readable block, and the ratio to the tracer off\n")
    print(f"{'':20}{'1 token after 128':>22}{'128 tokens':>22}")
    cache = l3.Cache(129)
    tokens_BT = torch.arange(129)[None] % config.vocab_size
    with torch.inference_mode():
        l3.forward(tokens_BT[:, :128], checkpoint.params, config, cache=cache)

    def one() -> None:
        cache.rewind(128)
        l3.forward(tokens_BT[:, 128:], checkpoint.params, config, cache=cache, block=l3.block)

    def many() -> None:
        l3.forward(tokens_BT[:, :128], checkpoint.params, config, block=l3.block)

    columns = [timed(work, options.rounds) for work in (one, many)]
    for way in WAYS:
        cells = (f"{column[way] * 1e3:10.1f} ms {column[way] / column['off']:7.2f}×" for column in columns)
        print(f"{way:20}{' '.join(cells)}")
    return 0


@torch.inference_mode()
def timed(work: Callable[[], None], rounds: int) -> dict[str, float]:
    """Median seconds by way, all of them in every round, each round beginning with another."""
    took: dict[str, list[float]] = {way: [] for way in WAYS}
    work()
    names = list(WAYS)
    for turn in range(rounds):
        for way in names[turn % len(names) :] + names[: turn % len(names)]:
            begun = time.perf_counter()
            with WAYS[way]():
                work()
            took[way].append(time.perf_counter() - begun)
    return {way: statistics.median(seconds) for way, seconds in took.items()}


if __name__ == "__main__":
    raise SystemExit(main())
