"""Measure what each form of quantised weights costs: perplexity, and mean KL divergence from the float weights.

    python scripts/quality.py tests/data/wikitext2.txt --noise

runs the first 8,192 tokens of a text, in windows of 512, through SmolLM2 with its weights in each form of `quantize`
and in the blocks that llama.cpp's Python package makes, all turned back into floats: only the weights' rounding counts.
`--through-kernels` multiplies by the forms as stored instead, where the kernels round the activations too. It takes
about a minute a form and 3 GB of memory.

SmolLM2's own weights come from Q4_1 blocks, so that the forms of 4 bits with a min find them nearly exact: `--noise`
measures these fairly, on weights moved by seeded uniform noise of up to half a step of their block.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from llama3_scratch.checkpoint.names import DEFAULT
from llama3_scratch.errors import UsageError
from llama3_scratch.inference.choices import QUANTIZED, ModelChoice
from llama3_scratch.system import cli
from llama3_scratch.system.files import read_text

if TYPE_CHECKING:
    from llama3_scratch.evaluation.scoring import Surprisal

PEERS = ("Q8_0", "Q4_0", "Q4_1")
WINDOW = 512


def make_parser() -> cli.Parser:
    parser = cli.script("quality", __doc__)
    parser.add_argument("text", metavar="TEXT", type=Path, help="a file of UTF-8")
    parser.add_argument("--model", default=DEFAULT, metavar="PATH|NAME", help="float weights (%(default)s)")
    parser.add_argument(
        "--tokens", type=cli.number(int, minimum=WINDOW), default=8192, metavar="N", help="(%(default)s)"
    )
    parser.add_argument("--noise", action="store_true", help="move the weights by up to half a step of 4 bits first")
    parser.add_argument("--through-kernels", action="store_true", help="multiply by the forms as they're stored")
    parser.add_argument(
        "--forms", nargs="+", default=[*QUANTIZED, *PEERS], choices=[*QUANTIZED, *PEERS], metavar="FORM", help="(all)"
    )
    return parser


@cli.verb(make_parser)
def main(options: argparse.Namespace) -> int:
    import torch

    from llama3_scratch.evaluation.scoring import Window, estimate, kl_divergence, log_probabilities, surprisal
    from llama3_scratch.inference.loading import open_model
    from llama3_scratch.params.quantize import dequantize, quantize
    from llama3_scratch.stored import n_bytes, quantised

    checkpoint, _ = open_model(ModelChoice(options.model), as_floats=True)
    tokenizer, config = checkpoint.require_tokenizer(), checkpoint.config
    if quantised(checkpoint.params):
        raise UsageError(f"{options.model}: expected float weights, got integers")
    text = read_text(options.text, "a text in UTF-8")[: 16 * options.tokens]
    ids = tokenizer.encode(text, bos=False, eos=False)[: options.tokens]
    windows = [Window(ids[end - WINDOW : end], WINDOW - 1) for end in range(WINDOW, len(ids) + 1, WINDOW)]
    if not windows:
        raise UsageError(f"{options.text}: {len(ids)} tokens, expected at least {WINDOW}")
    base = _noised(checkpoint.params) if options.noise else dequantize(checkpoint.params, torch.float32)
    wanted = [log_probabilities(window.ids, base, config) for window in windows]

    def perplexity(surprisals: list[Surprisal]) -> float:
        return math.exp(estimate([one.nats / one.tokens for one in surprisals]).mean)

    print("| form | bits a weight | perplexity | mean KL from f32 |\n|---|---|---|---|")
    seen = [surprisal(window, ours_TV, tokenizer) for window, ours_TV in zip(windows, wanted, strict=True)]
    print(f"| f32 | 32 | {perplexity(seen):.4f} | |", flush=True)
    for form in options.forms:
        if form in PEERS:
            params, bits = _peer(base, form), {"Q8_0": 8.5, "Q4_0": 4.5, "Q4_1": 5.0}[form]
        else:
            params = quantize(base, form)
            w1 = {name: tensor for name, tensor in params.items() if name.startswith("layers.0.feed_forward.w1.")}
            bits = 8 * n_bytes(w1) / base["layers.0.feed_forward.w1.weight"].numel()
            params = params if options.through_kernels else dequantize(params, torch.float32)
        seen, divergences = [], []
        for window, wanted_TV in zip(windows, wanted, strict=True):
            ours_TV = log_probabilities(window.ids, params, config)
            seen.append(surprisal(window, ours_TV, tokenizer))
            divergences.append(kl_divergence(window, wanted_TV, ours_TV).divergence_T.mean().item())
        print(f"| {form} | {bits:.3g} | {perplexity(seen):.4f} | {estimate(divergences).mean:.2e} |", flush=True)
    return 0


def _noised(params):
    """The weights of the layers, each moved by up to half of a fifteenth of its group's range."""
    import torch

    generator = torch.Generator().manual_seed(0)
    made = dict(params)
    for name, weight in params.items():
        if weight.ndim == 2 and name.startswith("layers."):
            grouped = weight.float().unflatten(1, (-1, 32))
            step = (grouped.amax(-1, keepdim=True) - grouped.amin(-1, keepdim=True)) / 15
            made[name] = (grouped + (torch.rand(grouped.shape, generator=generator) - 0.5) * step).flatten(1)
    return made


def _peer(params, form: str):
    """The weights in llama.cpp's blocks, embedding and head in Q8_0, turned back into floats."""
    import gguf
    import torch

    made = {}
    for name, weight in params.items():
        made[name] = weight
        if weight.ndim == 2:
            number = gguf.GGMLQuantizationType[form if name.startswith("layers.") else "Q8_0"]
            made[name] = torch.from_numpy(gguf.dequantize(gguf.quantize(weight.float().numpy(), number), number))
    return made


if __name__ == "__main__":
    raise SystemExit(main())
