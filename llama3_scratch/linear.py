"""Multiplying by a stored weight, whatever form it's stored in: the one seam where weight formats exist.

Beside any form may stand a low-rank adapter, which is added: `{name}.adaptor.A.weight`, `.adaptor.B.weight` and
`.adaptor.scale`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from llama3_scratch.native import kernels
from llama3_scratch.stored import ROWS, Floats, Params, stored

_TILE = 1 << 19  # elements of a dequantised tile: 2 MB in f32, which stays in the cache until it's used


def linear(x: Tensor, params: Params, name: str) -> Tensor:
    """x (…, columns) times the weight of `name`, transposed: (…, rows), in x's dtype."""
    out = product(x, stored(params, name))
    if f"{name}.adaptor.A.weight" in params:
        low_rank = linear(linear(x, params, f"{name}.adaptor.A"), params, f"{name}.adaptor.B")
        out = out + low_rank * params[f"{name}.adaptor.scale"].to(x.dtype)
    return out


def product(x: Tensor, weight: Floats) -> Tensor:
    """x (…, columns) times the weight, transposed: (…, rows), by whatever is fastest for its form here."""
    if kernels.fits(x, weight) and (out := kernels.product(x, weight)) is not None:
        return out
    plain = type(weight) is Floats
    if plain and weight.values.dtype == x.dtype and multiplies(x.dtype, x.device.type):
        return F.linear(x, weight.values)
    if weight.values.requires_grad:
        return F.linear(x, weight.values.to(x.dtype))
    return _TiledLinear.apply(x, weight)


def embed(tokens_BT: Tensor, params: Params, name: str, *, dtype: torch.dtype | None = None) -> Tensor:
    """Rows of the embedding `name` for tokens_BT: x_BTD, in `dtype` (else in the one nearest to its form)."""
    weight = stored(params, name)
    if type(weight) is Floats:
        rows_BTD = F.embedding(tokens_BT, weight.values)
        return rows_BTD.to(dtype or rows_BTD.dtype)
    if (read_BTD := kernels.rows(tokens_BT, weight, dtype or weight.dtype)) is not None:
        return read_BTD
    return weight.floats(tokens_BT, dtype or weight.dtype)


@functools.cache
def multiplies(dtype: torch.dtype, device: str) -> bool:
    """Whether a matmul in `dtype` is worth calling there: bf16 on a CPU without its instructions runs 80× slower."""
    if device != "cpu" or dtype in (torch.float32, torch.float64):
        return True
    return dtype == torch.bfloat16 and bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


class _TiledLinear(torch.autograd.Function):
    """x @ weight.T with the frozen weight turned into floats a tile of rows at a time, backwards too.

    Sums run in at least f32, so with bf16 or f16 x this is what a tensor core does: f32 sums, rounded once.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Floats) -> Tensor:
        ctx.weight = weight
        dtype = torch.promote_types(x.dtype, torch.float32)
        wide = x.to(dtype)
        out = wide.new_empty(*x.shape[:-1], weight.shape[0])
        for rows, tile in _tiles(weight, dtype):
            out[..., rows] = F.linear(wide, tile)
        return out.to(x.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):
        wide = grad.to(torch.promote_types(grad.dtype, torch.float32))
        total = wide.new_zeros(*grad.shape[:-1], ctx.weight.shape[1])
        for rows, tile in _tiles(ctx.weight, wide.dtype):
            total += wide[..., rows] @ tile
        return total.to(grad.dtype), None


def _tiles(weight: Floats, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Yield (slice of rows, those rows as floats); a tile is overwritten by the next."""
    n_rows, n_columns = weight.shape
    step = max(1, min(n_rows, _TILE // n_columns))
    step = step // ROWS * ROWS or step  # whole tiles of a weight in tiles
    # One buffer for all tiles of a plain weight: a fresh one each time costs more in page faults than the conversion.
    buffer = torch.empty(step, n_columns, dtype=dtype, device=weight.values.device)
    for start in range(0, n_rows, step):
        rows = slice(start, min(start + step, n_rows))
        if type(weight) is Floats:
            yield rows, buffer[: rows.stop - start].copy_(weight.values[rows])
        else:
            yield rows, weight.floats(rows, dtype)
