"""Multiplying by a stored weight, whatever form it's stored in: the one seam where weight formats exist.

A form is named by the keys beside `{name}.weight`:

* `{name}.weight` alone, floating point: the weight.
* `{name}.scales` (and perhaps `{name}.zeros`): integers in groups along each row, one scale a group. Meta's int4
  releases store their int4 projections (groups of 32) and int8 embeddings (one group a row) this way.
* `{name}.adaptor.A.weight`, `.adaptor.B.weight`, `.adaptor.scale`: a low-rank adapter, added to any of the above.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Params = dict[str, Tensor]

SIBLINGS = ("scales", "zeros", "adaptor.A.weight", "adaptor.B.weight", "adaptor.scale")

_TILE = 1 << 19  # elements of a dequantised tile: 2 MB in f32, which stays in the cache until it's used


@dataclass(frozen=True)
class Stored:
    """One weight (rows × columns) as it lies in memory; `scales` is None for a plain float weight."""

    values: Tensor
    scales: Tensor | None = None
    zeros: Tensor | None = None

    def floats(self, rows: slice | Tensor, dtype: torch.dtype) -> Tensor:
        """The chosen rows as floats: (rows, columns), or (*rows.shape, columns) where `rows` is a tensor of indices."""
        values = self.values[rows].to(dtype)
        if self.scales is None:
            return values
        grouped = values.unflatten(-1, (self.scales.shape[-1], -1))
        if self.zeros is not None:
            grouped = grouped - self.zeros[rows].to(dtype)[..., None]
        return (grouped * self.scales[rows].to(dtype)[..., None]).flatten(-2)


def stored(params: Params, name: str) -> Stored:
    """The weight of the layer `name` in its stored form."""
    return Stored(params[f"{name}.weight"], params.get(f"{name}.scales"), params.get(f"{name}.zeros"))


def linear(x: Tensor, params: Params, name: str) -> Tensor:
    """x (…, columns) times the weight of `name`, transposed: (…, rows), in x's dtype."""
    weight = stored(params, name)
    if weight.scales is None and weight.values.dtype == x.dtype and multiplies(x.dtype, x.device.type):
        out = F.linear(x, weight.values)
    elif weight.values.requires_grad:
        out = F.linear(x, weight.values.to(x.dtype))
    else:
        out = _TiledLinear.apply(x, weight)
    if f"{name}.adaptor.A.weight" in params:
        low_rank = linear(linear(x, params, f"{name}.adaptor.A"), params, f"{name}.adaptor.B")
        out = out + low_rank * params[f"{name}.adaptor.scale"].to(x.dtype)
    return out


def embed(tokens_BT: Tensor, params: Params, name: str, *, dtype: torch.dtype | None = None) -> Tensor:
    """Rows of the embedding `name` for tokens_BT: x_BTD, in `dtype` (else in that of the weight or its scales)."""
    weight = stored(params, name)
    if weight.scales is None:
        rows_BTD = F.embedding(tokens_BT, weight.values)
        return rows_BTD.to(dtype or rows_BTD.dtype)
    return weight.floats(tokens_BT, dtype or weight.scales.dtype)


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
    def forward(ctx, x: Tensor, weight: Stored) -> Tensor:
        ctx.weight = weight
        dtype = torch.promote_types(x.dtype, torch.float32)
        wide = x.to(dtype)
        out = wide.new_empty(*x.shape[:-1], weight.values.shape[0])
        for rows, tile in _tiles(weight, dtype):
            out[..., rows] = F.linear(wide, tile)
        return out.to(x.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):
        wide = grad.to(torch.promote_types(grad.dtype, torch.float32))
        total = wide.new_zeros(*grad.shape[:-1], ctx.weight.values.shape[1])
        for rows, tile in _tiles(ctx.weight, wide.dtype):
            total += wide[..., rows] @ tile
        return total.to(grad.dtype), None


def _tiles(weight: Stored, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Yield (slice of rows, those rows as floats); a tile is overwritten by the next."""
    n_rows, n_columns = weight.values.shape
    step = max(1, min(n_rows, _TILE // n_columns))
    # One buffer for all tiles of a plain weight: a fresh one each time costs more in page faults than the conversion.
    buffer = torch.empty(step, n_columns, dtype=dtype, device=weight.values.device)
    for start in range(0, n_rows, step):
        rows = slice(start, min(start + step, n_rows))
        if weight.scales is None:
            yield rows, buffer[: rows.stop - start].copy_(weight.values[rows])
        else:
            yield rows, weight.floats(rows, dtype)
