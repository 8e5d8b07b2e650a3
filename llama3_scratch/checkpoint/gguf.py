"""GGUF files of the llama architecture: the config that a header gives, and the weights under Meta's names.

Q and K rows already stand in Meta's order (pairs side by side), so names are all that changes. Source: llama.cpp's
llama-model-loader.cpp.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from llama3_scratch.checkpoint.ggml_blocks import BLOCK_FORMATS, dequantize, has_tiles, tiles_of_blocks
from llama3_scratch.checkpoint.gguf_header import FLOATS, Header, StoredTensor, read_header
from llama3_scratch.checkpoint.gguf_rope import ROPE_FREQS, with_rope
from llama3_scratch.checkpoint.gguf_vocab import read_vocabulary
from llama3_scratch.config import Config, expected
from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.stored import Params
from llama3_scratch.system.files import listed
from llama3_scratch.system.json_fields import float_field, int_field, text_field
from llama3_scratch.system.memory import MemoryPlan, available_memory, require_memory
from llama3_scratch.text.tokenizer import Tokenizer

log = logging.getLogger("llama3_scratch")

_WORDS = {
    "tok_embeddings": "token_embd",
    "norm": "output_norm",
    "output": "output",
    "attention_norm": "attn_norm",
    "attention.wq": "attn_q",
    "attention.wk": "attn_k",
    "attention.wv": "attn_v",
    "attention.wo": "attn_output",
    "ffn_norm": "ffn_norm",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w3": "ffn_up",
    "feed_forward.w2": "ffn_down",
}


def gguf_name(name: str) -> str:
    """GGUF's name of a tensor that Meta calls `name`."""
    words = name.removesuffix(".weight").split(".")
    block = f"blk.{words[1]}." if words[0] == "layers" else ""
    return f"{block}{_WORDS['.'.join(words[2:] if block else words)]}.weight"


def weight_files(path: Path, names: Iterable[str]) -> dict[str, str]:
    """The part that each stored weight, by Meta's name, was read from."""
    tensors = read_header(path).tensors
    return {name: tensors[gguf_name(name)].path.name for name in names if gguf_name(name) in tensors}


def header_config(header: Header) -> Config:
    """The configuration, checked against every tensor's shape; reads no weights but those of rope_freqs."""
    path, values, tensors = header.path, header.values, header.tensors
    architecture = text_field(values, "general.architecture", path)
    if architecture != "llama":
        raise FileError(f"{path}: general.architecture is {architecture!r}, expected 'llama'")
    if "blk.0.ffn_gate_inp.weight" in tensors:
        raise FileError(f"{path}: this is a mixture of experts (blk.0.ffn_gate_inp.weight), expected a dense Llama")
    if "token_embd.weight" not in tensors:
        raise FileError(f"{path}: tensor token_embd.weight is missing")
    n_heads = int_field(values, "llama.attention.head_count", path)
    try:
        config = Config(
            dim=int_field(values, "llama.embedding_length", path),
            n_layers=int_field(values, "llama.block_count", path),
            n_heads=n_heads,
            n_kv_heads=int_field(values, "llama.attention.head_count_kv", path, n_heads),
            vocab_size=tensors["token_embd.weight"].shape[0],
            hidden_dim=int_field(values, "llama.feed_forward_length", path),
            norm_eps=float_field(values, "llama.attention.layer_norm_rms_epsilon", path),
            rope_theta=float_field(values, "llama.rope.freq_base", path, 10_000.0),
            max_seq_len=int_field(values, "llama.context_length", path),
            tied="output.weight" not in tensors,
            head_dim=int_field(values, "llama.attention.key_length", path, None),
        )
    except UsageError as error:
        raise FileError(f"{path}: {error}") from error
    for key in ("llama.rope.dimension_count", "llama.attention.value_length"):
        if int_field(values, key, path, config.head_dim) != config.head_dim:
            stated = "llama.attention.key_length" in values
            wide = "llama.attention.key_length" if stated else "embedding_length / head_count"
            raise FileError(f"{path}: {key} is {values[key]}, expected {wide} = {config.head_dim}, as a Llama has it")
    _check_tensors(header, config)
    return with_rope(header, config)


