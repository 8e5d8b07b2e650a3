"""A model beside Hugging Face's transformers on the same weights, tensor by tensor."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from llama3_scratch.compare import hf_layers
from llama3_scratch.compare.difference import Difference, difference
from llama3_scratch.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from llama3_scratch.checkpoint.load import Checkpoint
    from llama3_scratch.config import Config
    from llama3_scratch.stored import Params

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


def tokens_of(checkpoint: Checkpoint, prompt: str | None = None, length: int | None = None) -> Tensor:
    """What is compared on: a prompt's tokens, or `length` random ones (512, or the context): tokens_BT, one row."""
    import torch

    limit = checkpoint.config.max_seq_len
    if prompt is None:
        length = length or min(512, limit)
        tokens = torch.randint(checkpoint.config.vocab_size, (length,), generator=torch.Generator().manual_seed(0))
    elif checkpoint.tokenizer is None:
        raise UsageError(f"{checkpoint.path} has no tokenizer for `prompt`; give `length` for random tokens")
    else:
        tokenizer = checkpoint.tokenizer
        tokens = torch.tensor(tokenizer.encode(prompt, bos=tokenizer.add_bos, eos=False))
    if not 1 <= len(tokens) <= limit:
        raise UsageError(f"expected 1 to {limit} tokens, which is the model's context, got {len(tokens)}")
    return tokens[None]


def as_json(found: list[Difference], top1: float, **about: Any) -> dict[str, Any]:
    """What `compare` found, as JSON holds it, behind what it was asked."""
    tensors = [asdict(difference) for difference in found]
    for tensor in tensors:  # JSON has no infinity
        tensor |= {key: None for key in ("worst", "mean", "std") if not math.isfinite(tensor[key])}
    return {
        **about,
        "first_divergent": next((difference.name for difference in found if difference.diverges), None),
        "top1": top1,
        "tensors": tensors,
    }
