"""Training in fp8, emulated: every matmul of a layer as a processor with fp8 multipliers computes it.

A number has a sign, an exponent and a mantissa: E4M3 has 3 bits of the last and reaches from 2⁻⁹ to 448, E5M2 has 2 and
reaches from 2⁻¹⁶ to 57,344 (arXiv:2209.05433). In the forward pass inputs and weights are E4M3, since digits count; in
the backward pass gradients are E5M2, since their sizes differ so much. Each tensor is divided by a scale
first that brings its largest number to the largest of the format, or small gradients would all become 0. Sums are f32,
and weights and optimizer stay f32, or the many small steps of training would be lost in rounding.

This is slower than f32: it's for seeing what the rounding does to a loss, not for speed.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from llama3_scratch.config import Config
from llama3_scratch.model import Block
from llama3_scratch.stored import Params

FORWARD, BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2


def scaled(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x in fp8, divided by its scale, and the scale: x's shape, and a number."""
    scale = (x.abs().amax() / torch.finfo(dtype).max).clamp_min(torch.finfo(torch.float32).tiny)
    return (x / scale).to(dtype), scale


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x as it is after a stay in fp8, in its own dtype."""
    short, scale = scaled(x, dtype)
    return short.to(x.dtype) * scale


def in_fp8(inner: Block) -> Block:
    """A layer whose matmuls with weights are those of fp8; embedding, norms, attention's scores and head stay as they
    are, as is usual in such training."""

    def fp8_block(x_BTD: Tensor, params: Params, name: str, config: Config, **state: Any) -> Tensor:
        with _Fp8Matmuls():
            return inner(x_BTD, params, name, config, **state)

    return fp8_block


class _Fp8Matmuls(TorchFunctionMode):
    """Within it F.linear is `Fp8Linear`, so that the layer needs no other code for it."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.linear:
            return Fp8Linear.apply(*args)
        return func(*args, **(kwargs or {}))


class Fp8Linear(torch.autograd.Function):
    """x (…, columns) times weight (rows, columns), transposed: (…, rows), of numbers that were rounded to fp8."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        x, weight = rounded(x, FORWARD), rounded(weight, FORWARD)
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        grad = rounded(grad, BACKWARD)
        of_x = grad @ weight if ctx.needs_input_grad[0] else None
        of_weight = grad.flatten(0, -2).T @ x.flatten(0, -2) if ctx.needs_input_grad[1] else None
        return of_x, of_weight
