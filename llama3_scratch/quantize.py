"""Weights in fewer bits: params → params. What each form means is told in `stored`."""

from __future__ import annotations

import torch
from torch import Tensor

from llama3_scratch.stored import COLUMNS, ROWS


def to_tiles(rows: Tensor) -> Tensor:
    """One number for each group of each row (rows, groups, …) in the order of tiles: (tiles, groups, …, 16)."""
    return rows.unflatten(0, (-1, ROWS)).movedim(1, -1).contiguous()


def int8_tiles(values: Tensor) -> Tensor:
    """int8 (rows, columns) as tiles (tiles, groups, 8, 16, 4)."""
    return values.unflatten(1, (-1, COLUMNS // 4, 4)).unflatten(0, (-1, ROWS)).permute(0, 2, 3, 1, 4).contiguous()


def int4_tiles(values: Tensor) -> Tensor:
    """uint8 (rows, columns) of numbers below 16 as tiles (tiles, groups, 4, 16, 4)."""
    tiles = int8_tiles(values)
    low, high = tiles.chunk(2, dim=2)
    return low | high << 4


def int8(weight: Tensor) -> dict[str, Tensor]:
    grouped = weight.float().unflatten(1, (-1, COLUMNS))
    scales = (grouped.abs().amax(-1) / 127).half()
    values = (grouped / scales.float()[..., None]).nan_to_num(0).round().clamp(-127, 127).to(torch.int8)
    return {"weight": int8_tiles(values.flatten(1)), "int8_scales": to_tiles(scales)}


def int4(weight: Tensor) -> dict[str, Tensor]:
    grouped = weight.float().unflatten(1, (-1, COLUMNS))
    low, high = grouped.amin(-1), grouped.amax(-1)
    scales = ((high - low) / 15).half()
    mins = low.half()
    values = (
        ((grouped - mins.float()[..., None]) / scales.float()[..., None])
        .nan_to_num(0)
        .round()
        .clamp(0, 15)
        .to(torch.uint8)
    )
    return {"weight": int4_tiles(values.flatten(1)), "int4_scales": to_tiles(scales), "int4_mins": to_tiles(mins)}


def quantize(params, form):
    made = {}
    done = {}
    for name, w in params.items():
        stem = name.removesuffix(".weight")
        if w.ndim != 2:
            made[name] = w
            continue
        f = int8 if form == "int8" or stem in ("tok_embeddings", "output") else int4
        if id(w) not in done:
            done[id(w)] = f(w)
        made |= {f"{stem}.{part}": t for part, t in done[id(w)].items()}
    return made
