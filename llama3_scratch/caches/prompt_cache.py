"""A cache on disk: what a model has seen of a prompt, to begin the next run with.

One safetensors file: the tokens, what every layer keeps of them in the cache's own form, and in its metadata all that
has to be the same for them to mean the same: the model with its RoPE, by a hash of all its weights, the activations'
dtype, the form. The tokenizer hasn't: what is kept belongs to tokens, whatever words they stand for.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llama3_scratch.cache import Cache, Slots
from llama3_scratch.checkpoint.fingerprint import Origin, fingerprint
from llama3_scratch.checkpoint.hf_out import write_safetensors
from llama3_scratch.config import Config
from llama3_scratch.errors import FileError
from llama3_scratch.stored import Params, dtype_name
from llama3_scratch.system.files import listed, require_file
from llama3_scratch.system.writing import fresh_file, unwritable

log = logging.getLogger("llama3_scratch")

WHAT = "llama3_scratch prompt cache"
_PARTS = ("keys", "values")
_VERSION = "2"


def save(
    path: Path,
    cache: Cache,
    tokens: Sequence[int],
    params: Params,
    config: Config,
    dtype: torch.dtype,
    *,
    origin: Origin | None = None,
) -> None:
    """Write what the cache holds of `tokens`, the whole file or nothing. All weights are hashed, unless the hash is
    remembered by their `origin`."""
    tensors = {"tokens": torch.tensor(list(tokens)[: cache.length])}
    for name, layer in cache.layers.items():
        for part, kept in zip(_PARTS, layer, strict=True):
            for attribute, tensor in kept.tensors().items():
                tensors[f"{name}.{part}.{attribute}"] = tensor[:, : cache.length].cpu().contiguous()
    metadata = {"what": WHAT, "crc32": str(_checksum(tensors)), **_meaning(cache, params, config, dtype, origin)}
    try:
        with fresh_file(path) as temporary:
            write_safetensors(temporary, tensors, metadata)
    except OSError as error:
        raise unwritable(path, error) from error


def load(
    path: Path, cache: Cache, params: Params, config: Config, dtype: torch.dtype, *, origin: Origin | None = None
) -> list[int]:
    """Fill an empty cache from the file; the tokens that it holds then.

    Raises FileError for a file that is damaged or was made with another model, RoPE, dtype or form of the cache.
    """
    require_file(path, "a prompt cache")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("what") != WHAT:
                raise FileError(f"{path}: a safetensors file, but no prompt cache; take another name")
            if metadata.get("version") != _VERSION:
                raise FileError(f"{path}: made by another version of this program; delete it")
            _check_meaning(path, metadata, _meaning(cache, params, config, dtype, origin))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise FileError(f"{path}: damaged, expected a prompt cache: {error}; delete it") from error
    if metadata.get("crc32") != str(_checksum(tensors)):
        raise FileError(f"{path}: damaged, its numbers don't add up to the checksum stored with them; delete it")
    tokens = tensors.pop("tokens", torch.empty(0))
    if tokens.ndim != 1 or tokens.dtype != torch.long:
        raise FileError(
            f"{path}: expected the tokens as a row of int64, got {dtype_name(tokens.dtype)} {list(tokens.shape)}"
        )
    if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < config.vocab_size:
        raise FileError(
            f"{path}: holds tokens from {int(tokens.min())} to {int(tokens.max())}, the vocabulary has "
            f"{config.vocab_size}; delete it"
        )
    if len(tokens) > cache.limit:
        raise FileError(f"{path}: holds {len(tokens)} tokens, the context is {cache.limit}; raise `max_seq_len`")
    device = params["tok_embeddings.weight"].device
    like_BTGK = torch.empty(1, 0, config.n_kv_heads, config.head_dim, dtype=dtype, device=device)
    for layer in range(config.n_layers):
        name = f"layers.{layer}.attention"
        for part, kept in zip(_PARTS, cache.room(name, len(tokens), like_BTGK), strict=True):
            for attribute, tensor in kept.tensors().items():
                place, key = tensor[:, : len(tokens)], f"{name}.{part}.{attribute}"
                found = tensors.pop(key, None)
                if found is None or (found.shape, found.dtype) != (place.shape, place.dtype):
                    got = "none" if found is None else f"{dtype_name(found.dtype)} {list(found.shape)}"
                    raise FileError(f"{path}: {key}: expected {dtype_name(place.dtype)} {list(place.shape)}, got {got}")
                place.copy_(found)
    if tensors:
        raise FileError(f"{path}: {listed(sorted(tensors), 3)} no part of a cache of this model; delete it")
    cache.advance(len(tokens))
    return tokens.tolist()


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _meaning(cache: Cache, params: Params, config: Config, dtype: torch.dtype, origin: Origin | None) -> dict[str, str]:
    """What must be equal for a file to be of use: by name, as text."""
    sizes = asdict(config)
    del sizes["max_seq_len"]  # how much of the context is used changes nothing of it
    like_BTGK = torch.empty(1, 0, config.n_kv_heads, config.head_dim, dtype=dtype)
    return {
        "version": _VERSION,
        **{name: json.dumps(value) for name, value in sizes.items()},
        "weights": fingerprint(params, origin),
        "dtype": dtype_name(dtype),
        **{part: _form(keep(like_BTGK)) for part, keep in zip(_PARTS, cache.forms, strict=True)},
    }


def _check_meaning(path: Path, found: dict[str, str], wanted: dict[str, str]) -> None:
    for name, value in wanted.items():
        if found.get(name) != value:
            of = "other weights" if name == "weights" else f"{name} {found.get(name)}, this run has {value}"
            raise FileError(f"{path}: made with {of}; delete it, or take another file")


def _form(kept: Slots) -> str:
    """`float32`, `int8 in groups of 32`."""
    tensors = kept.tensors()
    if (scales := tensors.get("scales")) is None:
        return dtype_name(kept.values.dtype)
    return f"int{8 * kept.values.shape[-1] // kept.head_dim} in groups of {kept.head_dim // scales.shape[-1]}"


def _checksum(tensors: dict[str, Tensor]) -> int:
    total = 0
    for name in sorted(tensors):
        total = zlib.crc32(_bytes(tensors[name]), zlib.crc32(name.encode(), total))
    return total


def _bytes(tensor: Tensor) -> Any:
    """The tensor's bytes, where they lie."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy()
