"""Compare a model, tensor by tensor, with Hugging Face's transformers running the same weights."""

from __future__ import annotations

import argparse
import logging

from llama3_scratch.compare import hf_layers
from llama3_scratch.compare.difference import Difference
from llama3_scratch.compare.parity import TOLERANCE, as_json, compare, tokens_of
from llama3_scratch.errors import MismatchError
from llama3_scratch.system import cli, stdio

log = logging.getLogger("llama3_scratch")


def make_parser() -> cli.Parser:
    parser = cli.Parser("parity", __doc__ or "")
    parser.add_argument("model", metavar="MODEL", help="a folder, a .gguf or .bin file, or a downloaded name")
    text = parser.add_mutually_exclusive_group()
    text.add_argument("--prompt", type=cli.text, metavar="TEXT", help="the text to compare on")
    text.add_argument(
        "--length",
        type=cli.number(int, minimum=1),
        metavar="N",
        help="compare on N random tokens (512, unless the model's context is shorter)",
    )
    parser.add_argument(
        "--dtype",
        choices=TOLERANCE,
        default="float64",
        help="of activations and sums on both sides (%(default)s); float64 sees every mistake, float32 most, faster",
    )
    parser.add_argument(
        "--tolerance",
        type=cli.number(float, above=0),
        metavar="X",
        help="largest difference, in standard deviations of the tensor ("
        + ", ".join(f"{value:g} in {dtype}" for dtype, value in TOLERANCE.items())
        + ")",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object with every tensor instead of a table")
    return parser


@cli.verb(make_parser)
def main(options: argparse.Namespace) -> int:
    hf_layers.require_transformers("parity")
    import torch

    from llama3_scratch.checkpoint.load import load

    checkpoint = load(options.model)
    tokens_BT = tokens_of(checkpoint, options.prompt, options.length)
    tolerance = options.tolerance or TOLERANCE[options.dtype]
    log.info("%d tokens through %d layers in %s", tokens_BT.shape[1], checkpoint.config.n_layers, options.dtype)
    found, top1 = compare(
        tokens_BT, checkpoint.params, checkpoint.config, dtype=getattr(torch, options.dtype), tolerance=tolerance
    )
    wrong = [difference for difference in found if difference.diverges]
    if options.json:
        about = {"model": options.model, "dtype": options.dtype, "length": tokens_BT.shape[1], "tolerance": tolerance}
        stdio.print_json(as_json(found, top1, **about), indent=2)
    else:
        _print_table(found, top1)
    if wrong:
        first = wrong[0]
        raise MismatchError(
            f"{checkpoint.path}: {first.name} is the first tensor that differs from transformers', by "
            f"{first.worst:.3g} standard deviations (tolerance {first.tolerance:g}); "
            f"{len(wrong)} of {len(found)} tensors do"
        )
    return 0


def _print_table(found: list[Difference], top1: float) -> None:
    """A row a layer: the tensor in it that differs most, and what the layer gives to the next."""
    from rich.console import Console
    from rich.table import Table

    table = Table("", "worst", "in", "mean", "std", box=None, pad_edge=False)
    layers: dict[str, list[Difference]] = {}
    for step in found:
        parts = step.name.split(".")
        layers.setdefault(".".join(parts[:2]) if parts[0] == "layers" else step.name, []).append(step)
    for name, steps in layers.items():
        largest = max(steps, key=lambda one: one.worst / one.tolerance)
        where = largest.name.removeprefix(f"{name}.") if largest is not steps[-1] else ""
        style = "bold red" if largest.diverges else None
        last = steps[-1]
        label = {"output": "logits"}.get(name, name)
        table.add_row(label, f"{largest.worst:.2e}", where, f"{last.mean:.2e}", f"{last.std:.3g}", style=style)
    console = Console(markup=False, highlight=False)
    console.print(table)
    console.print(f"|difference| in standard deviations; same likeliest token: {top1:.1%}")


if __name__ == "__main__":
    raise SystemExit(main())
