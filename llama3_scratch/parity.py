"""Compare a model, tensor by tensor, with Hugging Face's transformers running the same weights."""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from llama3_scratch.compare import hf_layers
from llama3_scratch.compare.difference import Difference, difference
from llama3_scratch.errors import MismatchError, UsageError
from llama3_scratch.system import cli, stdio

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from llama3_scratch.checkpoint.load import Checkpoint
    from llama3_scratch.config import Config
    from llama3_scratch.stored import Params

log = logging.getLogger("llama3_scratch")

TOLERANCE = {"float64": 1e-9, "float32": 3e-4}  # standard deviations; 3e-13 and 8e-5 were seen on a trained model


def compare(
    tokens_BT: Tensor, params: Params, config: Config, *, dtype: torch.dtype, tolerance: float
) -> tuple[list[Difference], float]:
    """Every tensor's difference in the order of the forward pass, and the share of tokens with the same likeliest next.

    Both models go on from their own activations. Of theirs one layer exists at a time, made of our weights.
    """
    import torch

    from llama3_scratch import model
    from llama3_scratch.linear import embed

    other = hf_layers.hf_model(params, config, tokens_BT.shape[1], dtype)
    found = [other.frequencies]
    x_BTD = theirs_BTD = embed(tokens_BT, params, "tok_embeddings", dtype=dtype)

    def both(x_BTD: Tensor, params: Params, name: str, config: Config, **state: Any) -> Tensor:
        nonlocal theirs_BTD
        with _returned_by(model.rms_norm, model.linear, model.block) as ours:
            x_BTD = model.fused_block(x_BTD, params, name, config, **state)
        theirs_BTD, theirs, _ = other.layer(theirs_BTD, name)
        found.extend(difference(step, ours[step], theirs[step], tolerance) for step in theirs)
        return x_BTD

    with torch.inference_mode():
        x_BTD = model.decode(x_BTD, params, config, block=both)
        theirs_BTD = other.norm(theirs_BTD)
        found.append(difference("norm", x_BTD, theirs_BTD, tolerance))
        logits_BTV, theirs_BTV = model.unembed(x_BTD, params), other.logits(theirs_BTD)
        found.append(difference("output", logits_BTV, theirs_BTV, tolerance))
        top1 = (logits_BTV.argmax(-1) == theirs_BTV.argmax(-1)).double().mean().item()
    return found, top1


@contextlib.contextmanager
def _returned_by(*functions: Any) -> Iterator[dict[str, Tensor]]:
    """What the model's functions return within, by the `name` that each call was given.

    Seen from outside, as the interpreter's profiler sees it: the model needs no hooks for this.
    """
    seen: dict[str, Tensor] = {}
    codes = {function.__code__ for function in functions}

    def profile(frame: Any, event: str, value: Any) -> None:
        if event == "return" and frame.f_code in codes:
            seen[frame.f_locals["name"]] = value

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield seen
    finally:
        sys.setprofile(before)


def _parser() -> cli.Parser:
    parser = cli.Parser("parity", __doc__ or "")
    parser.add_argument("model", metavar="MODEL", help="a folder, a .gguf or .bin file, or a downloaded name")
    text = parser.add_mutually_exclusive_group()
    text.add_argument("--prompt", type=cli.text, metavar="TEXT", help="the text to compare on")
    text.add_argument(
        "--length",
        type=cli.number(int, least=1),
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


@cli.verb(_parser)
def main(options: argparse.Namespace) -> int:
    hf_layers.require_transformers("parity")
    import torch

    from llama3_scratch.checkpoint.load import load

    checkpoint = load(options.model)
    tokens_BT = _tokens(options, checkpoint)
    tolerance = options.tolerance or TOLERANCE[options.dtype]
    log.info("%d tokens through %d layers in %s", tokens_BT.shape[1], checkpoint.config.n_layers, options.dtype)
    found, top1 = compare(
        tokens_BT, checkpoint.params, checkpoint.config, dtype=getattr(torch, options.dtype), tolerance=tolerance
    )
    wrong = [difference for difference in found if difference.diverges]
    if options.json:
        stdio.print_json(_as_json(found, top1, options, tokens_BT.shape[1], tolerance), indent=2)
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


def _tokens(options: argparse.Namespace, checkpoint: Checkpoint) -> Tensor:
    import torch

    limit = checkpoint.config.max_seq_len
    if options.prompt is None:
        length = options.length or min(512, limit)
        tokens = torch.randint(checkpoint.config.vocab_size, (length,), generator=torch.Generator().manual_seed(0))
    elif checkpoint.tokenizer is None:
        raise UsageError(f"--prompt: {checkpoint.path} has no tokenizer; give --length for random tokens")
    else:
        tokenizer = checkpoint.tokenizer
        tokens = torch.tensor(tokenizer.encode(options.prompt, bos=tokenizer.add_bos, eos=False))
    if not 1 <= len(tokens) <= limit:
        raise UsageError(f"expected 1 to {limit} tokens, which is the model's context, got {len(tokens)}")
    return tokens[None]


def _as_json(
    found: list[Difference], top1: float, options: argparse.Namespace, length: int, tolerance: float
) -> dict[str, Any]:
    tensors = [asdict(difference) for difference in found]
    for tensor in tensors:  # JSON has no infinity
        tensor |= {key: None for key in ("worst", "mean", "std") if not math.isfinite(tensor[key])}
    return {
        "model": options.model,
        "dtype": options.dtype,
        "length": length,
        "tolerance": tolerance,
        "first_divergent": next((difference.name for difference in found if difference.diverges), None),
        "top1": top1,
        "tensors": tensors,
    }


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
        most = max(steps, key=lambda one: one.worst / one.tolerance)
        where = most.name.removeprefix(f"{name}.") if most is not steps[-1] else ""
        style = "bold red" if most.diverges else None
        last = steps[-1]
        label = {"output": "logits"}.get(name, name)
        table.add_row(label, f"{most.worst:.2e}", where, f"{last.mean:.2e}", f"{last.std:.3g}", style=style)
    console = Console(markup=False, highlight=False)
    console.print(table)
    console.print(f"|difference| in standard deviations; same likeliest token: {top1:.1%}")


if __name__ == "__main__":
    raise SystemExit(main())
