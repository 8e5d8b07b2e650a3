"""llama2.c's flat float32 `.bin`: seven int32 sizes, then the weights, one kind after another."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import torch

from llama3_scratch.config import Config
from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.stored import Params
from llama3_scratch.system.files import require_file


def read_llama2c(path: Path) -> tuple[Config, Params]:
    """The config and the weights (f32, mapped) of a `.bin` in llama2.c's first format (its `export.py`, version 0)."""
    require_file(path, "a llama2.c .bin file")
    with path.open("rb") as file:
        header = file.read(28)
    if len(header) < 28:
        raise FileError(f"{path}: truncated: a llama2.c header has 28 bytes, found {len(header)}")
    dim, hidden, layers, heads, kv_heads, vocab, context = struct.unpack("<7i", header)
    tied, vocab = vocab > 0, abs(vocab)  # a negative vocabulary size says that a head of its own follows
    try:
        config = Config(dim, layers, heads, kv_heads, vocab, hidden, 1e-5, 10_000.0, max_seq_len=context, tied=tied)
    except UsageError as error:
        raise FileError(f"{path}: not a llama2.c header: {error}") from error
    kinds = {
        "tok_embeddings": (vocab, dim),
        "attention_norm": (layers, dim),
        "attention.wq": (layers, dim, dim),
        "attention.wk": (layers, kv_heads * config.head_dim, dim),
        "attention.wv": (layers, kv_heads * config.head_dim, dim),
        "attention.wo": (layers, dim, dim),
        "ffn_norm": (layers, dim),
        "feed_forward.w1": (layers, hidden, dim),
        "feed_forward.w2": (layers, dim, hidden),
        "feed_forward.w3": (layers, hidden, dim),
        "norm": (dim,),
        "rope tables, unused": (2 * context, config.head_dim // 2),
        **({} if tied else {"output": (vocab, dim)}),
    }
    sizes = [math.prod(shape) for shape in kinds.values()]
    wanted, found = 28 + 4 * sum(sizes), path.stat().st_size
    if wanted != found:
        raise FileError(
            f"{path}: its header means {wanted} bytes, found {found}; truncated, or not llama2.c's version 0"
        )
    # Mapped from the start, header and all, because a map has to begin at a page.
    floats = torch.from_file(str(path), shared=False, size=found // 4, dtype=torch.float32)[7:]
    params: Params = {}
    for (kind, shape), values in zip(kinds.items(), floats.split(sizes), strict=True):
        tensor = values.view(shape)
        if "attention" in kind or "ffn" in kind or "feed_forward" in kind:
            params |= {f"layers.{layer}.{kind}.weight": tensor[layer] for layer in range(layers)}
        elif "rope" not in kind:
            params[f"{kind}.weight"] = tensor
    if tied:
        params["output.weight"] = params["tok_embeddings.weight"]
    return config, params
