"""Try several settings of scripts/pretrain.py on the same data, and rank them by the loss of what was held out.

    python scripts/search_pretraining.py data/stories --out runs/search --try lr=1e-3,3e-3 --try layers=4,6 --steps 200

runs every combination in a folder of its own. Any option of pretrain.py may be tried; one with a single value
(--try dtype=bf16), or without one (--try untied), is the same in all runs. A search that was stopped goes on with the
same command: what is done isn't done again.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import random
import subprocess
import sys
from pathlib import Path

from llama3_scratch.errors import Llama3Error, UsageError
from llama3_scratch.system import cli
from llama3_scratch.training import flags

log = logging.getLogger("llama3_scratch")


def _tried(text: str) -> tuple[str, list[str]]:
    name, equals, values = text.partition("=")
    chosen = values.split(",")
    if not name or (equals and not all(chosen)):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE,VALUE… or NAME, got {text!r}")
    return name, chosen


def make_parser() -> cli.Parser:
    parser = cli.script("search_pretraining", __doc__)
    count = cli.number(int, minimum=1)
    parser.add_argument("data", type=Path, metavar="DATA", help="a folder that scripts/prepare_data.py wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder of the runs' folders")
    parser.add_argument(
        "--try",
        type=_tried,
        action="append",
        required=True,
        dest="tries",
        metavar="NAME=V,V…",
        help="an option of pretrain.py and its values; several of these make a grid",
    )
    flags.add_flags(parser, helps={"steps": "of each run (%(default)s)"}, steps=200)
    parser.add_argument("--most", type=count, metavar="N", help="only N combinations, picked by chance (all)")
    flags.add_flags(parser, helps={"seed": "(%(default)s)"}, seed=0)
    return parser


@cli.verb(make_parser)
def main(options: argparse.Namespace) -> int:
    names = [name for name, _ in options.tries]
    if len(set(names)) < len(names):
        raise UsageError("an option is tried twice; give all its values in one --try")
    grid = list(itertools.product(*(values for _, values in options.tries)))
    if options.most is not None and options.most < len(grid):
        grid = random.Random(options.seed).sample(grid, options.most)
    ranked = []
    for number, values in enumerate(grid, start=1):
        chosen = dict(zip(names, values, strict=True))
        folder = options.out / ",".join(f"{name}={value}" if value else name for name, value in chosen.items())
        if _held_out(folder, options.steps) is None:
            log.info("%d of %d: %s", number, len(grid), folder.name)
            code = _run(options, chosen, folder)
            if code not in (0, Llama3Error.exit_code):  # a loss that is no number is a result too
                return code
        ranked.append((_held_out(folder, options.steps) or float("nan"), values))
    if all(loss != loss for loss, _ in ranked):
        raise UsageError(f"no run has a loss of held-out text; prepare {options.data} with more --validation?")
    ranked.sort(key=lambda one: (one[0] != one[0], one[0]))  # what is no number comes last
    widths = [max(map(len, [name, *values])) for name, values in options.tries]
    print("  ".join([*(f"{name:>{width}}" for name, width in zip(names, widths, strict=True)), "held-out loss"]))
    for loss, values in ranked:
        shown = [f"{value:>{width}}" for value, width in zip(values, widths, strict=True)]
        print("  ".join([*shown, f"{loss:13.4f}"]))
    return 0


def _run(options: argparse.Namespace, chosen: dict[str, str], folder: Path) -> int:
    """One run's exit code."""
    from llama3_scratch.training.checkpoints import newest

    settings = [part for name, value in chosen.items() for part in (f"--{name}", value) if part]
    command = [sys.executable, str(Path(__file__).with_name("pretrain.py")), str(options.data), "--out", str(folder)]
    command += ["--steps", str(options.steps), "--seed", str(options.seed), *settings]
    if folder.exists() and newest(folder):
        command.append("--resume")
    return subprocess.run(command, stdout=subprocess.DEVNULL).returncode


def _held_out(folder: Path, steps: int) -> float | None:
    """The held-out loss behind the last of a run's steps; None where it hasn't come there."""
    from llama3_scratch.training.record import FILE, read

    if not (folder / FILE).exists():
        return None
    lines = list(read(folder / FILE))
    return next((line["validation"] for line in lines if "validation" in line and line["step"] == steps), None)


if __name__ == "__main__":
    raise SystemExit(main())
