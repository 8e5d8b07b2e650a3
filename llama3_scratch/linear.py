"""Multiplying by a stored weight, whatever form it's stored in: the one seam where weight formats exist.

Beside any form may stand a low-rank adapter, which is added: `{name}.adaptor.A.weight`, `.adaptor.B.weight` and
`.adaptor.scale` (arXiv:2106.09685); and beside that `.adaptor.magnitude`, the length of each row of the sum (DoRA).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from llama3_scratch import registry
from llama3_scratch.stored import Floats, Params, pieces, stored
from llama3_scratch.torch_internals import CPU_HAS_BF16


def at_least_f32(dtype: torch.dtype) -> torch.dtype:
    """f32 for the short types, f64 for f64: where Meta's code says `.float()`."""
    return torch.promote_types(dtype, torch.float32)


def linear(x: Tensor, params: Params, name: str) -> Tensor:
    """x (…, columns) times the weight of `name`, transposed: (…, rows), in x's dtype."""
    out = matmul(x, stored(params, name))
    if f"{name}.adaptor.A.weight" in params:
        low_rank = linear(linear(x, params, f"{name}.adaptor.A"), params, f"{name}.adaptor.B")
        out = out + low_rank * params[f"{name}.adaptor.scale"].to(x.dtype)
    if f"{name}.adaptor.magnitude" in params:
        own = row_norms(params, name, at_least_f32(x.dtype))
        out = out * (params[f"{name}.adaptor.magnitude"] / own).to(x.dtype)
    return out


@torch.no_grad()
def row_norms(params: Params, name: str, dtype: torch.dtype) -> Tensor:
    """The length of each row of the weight with its adapter added: (rows,).

    A constant to the gradient, as DoRA's authors suggest (arXiv:2402.09353 §4.3) and PEFT does.
    """
    down, up = (params[f"{name}.adaptor.{part}.weight"].to(dtype) for part in "AB")
    scaled = params[f"{name}.adaptor.scale"].to(dtype) * down
    floats = pieces(stored(params, name), dtype)
    return torch.cat([norms_of(piece + up[rows] @ scaled) for rows, piece in floats])


def norms_of(rows: Tensor) -> Tensor:
    """The length of each row, above 0 so that a row of zeros can be divided by it: (rows,) of (rows, columns)."""
    return torch.linalg.vector_norm(rows, dim=1).clamp_min(torch.finfo(rows.dtype).tiny)


def matmul(x: Tensor, weight: Floats) -> Tensor:
    """x (…, columns) times the weight, transposed: (…, rows), by whatever is fastest for its form here."""
    if (out := registry.matmul(x, weight)) is not None:
        return out
    if type(weight) is Floats and weight.values.dtype == x.dtype and multiplies(x.dtype, x.device.type):
        return F.linear(x, weight.values)
    if weight.values.requires_grad or torch.compiler.is_compiling():  # a compiler turns it into floats as it multiplies
        return F.linear(x, weight.floats(slice(None), x.dtype))
    return _TiledLinear.apply(x, weight)


def embed(tokens_BT: Tensor, params: Params, name: str, *, dtype: torch.dtype | None = None) -> Tensor:
    """Rows of the embedding `name` for tokens_BT: x_BTD, in `dtype` (else in the one nearest to its form)."""
    weight = stored(params, name)
    if type(weight) is Floats:
        rows_BTD = F.embedding(tokens_BT, weight.values)
        return rows_BTD.to(dtype or rows_BTD.dtype)
    read_BTD = registry.rows(tokens_BT, weight, dtype or weight.dtype)
    return weight.floats(tokens_BT, dtype or weight.dtype) if read_BTD is None else read_BTD


def multiplies(dtype: torch.dtype, device: str) -> bool:
    """Whether a matmul in `dtype` is worth calling there: bf16 on a CPU without its instructions runs 80× slower."""
    return device != "cpu" or dtype in (torch.float32, torch.float64) or (dtype == torch.bfloat16 and CPU_HAS_BF16)


class _TiledLinear(torch.autograd.Function):
    """x @ weight.T with the frozen weight turned into floats a few rows at a time, backwards too.

    In x's dtype where the processor multiplies in it (its sums are f32, rounded once), else in f32.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Floats) -> Tensor:
        ctx.weight = weight
        ctx.dtype = x.dtype if multiplies(x.dtype, x.device.type) else at_least_f32(x.dtype)
        wide = x.to(ctx.dtype)
        out = wide.new_empty(*x.shape[:-1], weight.shape[0])
        for rows, piece in pieces(weight, wide.dtype):
            out[..., rows] = F.linear(wide, piece)
        return out.to(x.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):
        wide = grad.to(ctx.dtype)
        total = wide.new_zeros(*grad.shape[:-1], ctx.weight.shape[1], dtype=at_least_f32(grad.dtype))
        for rows, piece in pieces(ctx.weight, wide.dtype):
            total += wide[..., rows] @ piece
        return total.to(grad.dtype), None
