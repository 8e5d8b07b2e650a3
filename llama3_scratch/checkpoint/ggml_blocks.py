"""GGML's block formats turned into floats or, where a stored form has the same numbers, into that, and back.

A block is a few scales and the small integers that they stretch.

The order of the float operations is that of the `gguf` package, so the results are its results, bit for bit.
Sources: ggml-quants.c (`dequantize_row_*`), ggml-common.h (`block_*`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from llama3_scratch.stored import TILE_COLUMNS, TILE_ROWS, Floats, Tiles, tiled, tiled_values, untiled, untiled_values


def _half(blocks: Tensor, start: int) -> Tensor:
    """The f16 at byte `start` of every block, [n, 1] f32."""
    return blocks[:, start : start + 2].view(torch.float16).float()


def _nibbles(packed: Tensor, width: int) -> Tensor:
    """4-bit integers [n, 2·bytes] u8: of every `width` bytes first all low halves, then all high ones."""
    groups = packed.unflatten(1, (-1, 1, width))
    return torch.cat((groups & 15, groups >> 4), 2).flatten(1)


def _bits(packed: Tensor) -> Tensor:
    """Single bits [n, 8·bytes] u8, lowest first."""
    return (packed.unsqueeze(2) >> torch.arange(8, dtype=torch.uint8) & 1).flatten(1)


def _six_bit_scales(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and minima [n, 8, 1] f32 of Q4_K and Q5_K, sixteen 6-bit integers packed in 12 bytes."""
    low, middle, high = packed.split(4, 1)
    scales = torch.cat((low & 63, (high & 15) | (low >> 2 & 48)), 1)
    minima = torch.cat((middle & 63, (high >> 4) | (middle >> 2 & 48)), 1)
    return scales.float().unsqueeze(2), minima.float().unsqueeze(2)


def _q4_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:], 16).float() - 8)


def _q4_1(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:], 16).float() + _half(blocks, 2)


def _q5_0(blocks: Tensor) -> Tensor:
    integers = _nibbles(blocks[:, 6:], 16) | _bits(blocks[:, 2:6]) << 4
    return _half(blocks, 0) * (integers.float() - 16)


def _q5_1(blocks: Tensor) -> Tensor:
    integers = _nibbles(blocks[:, 8:], 16) | _bits(blocks[:, 4:8]) << 4
    return _half(blocks, 0) * integers.float() + _half(blocks, 2)


def _q8_0(blocks: Tensor) -> Tensor:
    return blocks[:, 2:].view(torch.int8).float() * _half(blocks, 0)


def _q4_k(blocks: Tensor) -> Tensor:
    scales, minima = _six_bit_scales(blocks[:, 4:16])
    scales, minima = _half(blocks, 0).unsqueeze(2) * scales, _half(blocks, 2).unsqueeze(2) * minima
    return (scales * _nibbles(blocks[:, 16:], 32).unflatten(1, (8, 32)).float() - minima).flatten(1)


def _q5_k(blocks: Tensor) -> Tensor:
    scales, minima = _six_bit_scales(blocks[:, 4:16])
    scales, minima = _half(blocks, 0).unsqueeze(2) * scales, _half(blocks, 2).unsqueeze(2) * minima
    # Byte i of the 32 holds the fifth bit of integer i of each of the eight groups.
    fifth = blocks[:, 16:48].unsqueeze(1) >> torch.arange(8, dtype=torch.uint8).unsqueeze(1) & 1
    integers = _nibbles(blocks[:, 48:], 32).unflatten(1, (8, 32)) | fifth << 4
    return (scales * integers.float() - minima).flatten(1)


def _q6_k(blocks: Tensor) -> Tensor:
    scales = _half(blocks, 208) * blocks[:, 192:208].view(torch.int8).float()
    low = _nibbles(blocks[:, :128], 64)
    pairs = blocks[:, 128:192].unflatten(1, (2, 1, 32))
    high = (pairs >> torch.arange(0, 8, 2, dtype=torch.uint8).unsqueeze(1) & 3).flatten(1)
    integers = (low | high << 4).float() - 32
    return (scales.unsqueeze(2) * integers.unflatten(1, (16, 16))).flatten(1)


class BlockFormat(NamedTuple):
    """Weights and bytes of one block, and what turns blocks [n, bytes] u8 into weights [n, weights] f32."""

    weights: int
    n_bytes: int
    decode: Callable[[Tensor], Tensor]


BLOCK_FORMATS = {
    "Q4_0": BlockFormat(32, 18, _q4_0),
    "Q4_1": BlockFormat(32, 20, _q4_1),
    "Q5_0": BlockFormat(32, 22, _q5_0),
    "Q5_1": BlockFormat(32, 24, _q5_1),
    "Q8_0": BlockFormat(32, 34, _q8_0),
    "Q4_K": BlockFormat(256, 144, _q4_k),
    "Q5_K": BlockFormat(256, 176, _q5_k),
    "Q6_K": BlockFormat(256, 210, _q6_k),
}


def dequantize(data: Tensor, kind: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Blocks of format `kind`, [bytes] u8, as weights [n] in `dtype`."""
    weights, n_bytes, decode = BLOCK_FORMATS[kind]
    blocks = data.view(-1, n_bytes)
    out = torch.empty(len(blocks), weights, dtype=dtype)
    # In pieces below the size from which torch divides the work among threads: waking them for each of these small
    # steps costs more than they do, many times more on a busy machine. The intermediate tensors stay in the cache too.
    piece = 2**15 // weights
    for start in range(0, len(blocks), piece):
        out[start : start + piece] = decode(blocks[start : start + piece])
    return out.flatten()


# Formats that are a form of `stored` in another order: the weight's dtype, and the keys of the f16 numbers that begin
# a block.
TILED = {
    "Q8_0": (torch.int8, ("int8_scales",)),
    "Q4_0": (torch.uint8, ("int4_scales",)),
    "Q4_1": (torch.uint8, ("int4_scales", "int4_mins")),
}


def has_tiles(kind: str, shape: tuple[int, ...]) -> bool:
    """Whether blocks of `kind` can lie in tiles: rows in 16s, columns in 32s."""
    return kind in TILED and len(shape) == 2 and shape[0] % TILE_ROWS == 0 and shape[1] % TILE_COLUMNS == 0


def tiles_of_blocks(data: Tensor, kind: str, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Blocks [bytes] u8 of a weight (rows, columns) in tiles, by the ends of the keys: every number stays itself."""
    dtype, halves = TILED[kind]
    blocks = data.view(shape[0], -1, BLOCK_FORMATS[kind].n_bytes)
    made = {"weight": tiled_values(blocks[..., 2 * len(halves) :].contiguous().view(dtype))}
    for index, part in enumerate(halves):
        of_groups = blocks[..., 2 * index : 2 * index + 2].contiguous().view(torch.float16).squeeze(-1)
        made[part] = tiled(of_groups)
    return made


def block_format(weight: Floats) -> str | None:
    """The format whose blocks are this weight in another order, if there is one."""
    if not isinstance(weight, Tiles):
        return None
    return "Q8_0" if weight.bits == 8 else "Q4_0" if weight.mins is None else "Q4_1"


def blocks_of_tiles(weight: Tiles) -> Tensor:
    """The inverse of `tiles_of_blocks`: blocks (rows, bytes) u8."""
    halves = [untiled(part)[..., None].view(torch.uint8) for part in (weight.scales, weight.mins) if part is not None]
    return torch.cat([*halves, untiled_values(weight.values).view(torch.uint8)], dim=-1).flatten(1)
