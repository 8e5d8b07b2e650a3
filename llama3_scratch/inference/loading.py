"""Open the model that a ModelChoice means: find or fetch it, read it, quantise it, add adapters."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from llama3_scratch.checkpoint.names import DEFAULT, resolve, storyteller
from llama3_scratch.errors import FileError, ResourceError, UsageError
from llama3_scratch.inference.choices import ModelChoice

if TYPE_CHECKING:
    import torch

    from llama3_scratch.checkpoint.description import Description
    from llama3_scratch.checkpoint.load import Checkpoint
    from llama3_scratch.stored import Params

log = logging.getLogger("llama3_scratch")

_STORIES = (
    "the storyteller that comes with the code continues stories and doesn't chat: python -m llama3_scratch.generate"
)


def check_device(name: str) -> torch.device:
    """The torch device of that name, UsageError where there is none."""
    import torch

    there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        there.append("mps")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # "meta" has no numbers
    except (RuntimeError, AssertionError):  # torch built without CUDA asserts
        raise UsageError(f"`device` {name}: not on this machine, which has {', '.join(there)}") from None
    return device


def find_model(choice: ModelChoice, *, as_floats: bool = False, chats: bool = False) -> tuple[Path, str]:
    """Where the model lies, fetched first if it's the default one, and as what its blocks are read: "stored" or
    "floats".

    With `chats`, UsageError for a model that only completes text.

    Blocks of a GGUF file, and so the default model, stay as they're stored where the kernels multiply by them; a trace
    looks at floats, and adapters are merged into floats. Where the default model is to be in another form it's made of
    the blocks, which are a fifth of the floats and say the same.
    """
    # Before torch, which takes seconds to import: a misspelt name is told at once.
    path = resolve(choice.model) if choice.model not in (None, DEFAULT) else None
    if chats and path is not None and path == storyteller():
        raise UsageError(f"`model` {choice.model}: {_STORIES}; leave `model` out to chat with {DEFAULT}")
    from llama3_scratch.checkpoint.fetch import download, stored_blocks
    from llama3_scratch.native import kernels

    device = check_device(choice.device)
    in_kernels = kernels.chosen() is not None and device.type == "cpu" and choice.dtype in ("auto", "float32")
    as_floats = bool(as_floats or choice.adapters)
    blocks = "stored" if in_kernels and not as_floats and not choice.quantize else "floats"
    if path is None:
        small = choice.model is None and not as_floats and (in_kernels or choice.quantize is not None)
        try:
            path = stored_blocks() if small else download(DEFAULT)
        except (FileError, ResourceError) as error:
            path = storyteller() if choice.model is None else None
            if path is None:
                raise
            if chats:
                raise type(error)(
                    f"{error}; what fetches it is python -m llama3_scratch.download {DEFAULT}, and {_STORIES}"
                ) from error
            log.warning("%s; instead, the storyteller that comes with the code goes on with the text", error)
    return path, blocks


def describe_model(choice: ModelChoice) -> Description:
    """What the headers of the model's files say, or of an official name the table; nothing is fetched."""
    from llama3_scratch.checkpoint.description import describe

    return describe(choice.model or DEFAULT)


def read(
    path_or_name: str | Path,
    choice: ModelChoice,
    *,
    device: torch.device | str = "cpu",
    blocks: str = "floats",
    needs_tokenizer: bool = False,
) -> Checkpoint:
    """`load` as the choice has files read: rope_scale_factor, allow_extra, chat_format."""
    from llama3_scratch.checkpoint.load import load

    checkpoint = load(
        path_or_name,
        device=device,
        rope_scale_factor=choice.rope_scale_factor,
        allow_extra=choice.allow_extra,
        blocks=blocks,
        needs_tokenizer=needs_tokenizer,
    )
    if choice.chat_format and checkpoint.tokenizer is not None:
        checkpoint.tokenizer.set_chat_format(choice.chat_format)
    return checkpoint


def open_model(
    choice: ModelChoice, *, as_floats: bool = False, chats: bool = False, needs_tokenizer: bool = True
) -> tuple[Checkpoint, torch.dtype]:
    """The model, found by `find_model`, and its activations' dtype."""
    path, blocks = find_model(choice, as_floats=as_floats, chats=chats)
    import torch

    from llama3_scratch.checkpoint.fingerprint import Origin

    origin = Origin.now([path, *choice.adapters], f"{blocks}, {choice.quantize or 'as stored'}")
    checkpoint = read(path, choice, device=torch.device(choice.device), blocks=blocks, needs_tokenizer=needs_tokenizer)
    if chats and checkpoint.tokenizer is not None and checkpoint.tokenizer.chat_format is None:
        raise UsageError(
            f"{checkpoint.path}: a base model, which completes text but doesn't chat; take an instruct model, "
            "or say `chat_format` if it is one"
        )
    if choice.quantize:
        from llama3_scratch.params.quantize import quantize

        params = quantize(checkpoint.params, choice.quantize, of_integers=choice.model is None)
        checkpoint = replace(checkpoint, params=params)
    if choice.adapters:
        checkpoint = _adapted(checkpoint, choice.adapters)
    checkpoint = replace(checkpoint, origin=origin.of(checkpoint.params))
    return checkpoint, activations_dtype(choice.dtype, checkpoint.params)


def activations_dtype(name: str, params: Params) -> torch.dtype:
    """The dtype of that name, "auto" among them, with a warning where the processor has to do more for it."""
    import torch

    dtype = getattr(torch, name) if name != "auto" else activations(params)
    if params["norm.weight"].device.type == "cpu" and dtype in (torch.bfloat16, torch.float16):
        from llama3_scratch.linear import multiplies

        if not multiplies(dtype, "cpu"):
            log.warning("this CPU doesn't multiply in %s: sums run in float32, results are rounded", name)
    return dtype


def activations(params: Params) -> torch.dtype:
    """The activations' dtype unless another is asked for: float32 on a CPU, else the weights' own."""
    import torch

    own = params["norm.weight"]
    return torch.float32 if own.device.type == "cpu" else own.dtype


def _adapted(checkpoint: Checkpoint, folders: Sequence[Path]) -> Checkpoint:
    """The model with these adapters, merged unless that would cost a weight its form or change a tied embedding."""
    from llama3_scratch.checkpoint.adapters import add_adapters
    from llama3_scratch.params.lora import merge, on_tied_head
    from llama3_scratch.stored import quantised

    checkpoint = add_adapters(checkpoint, list(folders))
    if quantised(checkpoint.params) or on_tied_head(checkpoint.params):
        return checkpoint
    return replace(checkpoint, params=merge(checkpoint.params))