def _check_tensors(header: Header, config: Config) -> None:
    path, tensors = header.path, header.tensors
    blocks = {int(found[1]) for name in tensors if (found := re.match(r"blk\.(\d{1,6})\.", name))}
    # Compared before expected() is asked, which would list a name for every layer that a damaged file claims.
    if len(blocks) != config.n_layers or max(blocks, default=0) != config.n_layers - 1:
        raise FileError(
            f"{path}: llama.block_count is {config.n_layers}, but there are tensors of {len(blocks)} blocks"
        )
    wanted = {gguf_name(name): shape for name, shape in expected(config).items()}
    if config.tied:
        del wanted["output.weight"]
    if missing := [name for name in wanted if name not in tensors]:
        raise FileError(f"{path}: {listed(missing)} missing; expected {len(wanted)} tensors, got {len(tensors)}")
    if extra := [name for name in tensors if name not in wanted and name != ROPE_FREQS]:
        raise FileError(f"{path}: {listed(extra)} not part of a Llama of this config")
    for name, shape in wanted.items():
        if tensors[name].shape != shape:
            raise FileError(
                f"{path}: tensor {name!r} has shape {tensors[name].shape}, the metadata's sizes want {shape}"
            )


def _weights(
    stored: StoredTensor, mapped: torch.UntypedStorage, dtype: torch.dtype | None, blocks: str
) -> dict[str, Tensor]:
    """One tensor, mapped as it stands where it is float, decoded into memory where it is in blocks or, if these are to
    be kept as they're `stored`, put in tiles with their scales beside them."""
    # A storage of its own for each tensor, so that saving one doesn't save the whole file.
    data = mapped[stored.start : stored.start + stored.n_bytes]
    if stored.kind in BLOCK_FORMATS:
        flat = torch.empty(0, dtype=torch.uint8).set_(data)
        if _stays(stored, blocks):
            return tiles_of_blocks(flat, stored.kind, stored.shape)
        return {"weight": dequantize(flat, stored.kind, dtype or torch.float32).view(stored.shape)}
    tensor = torch.empty(0, dtype=FLOATS[stored.kind]).set_(data).view(stored.shape)
    return {"weight": tensor if dtype is None else tensor.to(dtype)}


def _stays(stored: StoredTensor, blocks: str) -> bool:
    return blocks == "stored" and has_tiles(stored.kind, stored.shape)


def form(stored: StoredTensor, blocks: str) -> str:
    """The form in which a tensor is read, as `stored.Floats.name` has it."""
    if _stays(stored, blocks):
        return {"Q8_0": "int8", "Q4_0": "int4-sym", "Q4_1": "int4"}[stored.kind]
    return str(FLOATS.get(stored.kind, torch.float32)).removeprefix("torch.")


def allocated(stored: StoredTensor, blocks: str, dtype: torch.dtype | None = None) -> int:
    """Bytes of memory that a tensor takes: none where it stays mapped."""
    if stored.kind not in BLOCK_FORMATS:
        return 0
    return stored.n_bytes if _stays(stored, blocks) else math.prod(stored.shape) * (dtype or torch.float32).itemsize


def read_gguf(
    path: Path, *, dtype: torch.dtype | None = None, blocks: str = "floats"
) -> tuple[Config, Params, Tokenizer | None]:
    """(config, params, tokenizer) of a llama GGUF file, under Meta's names.

    Float tensors stay mapped in their own dtype, quantised ones become f32; `dtype` turns all of them into one.
    With `blocks` "stored" those in Q8_0, Q4_0 and Q4_1 become int8, int4-sym and int4 instead, number for number.
    The tokenizer is None where the file has none that can be used; a logged note says why.
    """
    if blocks not in ("floats", "stored"):
        raise UsageError(f"blocks: expected 'floats' or 'stored', got {blocks!r}")
    path = Path(path)
    header = read_header(path)
    config = header_config(header)
    tokenizer = read_vocabulary(header.values, header.path, config.vocab_size)
    needed = sum(allocated(stored, blocks, dtype) for stored in header.tensors.values())
    require_memory(MemoryPlan(0, needed, 0, 0), available_memory())
    mapped = {
        part: torch.from_file(str(part), shared=False, size=part.stat().st_size, dtype=torch.uint8).untyped_storage()
        for part in {tensor.path for tensor in header.tensors.values()}
    }
    params: Params = {}
    for name in expected(config):
        stem, of = name.removesuffix(".weight"), gguf_name(name)
        if config.tied and stem == "output":
            head = {f"output.{key.partition('.')[2]}": t for key, t in params.items() if key.startswith("tok_")}
            params |= head
            continue
        stored = header.tensors[of]
        parts = _weights(stored, mapped[stored.path], dtype, blocks)
        params |= {f"{stem}.{part}": tensor for part, tensor in parts.items()}
    return config, params, tokenizer
