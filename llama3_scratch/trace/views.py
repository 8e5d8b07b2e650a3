"""Views of a trace: what each layer would say (the logit lens), where a head attends, how RoPE turns a pair."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.cells import cell_len
from torch import Tensor

from llama3_scratch.compare.tensor_names import (
    ATTEND,
    ATTENTION_WEIGHTS,
    LAYER_OUTPUT,
    MASKED_SCORES,
    ROTATION,
    SCORES,
    ModelTensor,
)
from llama3_scratch.config import Config
from llama3_scratch.model import rms_norm, unembed
from llama3_scratch.stored import Params
from llama3_scratch.text.detokenizer import label
from llama3_scratch.text.tokenizer import Tokenizer
from llama3_scratch.trace.tracer import TracedTensor

MATRIX_TOKENS = 16  # the last tokens of a prompt that a matrix shows
_LISTED_POSITIONS = 4  # the last positions whose likeliest tokens are listed


def lens(
    steps: Sequence[TracedTensor],
    params: Params,
    config: Config,
    tokenizer: Tokenizer,
    ids: Sequence[int],
    *,
    n: int = 3,
    columns: int = 120,
) -> list[str]:
    """The logit lens: a column for each of the prompt's tokens, and below it, layer by layer, the token that the head
    would choose behind it, were the layer the last; then for the last tokens the n likeliest.

    Reads the kept `x_BTD` that each block returned, of the passes that took in a first prompt of these `ids`. Tables of
    more than `columns` characters a line are cut into several, one below the other.
    """
    found = {
        path: likeliest(x_BTD, params, config, n) for path, x_BTD in _joined(steps, LAYER_OUTPUT, len(ids)).items()
    }
    rows = {
        "position": [str(position) for position in range(len(ids))],
        "after": [label(id, tokenizer) for id in ids],
        **{path: [label(id, tokenizer) for id in top[0, :, 0].tolist()] for path, (top, _) in found.items()},
    }
    lines = _table(rows, columns)
    for position in range(max(0, len(ids) - _LISTED_POSITIONS), len(ids)):
        lines += ["", f"the likeliest after {position}, {label(ids[position], tokenizer)}"]
        for path, (top, shares) in found.items():
            each = zip(top[0, position].tolist(), shares[0, position].tolist(), strict=True)
            lines.append(f"{path:10} {'   '.join(f'{label(id, tokenizer)} {share:.1%}' for id, share in each)}")
    return lines


def _table(rows: dict[str, list[str]], columns: int) -> list[str]:
    """The rows under each other, cut into blocks of as many cells as `columns` characters hold."""
    names = max(map(len, rows))
    cells = {name: [_clipped(cell) for cell in row] for name, row in rows.items()}
    widths = [max(map(cell_len, column)) for column in zip(*cells.values(), strict=True)]
    lines: list[str] = []
    first = 0
    while first < len(widths):
        end = first + 1
        while end < len(widths) and names + sum(2 + w for w in widths[first : end + 1]) <= columns:
            end += 1
        lines += [""] if lines else []
        for name, row in cells.items():
            padded = (
                cell + " " * (w - cell_len(cell)) for cell, w in zip(row[first:end], widths[first:end], strict=True)
            )
            lines.append("  ".join([f"{name:{names}}", *padded]).rstrip())
        first = end
    return lines


def _clipped(text: str, width: int = 16) -> str:
    """The text, or its beginning and … where it's longer."""
    return text if len(text) <= width else f"{text[: width - 1]}…"


def likeliest(x_BTD: Tensor, params: Params, config: Config, n: int) -> tuple[Tensor, Tensor]:
    """The n tokens that the head would choose if x_BTD left the last layer, and their probabilities: (B, T, n) each."""
    logits_BTV = unembed(rms_norm(x_BTD, params, "norm", config), params)
    top = logits_BTV.softmax(-1).topk(min(n, config.vocab_size))
    return top.indices, top.values


