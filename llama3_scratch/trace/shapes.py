"""A trace without weights: every shape, and what a pass costs, of models that no memory here could hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from llama3_scratch.config import Config, expected
from llama3_scratch.errors import UsageError
from llama3_scratch.model import block, forward
from llama3_scratch.stored import Params
from llama3_scratch.system.machine import MachineLimits, measure
from llama3_scratch.system.memory import format_bytes
from llama3_scratch.torch_internals import DispatchMode, changes_its_input
from llama3_scratch.trace import files, roofline
from llama3_scratch.trace.choice import TraceChoice
from llama3_scratch.trace.cost import Cost
from llama3_scratch.trace.table import Table, print_section
from llama3_scratch.trace.tracer import TracedTensor, watch


def meta_params(config: Config, dtype: torch.dtype = torch.bfloat16) -> Params:
    """Weights that have a shape and a dtype but no values."""
    params = {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in expected(config).items()}
    if config.tied:
        params["output.weight"] = params["tok_embeddings.weight"]
    return params


def trace_shapes(
    params: Params,
    config: Config,
    *,
    length: int,
    batch: int,
    dtype: torch.dtype | None = None,
    on_step: Callable[[TracedTensor], None] = lambda step: None,
) -> list[TracedTensor]:
    """Every step of `batch` prompts of `length` tokens with `meta_params`: no values, no memory.

    `dtype` is that of the activations, the weights' own unless given.
    """
    tokens_BT = torch.zeros(batch, length, dtype=torch.long, device="meta")
    with _Remembered(), watch(statistics=False, costs=True, on_step=on_step) as steps:
        forward(tokens_BT, params, config, block=block, dtype=dtype)
    return steps


class _Remembered(DispatchMode):
    """Infers the shape of an operation's result once for the same operands: layers repeat, and torch takes a thousand
    calls of Python for each inference.
    """

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[Any, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func.is_view or changes_its_input(func):
            return func(*args, **kwargs)
        key = func, _shapes(args), _shapes(tuple(sorted(kwargs.items())))
        if key not in self._made:
            made = func(*args, **kwargs)
            if not isinstance(made, Tensor) or made.device.type != "meta":
                return made
            self._made[key] = made
        like = self._made[key]
        return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device="meta")


def _shapes(value: Any) -> Any:
    """What a result's shape depends on, as a key."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    return tuple(map(_shapes, value)) if isinstance(value, tuple | list) else value


def show_shapes(choice: TraceChoice, config: Config, *, length: int, batch: int, context: int, dtype: str) -> None:
    """Print one pass of `batch` prompts of `length` tokens: its steps where the choice asks for them, and the sums.

    `context` is the cache's, `dtype` the activations' by name, "auto" for bf16. Raises UsageError for a layer that the
    model hasn't, and for a prompt beyond the context.
    """
    choice.check_model(config)
    if length > context:
        raise UsageError(f"`length={length}`: this model's context is {context} tokens")
    machine = measure(torch.device("cpu"), torch.float32) if choice.trace_cost else None
    params = meta_params(config)
    table = Table(params, choice.full_layers, choice.trace_steps, machine=machine)
    show = {"on_step": table.show} if choice.prints else {}
    activations = torch.bfloat16 if dtype == "auto" else getattr(torch, dtype)
    steps = trace_shapes(params, config, length=length, batch=batch, dtype=activations, **show)
    if choice.trace_out is not None:
        files.write(choice.trace_out, steps, params, {})
    if choice.trace_steps:
        table.say_unknown(steps)
    limits = f" · {machine}" if machine is not None else ""
    print_section(f"{batch} × {length} tokens{limits}", summary(config, steps, context, batch, machine))


def summary(
    config: Config, steps: Sequence[TracedTensor], context: int, batch: int, machine: MachineLimits | None
) -> list[str]:
    """Parameters, memory in bf16 for `batch` prompts of `context` tokens, and what the pass costs."""
    total = sum((step.cost for step in steps), Cost())
    return [
        f"parameters    {config.n_parameters:,}" + (", the head tied to the embedding" if config.tied else ""),
        f"weights       {format_bytes(2 * config.n_parameters)} in bf16",
        f"KV cache      {format_bytes(config.kv_bytes(context, batch))} in bf16, {context:,} tokens × {batch}",
        f"this pass     {total.flops:,} FLOPs, {format_bytes(total.bytes)} moved",
        *roofline.lines(steps, machine),
    ]
