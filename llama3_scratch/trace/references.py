"""What a run is compared with: transformers, one pass without a cache, another model's, or an earlier run in a file."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llama3_scratch.checkpoint.load import Checkpoint, load
from llama3_scratch.checkpoint.names import resolve
from llama3_scratch.compare import hf_layers
from llama3_scratch.compare.difference import Difference
from llama3_scratch.config import Config
from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.linear import embed
from llama3_scratch.model import block, decode, unembed
from llama3_scratch.stored import Params
from llama3_scratch.trace.choice import ROUNDING
from llama3_scratch.trace.tracer import TracedTensor, watch

Receive = Callable[[int | None, str, Tensor], None]  # (pass, or None: of all tokens), key, tensor

# As safetensors names them, the coarsest first: a run in bf16 has sums in f32.
_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
_LATER = re.compile(r"pass(\d+)\.(.*)")  # as TracedTensor.label says it


@dataclass(frozen=True)
class Reference:
    """The other run, in `dtype`: `run(tokens_1T, n_logits, receive)` hands each of its tensors to `receive`, and
    returns what else it compared. Of a `complete` one every step of ours is expected, and none besides.
    """

    name: str
    dtype: torch.dtype
    run: Callable[[Tensor, int, Receive], Sequence[Difference]]
    complete: bool = True


def reference(name: str, checkpoint: Checkpoint, dtype: torch.dtype, *, allow_extra: bool = False) -> Reference:
    """The run that `name` means, as a `TraceChoice` has it, for one of this checkpoint in `dtype`: a model is loaded,
    and what can't be is told, before anything is computed."""
    params, config = checkpoint.params, checkpoint.config
    device = params["tok_embeddings.weight"].device
    if name == "hf":
        if dtype not in (torch.float32, torch.float64) or device.type != "cpu":
            raise UsageError("`trace_compare=hf`: expected `device=cpu` and `dtype=float32` or float64")
        return transformers(params, config, dtype)
    if name == "full":
        return one_pass("one pass without a cache", params, config, dtype)
    if name in ROUNDING:
        return one_pass(name, params, config, getattr(torch, name))
    if Path(name).suffix == ".safetensors":
        return recorded(Path(name))
    other = load(resolve(name), device=device, allow_extra=allow_extra)
    if other.config.vocab_size != config.vocab_size:
        sizes = f"{other.config.vocab_size} tokens, this model's {config.vocab_size}"
        raise UsageError(f"`trace_compare={name}`: its vocabulary has {sizes}; the same text is no run of both")
    return one_pass(name, other.params, other.config, dtype)


def one_pass(name: str, params: Params, config: Config, dtype: torch.dtype) -> Reference:
    """A pass of the readable model over all tokens at once, without a cache."""

    def run(tokens_1T: Tensor, n_logits: int, receive: Receive) -> Sequence[Difference]:
        def hear(step: TracedTensor) -> None:
            if step.value is not None:
                receive(None, step.key, step.value)
                step.value = None  # one at a time

        with watch(statistics=False, keep=lambda step: step.kind != "argument", on_step=hear):
            x_BTD = embed(tokens_1T, params, "tok_embeddings", dtype=dtype)
            x_BTD = decode(x_BTD, params, config, block=block)
            unembed(x_BTD[:, -n_logits:], params)
        return []

    return Reference(name, dtype, run)


def transformers(params: Params, config: Config, dtype: torch.dtype) -> Reference:
    """Hugging Face's model with the same weights, over all tokens at once."""

    def run(tokens_1T: Tensor, n_logits: int, receive: Receive) -> Sequence[Difference]:
        other = hf_layers.hf_model(params, config, tokens_1T.shape[1], dtype)
        for key, tensor in other.steps(tokens_1T, n_logits):
            receive(None, key, tensor)
        return [other.frequencies]

    return Reference("transformers", dtype, run, complete=False)


def recorded(path: Path) -> Reference:
    """The run whose tensors `trace.files` wrote to a safetensors file. Raises FileError where it isn't one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            stored = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118, it's no dict
    except (OSError, SafetensorError) as error:
        raise FileError(f"{path}: can't be read as a run that `trace_out` wrote: {error}") from error

    def run(tokens_1T: Tensor, n_logits: int, receive: Receive) -> Sequence[Difference]:
        with safe_open(path, framework="pt") as file:
            for name in stored:
                later = _LATER.match(name)
                receive(int(later[1]) if later else 0, later[2] if later else name, file.get_tensor(name))
        return []

    dtype = next((_DTYPES[dtype] for dtype in _DTYPES if dtype in stored.values()), None)
    if dtype is None:
        raise FileError(f"{path}: has no tensor of a run; write one with `trace_out={path.name}`")
    return Reference(path.name, dtype, run, complete=False)
