"""Weights in fewer bits: params → params. What each form means is told in `stored`.

A group of C numbers that share a scale is a column of x_CN, N groups side by side, so that every step below is one
operation on long rows. Scales are rounded to their f16 first; integers are then chosen for the rounded scale.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from llama3_scratch.errors import UsageError
from llama3_scratch.stored import (
    NF4_GROUP,
    NF4_LEVELS,
    TILE_COLUMNS,
    TILE_ROWS,
    Floats,
    Params,
    quantised,
    stored,
    tiled,
    tiled_values,
    units,
)
from llama3_scratch.system.files import listed

log = logging.getLogger("llama3_scratch")

PIECE_ELEMENTS = 1 << 18  # of a weight that are worked on at once: 1 MB as f32, which stays in a core's cache

# To try for 4 bits: ranges as parts of a group's own, and, without a min, of how many steps its largest number is made.
# What loses least of the weights isn't what loses least of what the model says, which scripts/quality.py measures.
_TRIED_RANGES = (1.0, 0.94, 0.88)
_TRIED_STEPS = (-8.25, -8.0, -7.75)


def int8_row(x_CN: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """int8 with one f32 scale: 8 bits a weight."""
    scales_N = x_CN.abs().amax(0) / 127
    return _nearest(x_CN, scales_N, -127, 127).char(), {"scales": scales_N}


def int8(x_CN: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """int8 with an f16 scale for 32: 8.5 bits a weight, as GGUF's Q8_0."""
    scales_N = (x_CN.abs().amax(0) / 127).half()
    return _nearest(x_CN, scales_N, -127, 127).char(), {"int8_scales": scales_N}


