"""GGUF files out, through the `gguf` package, so that llama.cpp and ollama serve what is trained here."""

from __future__ import annotations

import contextlib
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llama3_scratch.checkpoint.ggml_blocks import block_format, blocks_of_tiles
from llama3_scratch.checkpoint.gguf import gguf_name
from llama3_scratch.checkpoint.gguf_rope import ROPE_FREQS, scaling_divisors
from llama3_scratch.checkpoint.gguf_vocab import vocabulary
from llama3_scratch.config import Config, expected
from llama3_scratch.errors import UsageError
from llama3_scratch.stored import TILE_COLUMNS, Floats, Params, Tiles, stored, units
from llama3_scratch.system.files import listed
from llama3_scratch.system.writing import fresh_file, unwritable
from llama3_scratch.text.tokenizer import Tokenizer
from llama3_scratch.tied import tie

log = logging.getLogger("llama3_scratch")

# `general.file_type` of each kind (llama.h, enum llama_ftype).
FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7, "Q4_0": 2, "Q4_1": 3}


def write_gguf(path: Path, params: Params, config: Config, tokenizer: Tokenizer | None, *, kind: str) -> None:
    """Write a GGUF file with matrices of `kind`: F32, F16, BF16, Q8_0, Q4_0 or Q4_1. It appears whole or not at all.

    Norms stay F32; under Q4_0 and Q4_1 embedding and head are Q8_0; rows that aren't whole blocks are F16. A matrix
    that is int8, int4 or int4-sym already is written as those blocks, number for number, whatever `kind` says of the
    others; int8-row, the form of rows that aren't whole tiles, becomes F16.
    """
    try:
        import gguf
    except ImportError as error:
        raise UsageError('writing GGUF needs the package gguf, which is missing: pip install -e ".[gguf]"') from error
    if kind not in FILE_TYPES:
        raise UsageError(f"GGUF is written as one of {', '.join(FILE_TYPES)}, got {kind!r}")
    params = tie(params, config)
    names = [name for name in expected(config) if not (config.tied and name == "output.weight")]
    stems = tuple(name.removesuffix("weight") for name in [*names, "output.weight"])
    unwritten = [name for name in params if ".adaptor." in name or not name.startswith(stems)]
    weights = {name: stored(params, name.removesuffix(".weight")) for name in names}
    unwritten += [name for name in names if params[name].ndim > 1 and not _has_place(weights[name])]
    if unwritten:
        raise UsageError(
            f"{unwritten[0]}: adapters and weights in forms other than floats, int8, int4, int4-sym and int8-row have "
            "no place in a GGUF file of a Llama; merge the adapters, or give the weights as floats"
        )
    path = Path(path)
    kinds = {name: _kind(weights[name], name, kind) for name in names}
    odd = [name for name in names if type(weights[name]) is Floats and kind.startswith("Q") and kinds[name] == "F16"]
    if odd:
        log.warning("%s stored as F16: %s takes %s", listed(odd, 4), kind, units(1, TILE_COLUMNS))
    divisors = _divisors(config)
    words = {"tokenizer.ggml.model": "none"} if tokenizer is None else vocabulary(tokenizer, config.vocab_size)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with fresh_file(path) as temporary, contextlib.closing(gguf.GGUFWriter(temporary, "llama")) as writer:
            writer.add_name(path.stem)
            writer.add_file_type(FILE_TYPES[kind])
            _add_sizes(writer, config)
            _add_vocabulary(writer, words)
            if divisors is not None:
                writer.add_tensor_info(ROPE_FREQS, divisors.shape, divisors.dtype, divisors.nbytes)
            for name in names:
                number = gguf.GGMLQuantizationType[kinds[name]]
                block, block_bytes = gguf.GGML_QUANT_SIZES[number]
                shape = tuple(params[name].shape) if params[name].ndim == 1 else weights[name].shape
                n_bytes = math.prod(shape) // block * block_bytes
                writer.add_tensor_info(gguf_name(name), shape, np.dtype(np.float32), n_bytes, raw_dtype=number)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            if divisors is not None:
                writer.write_tensor_data(divisors)
            for name in names:
                writer.write_tensor_data(_encoded(weights[name], name, kinds[name]))
    except OSError as error:
        raise unwritable(path, error) from error


def _add_sizes(writer: Any, config: Config) -> None:
    writer.add_context_length(config.max_seq_len)
    writer.add_embedding_length(config.dim)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.hidden_dim)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_rope_dimension_count(config.head_dim)
    if config.head_dim * config.n_heads != config.dim:
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _add_vocabulary(writer: Any, values: dict[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)


def _divisors(config: Config) -> np.ndarray | None:
    if config.rope_divisors is not None:
        return np.array(config.rope_divisors, np.float32)
    if config.rope_scaling is not None:
        return np.array(scaling_divisors(config.rope_scaling, config.rope_theta, config.head_dim), np.float32)
    return None


def _has_place(weight: Floats) -> bool:
    return type(weight) is Floats or block_format(weight) is not None or weight.name == "int8-row"


def _kind(weight: Floats, name: str, kind: str) -> str:
    if weight.values.ndim == 1:
        return "F32"
    if type(weight) is not Floats:
        return block_format(weight) or "F16"
    if kind.startswith("Q"):
        if weight.shape[1] % TILE_COLUMNS:
            return "F16"
        if name in ("tok_embeddings.weight", "output.weight"):
            return "Q8_0"
    return kind


def _encoded(weight: Floats, name: str, kind: str) -> np.ndarray:
    """The bytes of one tensor, as an array."""
    import gguf

    if isinstance(weight, Tiles):
        return blocks_of_tiles(weight).numpy()
    plain = weight.floats(slice(None), weight.dtype).detach().cpu()
    if kind == "BF16":
        return plain.bfloat16().contiguous().view(torch.int16).numpy()
    if kind == "F16":
        halves = plain.half().contiguous()
        if not halves.isfinite().all():
            raise UsageError(f"{name} has values beyond 65504, which F16 can't hold; write F32 or BF16")
        return halves.numpy()
    floats = plain.float().contiguous().numpy()
    return floats if kind == "F32" else gguf.quantize(floats, gguf.GGMLQuantizationType[kind])