def attention(steps: Sequence[TracedTensor], layer: int, head: int, tokens: Sequence[str]) -> list[str]:
    """A head's scores before the mask, after it, and its weights: a row a query, a column a key; the last of `tokens`,
    which are the first prompt's."""
    shown = tokens[-MATRIX_TOKENS:]
    begin = len(tokens) - len(shown)
    matrices: dict[str, Tensor] = {}
    for step in steps:
        named = any(tensor.matches(step) for tensor in (SCORES, MASKED_SCORES, ATTENTION_WEIGHTS))
        if step.layer == layer and named and step.value is not None:
            R, T, S = step.value.shape[2:]
            of_head_TS = step.value[0, head // R, head % R].float()
            # A long prompt comes in several passes: a query saw no keys of a later one.
            matrix = matrices.setdefault(step.key, torch.full((len(shown), len(shown)), math.nan))
            past = S - T
            first, end = max(begin, past), min(S, len(tokens))
            if first < end:
                matrix[first - begin : end - begin, : end - begin] = of_head_TS[first - past : end - past, begin:end]
    lines = []
    for key, matrix in matrices.items():
        labels = [_clipped(text, 7) for text in shown]
        lines.append(f"{key}, head {head}")
        labels = [" " * max(1, 8 - cell_len(text)) + text for text in labels]
        lines.append(" " * 9 + "".join(labels))
        for text, row in zip(labels, matrix.tolist(), strict=True):
            lines.append(f"{text} " + "".join(f"{_cell(value):>8}" for value in row))
    return lines


def _cell(value: float) -> str:
    return "" if math.isnan(value) else "-inf" if value == -math.inf else f"{value:.3f}"


def rope_pair(steps: Sequence[TracedTensor], pair: int, length: int) -> list[str]:
    """How far a pair of every head is turned at each position: the angle, and the complex number that turns it."""
    (rotation_BTJ,) = _joined(steps, ROTATION, length).values()
    lines = [f"{'position':>8}  {'angle':>9}  {'cos':>8}  {'sin':>8}"]
    for position, turn in enumerate(rotation_BTJ[0, :, pair].tolist()):
        angle = torch.tensor(turn).angle().item() % (2 * math.pi)
        lines.append(f"{position:8}  {angle:9.4f}  {turn.real:8.4f}  {turn.imag:8.4f}")
    return lines


def needs(step: TracedTensor, *, lens: bool, attention: tuple[int, int] | None, rope_pair: int | None) -> bool:
    """Whether one of these views reads the step's tensor."""
    return (
        (lens and LAYER_OUTPUT.matches(step))
        or (attention is not None and step.layer == attention[0] and step.function == ATTEND and step.kind == "local")
        or (rope_pair is not None and ROTATION.matches(step))
    )


@dataclass
class PlaceShares:
    """How much the heads of a layer attend to some places: the sum over queries of the weight that each gives a place,
    and how many queries there were. The first token has nothing else to attend to and doesn't count."""

    places: dict[str, Tensor]
    queries: int = 0


def with_pass(before: PlaceShares | None, weights_BGRTS: Tensor, length: int) -> PlaceShares:
    """The shares of the passes `before` and of one more, of a first prompt of `length` tokens."""
    weights_HTS = weights_BGRTS[0].flatten(0, 1).float()
    T, S = weights_HTS.shape[1:]
    skipped = max(0, 1 - (S - T))
    weights_HTS = weights_HTS[:, skipped : length - (S - T), :length]
    begin = S - T + skipped
    here = {
        "the first token": weights_HTS[:, :, 0].sum(-1),
        "itself": weights_HTS.diagonal(begin, 1, 2).sum(-1),
        "the one before": weights_HTS.diagonal(begin - 1, 1, 2).sum(-1) if begin else weights_HTS[:, 0, 0] * 0,
    }
    if before is None:
        before = PlaceShares({place: torch.zeros_like(sum_H) for place, sum_H in here.items()})
    places = {place: before.places[place] + here[place] for place in here}
    return PlaceShares(places, before.queries + weights_HTS.shape[1])


def heads(layers: Sequence[PlaceShares]) -> list[str]:
    """Of each layer the head that looks most at each place, with its share."""
    if not layers[0].queries:
        return ["the prompt is a single token, which sees nothing but itself"]
    lines = [f"{'':10}" + "".join(f"{place:>24}" for place in layers[0].places)]
    for index, layer in enumerate(layers):
        means = [sum_H / layer.queries for sum_H in layer.places.values()]
        cells = [f"head {mean_H.argmax().item()} {mean_H.max().item():6.1%}" for mean_H in means]
        lines.append(f"layers.{index:<3}" + "".join(f"{cell:>24}" for cell in cells))
    return lines


def _joined(steps: Sequence[TracedTensor], tensor: ModelTensor, length: int) -> dict[str, Tensor]:
    """By path, that tensor (B, T, …), those of several passes one behind the other: the first prompt's."""
    parts: dict[str, list[Tensor]] = {}
    for step in steps:
        if tensor.matches(step) and step.value is not None:
            parts.setdefault(step.path, []).append(step.value[:1])
    return {path: torch.cat(of_path, dim=1)[:, :length] for path, of_path in parts.items()}
