"""Compare a model, tensor by tensor, with Hugging Face's transformers running the same weights."""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import json
import logging
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from llama3_scratch import cli
from llama3_scratch.errors import MismatchError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from llama3_scratch.checkpoint.load import Checkpoint
    from llama3_scratch.config import Config
    from llama3_scratch.linear import Params

log = logging.getLogger("llama3_scratch")

TOLERANCE = {"float64": 1e-9, "float32": 3e-4}  # standard deviations; 3e-13 and 8e-5 were seen on a trained model
_FREQUENCIES = 1e-6  # relative: transformers has RoPE's frequencies in f32 only
_HEAD_ROWS = 1 << 14  # of the head turned into floats at once


@dataclass(frozen=True)
class Difference:
    """Ours against theirs in one tensor: the worst and the mean |difference|, in standard deviations of theirs."""

    name: str
    worst: float
    mean: float
    std: float
    tolerance: float

    @property
    def diverges(self) -> bool:
        return not self.worst <= self.tolerance


def compare(
    tokens_BT: Tensor, params: Params, config: Config, *, dtype: torch.dtype, tolerance: float
) -> tuple[list[Difference], float]:
    """Every tensor's difference in the order of the forward pass, and the share of tokens with the same likeliest next.

    Both models go on from their own activations. Of theirs one layer exists at a time, made of our weights.
    """
    import torch
    from transformers import LlamaConfig
    from transformers.models.llama import modeling_llama as hf

    from llama3_scratch import model
    from llama3_scratch.checkpoint.hf_out import config_json
    from llama3_scratch.linear import embed

    settings = LlamaConfig.from_dict(config_json(params, config, None), attn_implementation="sdpa")
    freqs_J = model.rope_frequencies(config, torch.float32)
    theirs_J: Tensor = hf.LlamaRotaryEmbedding(settings).inv_freq
    if config.rope_divisors is not None:
        theirs_J = theirs_J / torch.tensor(config.rope_divisors)
    off_J, std = (freqs_J / theirs_J - 1).abs(), theirs_J.std().item()
    found = [Difference("rope frequencies", _finite(off_J.max()), _finite(off_J.mean()), std, _FREQUENCIES)]
    # Their table is in f32; in f64 their side takes our frequencies, which were compared just now.
    wide_J = theirs_J if dtype == torch.float32 else model.rope_frequencies(config, dtype)
    angles_1TJ = torch.arange(tokens_BT.shape[1])[None, :, None].to(dtype) * wide_J
    angles_1TK = torch.cat((angles_1TJ, angles_1TJ), dim=-1)
    tables = angles_1TK.cos(), angles_1TK.sin()

    x_BTD = theirs_BTD = embed(tokens_BT, params, "tok_embeddings", dtype=dtype)

    def both(x_BTD: Tensor, params: Params, name: str, config: Config, **state: Any) -> Tensor:
        nonlocal theirs_BTD
        with _returned_by(model.rms_norm, model.linear, model.block) as ours:
            x_BTD = model.fused_block(x_BTD, params, name, config, **state)
        theirs_BTD, theirs = _their_layer(theirs_BTD, params, name, config, settings, tables)
        found.extend(_difference(step, ours[step], theirs[step], tolerance) for step in theirs)
        return x_BTD

    with torch.inference_mode():
        x_BTD = model.decode(x_BTD, params, config, block=both)
        norm = _norm(hf.LlamaRMSNorm(config.dim, config.norm_eps), params["norm.weight"].to(dtype))
        theirs_BTD = norm(theirs_BTD)
        found.append(_difference("norm", x_BTD, theirs_BTD, tolerance))
        logits_BTV = model.unembed(x_BTD, params)
        theirs_BTV = torch.cat(
            [
                theirs_BTD @ _floats(params, "output", dtype, slice(start, start + _HEAD_ROWS)).T
                for start in range(0, config.vocab_size, _HEAD_ROWS)
            ],
            dim=-1,
        )
        found.append(_difference("output", logits_BTV, theirs_BTV, tolerance))
        top1 = (logits_BTV.argmax(-1) == theirs_BTV.argmax(-1)).double().mean().item()
    return found, top1


