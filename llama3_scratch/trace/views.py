"""Looks at a trace from one side: what each layer would say, where a head looks, how RoPE turns a pair."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from llama3_scratch.config import Config
from llama3_scratch.linear import Params
from llama3_scratch.model import rms_norm, unembed
from llama3_scratch.text import piece
from llama3_scratch.tokenizer import Tokenizer
from llama3_scratch.trace.tracer import Step

WIDTH = 16  # the last tokens of a prompt that a matrix shows


def lens(steps: Sequence[Step], params: Params, config: Config, tokenizer: Tokenizer) -> list[str]:
    """The logit lens: after each layer, the token that the head would choose at every position, were it the last.

    Reads the kept `x_BTD` that each block of the first pass returned; shows the first prompt of a batch.
    """
    lines = []
    for step in _first_pass(steps):
        if step.function == "block" and step.kind == "return" and step.value is not None:
            ids, shares = likeliest(step.value[:1], params, config, 3)
            chosen = " ".join(repr(_text(id, tokenizer)) for id in ids[0, :, 0].tolist())
            last = ", ".join(
                f"{_text(id, tokenizer)!r} {share:.1%}"
                for share, id in zip(shares[0, -1].tolist(), ids[0, -1].tolist(), strict=True)
            )
            lines.append(f"{step.path:10} {chosen}\n{'':10} last: {last}")
    return lines


def likeliest(x_BTD: Tensor, params: Params, config: Config, n: int) -> tuple[Tensor, Tensor]:
    """The n tokens that the head would choose if x_BTD left the last layer, and their probabilities: (B, T, n) each."""
    logits_BTV = unembed(rms_norm(x_BTD, params, "norm", config), params)
    top = logits_BTV.softmax(-1).topk(min(n, config.vocab_size))
    return top.indices, top.values


def attention(steps: Sequence[Step], layer: int, head: int, tokens: Sequence[str]) -> list[str]:
    """A head's scores before the mask, after it, and its weights: a row a query, a column a key; the last tokens."""
    lines = []
    for step in _first_pass(steps):
        named = step.name in ("scores_BGRTS", "masked_BGRTS", "weights_BGRTS")
        if step.layer == layer and named and step.kind == "local" and step.value is not None:
            R = step.value.shape[2]
            matrix_TS = step.value[0, head // R, head % R].float()[-WIDTH:, -WIDTH:]
            labels = [repr(text)[1:-1][:7] for text in tokens][-WIDTH:]
            lines.append(f"{step.key}, head {head}")
            lines.append(" " * 9 + "".join(f"{label:>8}" for label in labels))
            for label, row in zip(labels, matrix_TS.tolist(), strict=True):
                lines.append(
                    f"{label:>8} " + "".join(f"{'-inf' if value == -math.inf else f'{value:.3f}':>8}" for value in row)
                )
    return lines


def rope_pair(steps: Sequence[Step], pair: int) -> list[str]:
    """How far a pair of every head is turned at each position: the angle, and the complex number that turns it."""
    rotation = next(step for step in _first_pass(steps) if step.name == "rotation_BTJ" and step.value is not None)
    assert rotation.value is not None
    turns_T = rotation.value[0, :, pair]
    lines = [f"{'position':>8}  {'angle':>9}  {'cos':>8}  {'sin':>8}"]
    for position, turn in enumerate(turns_T.tolist()):
        angle = torch.tensor(turn).angle().item() % (2 * math.pi)
        lines.append(f"{position:8}  {angle:9.4f}  {turn.real:8.4f}  {turn.imag:8.4f}")
    return lines


def needs(step: Step, *, lens: bool, attention: tuple[int, int] | None, rope_pair: int | None) -> bool:
    """Whether one of these views reads the step's tensor."""
    return (
        (lens and step.function == "block" and step.kind == "return")
        or (attention is not None and step.layer == attention[0] and step.function == "attend" and step.kind == "local")
        or (rope_pair is not None and step.name == "rotation_BTJ" and step.function == "decode")
    )


def looks(weights_BGRTS: Tensor) -> dict[str, Tensor]:
    """Where the heads of a layer look: the mean weight that a query of the first prompt gives each place, looks_H.

    The first token has nothing else to look at and doesn't count.
    """
    weights_HTS = weights_BGRTS[0].flatten(0, 1).float()[:, 1:]
    T, S = weights_HTS.shape[1:]
    return {
        "the first token": weights_HTS[:, :, 0].mean(-1),
        "itself": weights_HTS.diagonal(S - T, 1, 2).mean(-1),
        "the one before": weights_HTS.diagonal(S - T - 1, 1, 2).mean(-1),
    }


def heads(layers: Sequence[dict[str, Tensor]]) -> list[str]:
    """Of each layer the head that looks most at each place, with its share; `layers` are `looks` in order."""
    if layers[0]["itself"].isnan().any():
        return ["the prompt is a single token, which sees nothing but itself"]
    lines = [f"{'':10}" + "".join(f"{place:>24}" for place in layers[0])]
    for index, layer in enumerate(layers):
        most = (f"head {look_H.argmax().item()} {look_H.max().item():6.1%}" for look_H in layer.values())
        lines.append(f"layers.{index:<3}" + "".join(f"{cell:>24}" for cell in most))
    return lines


def _first_pass(steps: Sequence[Step]) -> list[Step]:
    return [step for step in steps if step.call == 0]


def _text(id: int, tokenizer: Tokenizer) -> str:
    return piece(id, tokenizer).decode(errors="replace")
