"""A model written in another layout: Meta's, Hugging Face's or GGUF; adapters are merged into it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llama3_scratch.errors import UsageError
from llama3_scratch.system.fields import Checked, one_of, whole
from llama3_scratch.system.writing import foreign

if TYPE_CHECKING:
    from llama3_scratch.checkpoint.load import Checkpoint
    from llama3_scratch.stored import Params

log = logging.getLogger("llama3_scratch")

LAYOUTS = {"meta": "Meta's layout", "hf": "Hugging Face's layout", "gguf": "GGUF"}
FILE_DTYPES = ("float32", "bfloat16", "float16")
GGUF_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1")
QUANTIZED = ("int8-row", "int8", "int4", "int4-sym", "nf4")  # those of `params.quantize`, told without torch
_TYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_BLOCKS = {"int8": "Q8_0", "int4": "Q4_1", "int4-sym": "Q4_0"}


@dataclass(frozen=True)
class Conversion(Checked):
    """What is written: the layout, and the form of the weights in it; as they're stored where nothing is said."""

    to: str = one_of("meta", tuple(LAYOUTS))
    dtype: str | None = one_of(None, FILE_DTYPES)  # of the weights, for meta and hf; makes floats of quantised ones
    quantize: str | None = one_of(None, QUANTIZED)  # the form of the matrices, for meta and gguf
    type: str | None = one_of(None, GGUF_TYPES)  # of the matrices, for gguf
    shards: int | None = whole(None, minimum=1)  # how many consolidated.*.pth, for meta; None: one

    def __post_init__(self) -> None:
        super().__post_init__()
        layouts_of = {"dtype": ("meta", "hf"), "shards": ("meta",), "type": ("gguf",), "quantize": ("meta", "gguf")}
        for field, layouts in layouts_of.items():
            if getattr(self, field) is not None and self.to not in layouts:
                known = " and ".join([f"`to={layouts[0]}`", *layouts[1:]])
                raise UsageError(f"`{field}` is for {known}, got `to={self.to}`")
        for other in ("dtype", "type"):
            if self.quantize and getattr(self, other):
                raise UsageError(f"`quantize={self.quantize}` and `{other}` both say the weights' form; give one")
        if self.to == "gguf" and self.quantize not in (None, *_BLOCKS):
            raise UsageError(
                f"`quantize={self.quantize}`: GGUF has no such blocks; take `to=meta`, or one of {', '.join(_BLOCKS)}"
            )


def check_target(target: Path, *, folder: bool, force: bool) -> None:
    """Raise UsageError unless `target` may be written, before anything is read."""
    if not target.exists():
        return
    if folder != target.is_dir():
        wanted, found = ("folder", "file") if folder else ("file", "folder")
        raise UsageError(f"{target}: expected a {wanted} to write, found a {found}; choose another TARGET")
    if folder and (name := foreign(target)):
        raise UsageError(f"{target}: holds {name}, which no checkpoint has, and isn't replaced; choose another TARGET")
    if not force and (not folder or any(target.iterdir())):
        raise UsageError(f"{target}: already there; `force=True` replaces it")


def convert(checkpoint: Checkpoint, target: Path, how: Conversion, *, force: bool = False) -> str:
    """Write the model to `target`, a folder or a .gguf file; returns the form of its layers' weights.

    Adapters beside the weights (`checkpoint.adapters.add_adapters`) are merged. Raises UsageError where `target` is
    there and `force` isn't given, or isn't what a model may replace.
    """
    target = target.resolve()
    check_target(target, folder=how.to != "gguf", force=force)
    if target == checkpoint.path.resolve() or target in checkpoint.path.resolve().parents:
        raise UsageError(f"{target}: writing there would replace the model that is read; choose another target")
    if checkpoint.tokenizer is None:
        log.warning("%s has no tokenizer, so none is written", checkpoint.path)
    import torch

    from llama3_scratch.params.lora import adapted, merge
    from llama3_scratch.params.quantize import dequantize, quantize
    from llama3_scratch.stored import map_tensors, quantised, stored

    config, params, tokenizer = checkpoint.config, checkpoint.params, checkpoint.tokenizer
    narrow = how.dtype or next((dtype for dtype, kind in _TYPES.items() if kind == how.type), None)
    if adapted(checkpoint.params):
        # In f32 where integers are to be made of the sum, so that it's rounded once.
        merged = narrow or ("float32" if how.type or how.quantize else None)
        params = merge(params, dtype=getattr(torch, merged) if merged else None)
    if how.quantize:
        params = quantize(params, how.quantize)
    if quantised(params) and (narrow or how.type):
        # In f32, which holds each form's numbers exactly, where blocks of another kind are to be made.
        params = dequantize(params, getattr(torch, narrow or "float32"))
    # A layer's, since embedding and head are often in another.
    form = stored(params, "layers.0.feed_forward.w1").name
    if how.to == "gguf":
        from llama3_scratch.checkpoint.gguf_out import write_gguf

        kind = how.type or _TYPES.get(form) or _BLOCKS.get(form, "F32")
        if how.type in _BLOCKS.values():
            log.warning("`type=%s` rounds the weights: %s bits each and a scale for 32", kind, kind[1])
        elif not quantised(params):
            narrow = next(dtype for dtype, its_kind in _TYPES.items() if its_kind == kind)
            matrices = {name: tensor for name, tensor in params.items() if tensor.ndim > 1}
            _check_rounding(matrices, narrow, f"`type={kind}`")
        write_gguf(target, params, config, tokenizer, kind=kind)
        return kind
    if how.dtype:
        _check_rounding(params, how.dtype, f"`dtype={how.dtype}`")
        dtype = getattr(torch, how.dtype)
        params = map_tensors(params, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)
    if how.to == "meta":
        from llama3_scratch.checkpoint.meta import write_meta

        write_meta(target, params, config, tokenizer, shards=how.shards or 1)
    else:
        from llama3_scratch.checkpoint.hf_out import write_hf

        if sibling := quantised(params):
            raise UsageError(
                f"{sibling}: Hugging Face's layout has no place for quantised weights; give `dtype` to make floats of "
                "them"
            )
        write_hf(target, params, config, tokenizer)
    return stored(params, "layers.0.feed_forward.w1").name


def _check_rounding(params: Params, name_of_dtype: str, option: str) -> None:
    """Say how many of these weights another dtype rounds; UsageError where it would make one infinite."""
    import torch

    dtype = getattr(torch, name_of_dtype)
    rounded = total = 0
    for name, tensor in {id(tensor): (name, tensor) for name, tensor in params.items()}.values():  # a tied head once
        total += tensor.numel()
        if not tensor.is_floating_point() or torch.promote_types(tensor.dtype, dtype) == dtype:
            continue
        narrow = tensor.to(dtype)
        if narrow.isinf().any():
            raise UsageError(
                f"{option}: {name} reaches {tensor.abs().max().item():g}, {name_of_dtype} ends at "
                f"{torch.finfo(dtype).max:g}; take bfloat16"
            )
        rounded += int((narrow.to(tensor.dtype) != tensor).sum())
    if rounded:
        log.warning("%s rounds %s of %s weights", option, f"{rounded:,}", f"{total:,}")
