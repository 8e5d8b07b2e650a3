"""Write a model in another layout: Meta's, Hugging Face's or GGUF; adapters are merged into it."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from llama3_scratch.errors import UsageError
from llama3_scratch.inference.choices import QUANTIZED
from llama3_scratch.inference.opening import read
from llama3_scratch.system import cli
from llama3_scratch.system.files import foreign
from llama3_scratch.terminal.flags import add_adapter_flag, add_reading_flags, reading_choice

if TYPE_CHECKING:
    from llama3_scratch.checkpoint.load import Checkpoint
    from llama3_scratch.stored import Params

log = logging.getLogger("llama3_scratch")

LAYOUTS = {"meta": "Meta's layout", "hf": "Hugging Face's layout", "gguf": "GGUF"}


def _parser() -> cli.Parser:
    parser = cli.Parser("convert", __doc__ or "")
    parser.add_argument("source", metavar="SOURCE", help="a folder, a .gguf or .bin file, or a downloaded name")
    parser.add_argument("target", metavar="TARGET", type=Path, help="the folder to write, or the .gguf file")
    parser.add_argument("--to", required=True, choices=LAYOUTS, help="the layout to write")
    parser.add_argument("--force", action="store_true", help="replace TARGET")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of the weights, for meta and hf; as stored if not given; makes floats of quantised ones",
    )
    parser.add_argument(
        "--quantize", choices=QUANTIZED, help="the form of the matrices, for meta and gguf; embedding and head are int8"
    )
    parser.add_argument(
        "--blocks",
        choices=("floats", "stored"),
        default="floats",
        help="what becomes of a GGUF's Q8_0, Q4_0 and Q4_1: floats, or int8 and int4 of the same numbers (%(default)s)",
    )
    parser.add_argument(
        "--shards", type=cli.number(int, least=1), metavar="N", help="how many consolidated.*.pth, for meta (1)"
    )
    parser.add_argument(
        "--type",
        choices=("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"),
        help="of the matrices, for gguf; without it the stored dtype or form",
    )
    add_adapter_flag(parser, "merged into the weights")
    add_reading_flags(parser)
    return parser


@cli.verb(_parser)
def main(options: argparse.Namespace) -> int:
    layouts_of = {"dtype": ("meta", "hf"), "shards": ("meta",), "type": ("gguf",), "quantize": ("meta", "gguf")}
    for option, layouts in layouts_of.items():
        if getattr(options, option) is not None and options.to not in layouts:
            raise UsageError(f"--{option} is for --to {' and '.join(layouts)}, got --to {options.to}")
    for other in ("dtype", "type"):
        if options.quantize and getattr(options, other):
            raise UsageError(f"--quantize {options.quantize} and --{other} both say the weights' form; give one")
    if options.to == "gguf" and options.quantize not in (None, *_BLOCKS):
        raise UsageError(
            f"--quantize {options.quantize}: GGUF has no such blocks; take --to meta, or one of {', '.join(_BLOCKS)}"
        )
    target = options.target.resolve()
    _check_target(target, folder=options.to != "gguf", force=options.force)

    checkpoint = read(options.source, reading_choice(options), blocks=options.blocks)
    if target == checkpoint.path.resolve() or target in checkpoint.path.resolve().parents:
        raise UsageError(f"{options.target}: writing there would replace SOURCE; choose another TARGET")
    if options.adapters:
        from llama3_scratch.checkpoint.peft import add_adapters

        checkpoint = add_adapters(checkpoint, options.adapters)
    if checkpoint.tokenizer is None:
        log.warning("%s has no tokenizer, so none is written", checkpoint.path)
    form = _write(checkpoint, target, options)
    written = list(target.iterdir()) if target.is_dir() else [target]
    print(f"{options.target}: {LAYOUTS[options.to]}, {form}, {sum(path.stat().st_size for path in written):,} bytes")
    return 0


def _check_target(target: Path, *, folder: bool, force: bool) -> None:
    """Raise UsageError unless `target` may be written, before anything is read."""
    if not target.exists():
        return
    if folder != target.is_dir():
        wanted, found = ("folder", "file") if folder else ("file", "folder")
        raise UsageError(f"{target}: expected a {wanted} to write, found a {found}; choose another TARGET")
    if folder and (name := foreign(target)):
        raise UsageError(f"{target}: holds {name}, which no checkpoint has, and isn't replaced; choose another TARGET")
    if not force and (not folder or any(target.iterdir())):
        raise UsageError(f"{target}: already there; --force replaces it")


def _write(checkpoint: Checkpoint, target: Path, options: argparse.Namespace) -> str:
    """Write `target`; returns the form of the weights, for the report."""
    import torch

    from llama3_scratch.params.quantize import dequantize, quantize
    from llama3_scratch.stored import map_tensors, quantised, stored

    config, params, tokenizer = checkpoint.config, checkpoint.params, checkpoint.tokenizer
    narrow = options.dtype or next((dtype for dtype, kind in _TYPES.items() if kind == options.type), None)
    if options.adapters:
        from llama3_scratch.params.lora import merge

        # In f32 where integers are to be made of the sum, so that it's rounded once.
        merged = narrow or ("float32" if options.type or options.quantize else None)
        params = merge(params, dtype=getattr(torch, merged) if merged else None)
    if options.quantize:
        params = quantize(params, options.quantize)
    if quantised(params) and (narrow or options.type):
        # In f32, which holds each form's numbers exactly, where blocks of another kind are to be made.
        params = dequantize(params, getattr(torch, narrow or "float32"))
    # A layer's, since embedding and head are often in another.
    form = stored(params, "layers.0.feed_forward.w1").name
    if options.to == "gguf":
        from llama3_scratch.checkpoint.gguf_out import write_gguf

        kind = options.type or _TYPES.get(form) or _BLOCKS.get(form, "F32")
        if options.type in _BLOCKS.values():
            log.warning("--type %s rounds the weights: %s bits each and a scale for 32", kind, kind[1])
        elif not quantised(params):
            narrow = next(dtype for dtype, its_kind in _TYPES.items() if its_kind == kind)
            matrices = {name: tensor for name, tensor in params.items() if tensor.ndim > 1}
            _check_rounding(matrices, narrow, f"--type {kind}")
        write_gguf(target, params, config, tokenizer, kind=kind)
        return kind
    if options.dtype:
        _check_rounding(params, options.dtype, f"--dtype {options.dtype}")
        dtype = getattr(torch, options.dtype)
        params = map_tensors(params, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)
    if options.to == "meta":
        from llama3_scratch.checkpoint.meta import write_meta

        write_meta(target, params, config, tokenizer, shards=options.shards or 1)
    else:
        from llama3_scratch.checkpoint.hf_out import write_hf

        if sibling := quantised(params):
            raise UsageError(
                f"{sibling}: Hugging Face's layout has no place for quantised weights; give --dtype to make floats of "
                "them"
            )
        write_hf(target, params, config, tokenizer)
    return stored(params, "layers.0.feed_forward.w1").name


_TYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_BLOCKS = {"int8": "Q8_0", "int4": "Q4_1", "int4-sym": "Q4_0"}


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


if __name__ == "__main__":
    raise SystemExit(main())
