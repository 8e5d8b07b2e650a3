"""A trace without weights: every shape, and what a pass costs, of models that no memory here could hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from llama3_scratch.config import Config, expected
from llama3_scratch.linear import Params
from llama3_scratch.machine import Machine
from llama3_scratch.memory import size
from llama3_scratch.model import block, forward
from llama3_scratch.trace import roofline
from llama3_scratch.trace.cost import Cost
from llama3_scratch.trace.tracer import Step, watch


def meta_params(config: Config, dtype: torch.dtype = torch.bfloat16) -> Params:
    """Weights that have a shape and a dtype but no values."""
    params = {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in expected(config).items()}
    if config.tied:
        params["output.weight"] = params["tok_embeddings.weight"]
    return params


def trace_shapes(
    params: Params, config: Config, *, length: int, batch: int, on_step: Callable[[Step], None] = lambda step: None
) -> list[Step]:
    """Every step of `batch` prompts of `length` tokens with `meta_params`: no values, no memory."""
    tokens_BT = torch.zeros(batch, length, dtype=torch.long, device="meta")
    with watch(statistics=False, costs=True, on_step=on_step) as steps:
        forward(tokens_BT, params, config, block=block)
    return steps


def summary(config: Config, steps: Sequence[Step], context: int, batch: int, machine: Machine | None) -> list[str]:
    """Parameters, memory in bf16 for `batch` prompts of `context` tokens, and what the pass costs."""
    total = sum((step.cost for step in steps), Cost())
    return [
        f"parameters    {config.n_parameters:,}" + (", the head tied to the embedding" if config.tied else ""),
        f"weights       {size(2 * config.n_parameters)} in bf16",
        f"KV cache      {size(config.kv_bytes(context, batch))} in bf16, {context:,} tokens × {batch}",
        f"this pass     {total.flops:,} FLOPs, {size(total.bytes)} moved",
        *roofline.lines(steps, machine),
    ]