def _difference(name: str, ours: Tensor, theirs: Tensor, tolerance: float) -> Difference:
    off, std = (ours - theirs).abs(), theirs.std().item() or 1.0  # a layer of zeros has none
    return Difference(name, _finite(off.max() / std), _finite(off.mean() / std), std, tolerance)


def _finite(value: Tensor) -> float:
    """A float; NaN, which compares with nothing, as infinity."""
    return math.inf if value.isnan() else value.item()


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


def _their_layer(
    x_BTD: Tensor, params: Params, name: str, config: Config, settings: Any, tables: tuple[Tensor, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Transformers' layer `name` on x_BTD: what it returns, and the output of each step by Meta's name."""
    import torch
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    from llama3_scratch.checkpoint.hf import LAYER, halves, neighbours, turned_heads

    with torch.device("meta"):
        layer = LlamaDecoderLayer(settings, 0).eval()
    weights, seen = {}, {}

    def keep(step: str, heads: int | None, module: nn.Module, inputs: Any, out: Tensor) -> None:
        seen[step] = neighbours(out.movedim(-1, 0), heads).movedim(0, -1) if heads else out

    for part, theirs in LAYER.items():
        step = f"{name}.{part}"
        heads = turned_heads(step, config)
        floats = _floats(params, step, x_BTD.dtype)
        weights[f"{theirs}.weight"] = halves(floats, heads) if heads else floats
        layer.get_submodule(theirs).register_forward_hook(functools.partial(keep, step, heads))
    layer.load_state_dict(weights, assign=True)
    for norm in (layer.input_layernorm, layer.post_attention_layernorm):
        _norm(norm, norm.weight)
    out = layer(x_BTD, position_embeddings=tables)
    return out, seen | {name: out}


def _norm(norm: Any, weight: Tensor) -> nn.Module:
    """Transformers' RMSNorm with this weight; in f64 torch's own in its place, since theirs drops to f32."""
    import torch
    import torch.nn.functional as F

    norm.weight = torch.nn.Parameter(weight, requires_grad=False)
    if weight.dtype == torch.float64:
        norm.forward = lambda x: F.rms_norm(x, weight.shape, weight, norm.variance_epsilon)
    return norm


def _floats(params: Params, name: str, dtype: torch.dtype, rows: slice = slice(None)) -> Tensor:
    """Rows of a weight as plain floats, its adapter merged in."""
    from llama3_scratch.linear import stored

    floats = stored(params, name).floats(rows, dtype)
    if f"{name}.adaptor.A.weight" in params:
        down, up = (_floats(params, f"{name}.adaptor.{part}", dtype) for part in "AB")
        floats = floats + params[f"{name}.adaptor.scale"].to(dtype) * (up[rows] @ down)
    return floats


def _parser() -> cli.Parser:
    parser = cli.Parser("parity", __doc__ or "")
    parser.add_argument("model", metavar="MODEL", help="a folder, a .gguf or .bin file, or a downloaded name")
    text = parser.add_mutually_exclusive_group()
    text.add_argument("--prompt", metavar="TEXT", help="the text to compare on")
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
    if not importlib.util.find_spec("transformers"):
        raise UsageError("parity needs Hugging Face's transformers; pip install 'llama3_scratch[parity]'")
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
        print(json.dumps(_as_json(found, top1, options, tokens_BT.shape[1], tolerance), indent=2))
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
    for difference in found:
        parts = difference.name.split(".")
        layers.setdefault(".".join(parts[:2]) if parts[0] == "layers" else difference.name, []).append(difference)
    for name, steps in layers.items():
        most = max(steps, key=lambda step: step.worst / step.tolerance)
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