def int4(x_CN: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """q · scale + min with q of 0 … 15: 5 bits a weight, as GGUF's Q4_1.

    Of a few ranges the one is taken whose best line through (q, x) leaves the least error, by least squares in which
    large numbers count more: they carry most of what the model says.
    """
    low_N, high_N, square_CN = x_CN.amin(0), x_CN.amax(0), x_CN.square()
    weights_CN = square_CN + square_CN.mean(0)
    sum_w_N, sum_x_N, sum_xx_N = weights_CN.sum(0), (weights_CN * x_CN).sum(0), (weights_CN * square_CN).sum(0)
    best_N, scales_N, mins_N = torch.full_like(low_N, torch.inf), (high_N - low_N) / 15, low_N
    for part in (*_TRIED_RANGES, None):  # None: once more from the best one
        scale_N, min_N = scales_N, mins_N
        if part is not None:
            scale_N = part * (high_N - low_N) / 15
            min_N = (low_N + high_N - 15 * scale_N) / 2
        q_CN = _nearest(x_CN - min_N, scale_N, 0, 15)
        weighed_CN = weights_CN * q_CN
        sum_q_N, sum_qq_N, sum_qx_N = weighed_CN.sum(0), (weighed_CN * q_CN).sum(0), (weighed_CN * x_CN).sum(0)
        variance_N = sum_w_N * sum_qq_N - sum_q_N.square()
        scale_N = torch.where(variance_N > 0, (sum_w_N * sum_qx_N - sum_q_N * sum_x_N) / variance_N, scale_N)
        min_N = (sum_x_N - scale_N * sum_q_N) / sum_w_N
        error_N = sum_xx_N - min_N * sum_x_N - scale_N * sum_qx_N
        better_N = error_N < best_N
        best_N = torch.where(better_N, error_N, best_N)
        scales_N, mins_N = torch.where(better_N, scale_N, scales_N), torch.where(better_N, min_N, mins_N)
    scales_N, mins_N = scales_N.half(), mins_N.half()
    q_CN = _nearest(x_CN - mins_N.float(), scales_N, 0, 15).byte()
    return _halves(q_CN), {"int4_scales": scales_N, "int4_mins": mins_N}


def int4_symmetric(x_CN: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """(q − 8) · scale: 4.5 bits a weight, as GGUF's Q4_0. The scale is searched for as in `int4`.

    Its sign is such that the number farthest from zero, of whichever sign, lies on the side that has one step more.
    """
    far_N = x_CN.gather(0, x_CN.abs().argmax(0, keepdim=True))[0]
    best_N, scales_N, square_CN = torch.full_like(far_N, -1.0), far_N / -8, x_CN.square()
    for steps in (*_TRIED_STEPS, None):
        q_CN = _nearest(x_CN, scales_N if steps is None else far_N / steps, -8, 7)
        weighed_CN = q_CN * square_CN
        sum_qx_N, sum_qq_N = (weighed_CN * x_CN).sum(0), (weighed_CN * q_CN).sum(0)
        explained_N = sum_qx_N.square() / sum_qq_N  # by the best scale for these q, which is sum_qx / sum_qq
        better_N = explained_N > best_N
        best_N = torch.where(better_N, explained_N, best_N)
        scales_N = torch.where(better_N, sum_qx_N / sum_qq_N, scales_N)
    scales_N = scales_N.half()
    return _halves((_nearest(x_CN, scales_N, -8, 7) + 8).byte()), {"int4_scales": scales_N}


def nf4(x_CN: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The nearest of 16 levels, scaled by the largest of 64 numbers: 4.25 bits a weight (arXiv:2305.14314)."""
    scales_N = x_CN.abs().amax(0).half()
    levels = torch.tensor(NF4_LEVELS, device=x_CN.device)
    q_CN = torch.bucketize(x_CN * _inverse(scales_N), (levels[1:] + levels[:-1]) / 2, out_int32=True).byte()
    return q_CN[0::2] | q_CN[1::2] << 4, {"nf4_scales": scales_N}


def _inverse(scales_N: Tensor) -> Tensor:
    """1 / scale, and 0 for a scale of 0: all numbers of such a group are 0, or all the same."""
    scales_N = scales_N.float()
    return torch.where(scales_N == 0, 0, 1 / scales_N)


def _nearest(x_CN: Tensor, scales_N: Tensor, low: int, high: int) -> Tensor:
    return (x_CN * _inverse(scales_N)).round_().clamp_(low, high)


def _halves(q_CN: Tensor) -> Tensor:
    """Two numbers below 16 in a byte: the one of the first half of the columns low, that of the second half high."""
    first, second = q_CN.chunk(2)
    return first | second << 4


class Form(NamedTuple):
    """How rows of weights become integers: `group` columns share a scale (0: a whole row has one)."""

    group: int
    in_tiles: bool
    encode: Callable[[Tensor], tuple[Tensor, dict[str, Tensor]]]

    def takes(self, rows: int, columns: int) -> bool:
        return not (self.group and columns % self.group) and not (self.in_tiles and rows % TILE_ROWS)

    def stored(self, weight: Tensor) -> dict[str, Tensor]:
        """The weight (rows, columns) and its siblings in this form, by the ends of their keys."""
        n_rows, n_columns = weight.shape
        x_CN = weight.reshape(-1, self.group or n_columns).t().contiguous()
        q_CN, siblings = self.encode(x_CN)
        values = q_CN.t().unflatten(0, (n_rows, -1))
        of_groups = {part: scale_N.unflatten(0, (n_rows, -1)) for part, scale_N in siblings.items()}
        if self.in_tiles:
            return {"weight": tiled_values(values)} | {part: tiled(scale) for part, scale in of_groups.items()}
        return {"weight": values.flatten(1).contiguous()} | of_groups


FORMS = {
    "int8-row": Form(0, False, int8_row),
    "int8": Form(TILE_COLUMNS, True, int8),
    "int4": Form(TILE_COLUMNS, True, int4),
    "int4-sym": Form(TILE_COLUMNS, True, int4_symmetric),
    "nf4": Form(NF4_GROUP, False, nf4),
}


@torch.no_grad()
def quantize(params: Params, form: str, *, embeddings: str = "int8", of_integers: bool = False) -> Params:
    """The same model with its matrices in `form`, embedding and head in the form `embeddings`; norms stay floats.

    A matrix that its form can't divide gets int8-row, and a warning says which. A tied head stays the same tensors
    as its embedding, adapters stay as they are. Beside the result only a piece of one matrix is held as floats.
    Weights that are integers already would be rounded twice, which `of_integers` allows: the default model's blocks are
    all that its file says. Raises UsageError for a form that isn't one of FORMS, other weights that aren't floats, and
    NaN or infinity by name.
    """
    for asked in (form, embeddings):
        if asked not in FORMS:
            raise UsageError(f"weights are quantised to {', '.join(FORMS)}, got {asked!r}")
    if (sibling := quantised(params)) and not of_integers:
        raise UsageError(f"{sibling}: this model's weights are quantised already; take its float weights")
    made: Params = {}
    done: dict[int, dict[str, Tensor]] = {}  # by the source, so that a tied head is made once
    undivided: dict[str, list[str]] = {}  # by form
    for name, values in params.items():
        if ".adaptor." in name:
            made[name] = values
            continue
        if quantised([name]):
            continue
        if values.ndim == 1:
            made[name] = values.clone()  # a copy doesn't keep the file mapped
            continue
        stem = name.removesuffix(".weight")
        wanted = embeddings if stem in ("tok_embeddings", "output") else form
        if id(values) not in done:
            weight = stored(params, stem)
            if not FORMS[wanted].takes(*weight.shape):
                undivided.setdefault(wanted, []).append(f"{stem} ({weight.shape[0]} × {weight.shape[1]})")
                wanted = "int8-row"
            done[id(values)] = _in_pieces(weight, name, FORMS[wanted])
        made |= {f"{stem}.{part}": tensor for part, tensor in done[id(values)].items()}
    for asked, matrices in undivided.items():
        sizes = units(TILE_ROWS if FORMS[asked].in_tiles else 1, FORMS[asked].group)
        log.warning("%s stored as int8-row: %s takes %s", listed(matrices, 4), asked, sizes)
    return made


def _in_pieces(weight: Floats, name: str, form: Form) -> dict[str, Tensor]:
    """`form.stored` of the whole weight, filled a few rows at a time."""
    n_rows = weight.shape[0]
    made: dict[str, Tensor] = {}
    for rows in _pieces(weight.shape):
        floats = weight.floats(rows, torch.float32)
        if not torch.stack(floats.aminmax()).isfinite().all():
            raise UsageError(f"{name}: holds NaN or infinity, which no integers can mean; verify the weights")
        for part, piece in form.stored(floats).items():
            if piece.is_floating_point() and not piece.isfinite().all():
                raise UsageError(f"{name}: reaches {floats.abs().max():g}, beyond what a float16 scale can hold")
            of_rows = len(floats) // len(piece)  # a tile has several
            if part not in made:
                made[part] = piece.new_empty(n_rows // of_rows, *piece.shape[1:])
            made[part][rows.start // of_rows :][: len(piece)] = piece
    return made


def _pieces(shape: tuple[int, ...]) -> Iterator[slice]:
    """Slices of rows, whole tiles, of about PIECE_ELEMENTS weights each."""
    n_rows, n_columns = shape
    step = max(TILE_ROWS, PIECE_ELEMENTS // n_columns // TILE_ROWS * TILE_ROWS)
    return (slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step))


@torch.no_grad()
def dequantize(params: Params, dtype: torch.dtype) -> Params:
    """The same model in plain weights of `dtype`; adapters stay beside them, a tied head stays its embedding."""
    made: Params = {}
    done: dict[int, Tensor] = {}
    for name, values in params.items():
        if ".adaptor." in name or quantised([name]):
            if ".adaptor." in name:
                made[name] = values
            continue
        if id(values) not in done:
            done[id(values)] = values.to(dtype) if values.ndim == 1 else _plain(params, name, dtype)
        made[name] = done[id(values)]
    return made


def _plain(params: Params, name: str, dtype: torch.dtype) -> Tensor:
    weight = stored(params, name.removesuffix(".weight"))
    made = torch.empty(weight.shape, dtype=dtype, device=weight.values.device)
    for rows in _pieces(weight.shape):
        made[rows] = weight.floats(rows, torch.float32)
    return made
