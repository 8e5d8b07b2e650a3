"""Hugging Face's layout of the same weights: its names of Meta's tensors, and its order of the rows that RoPE turns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llama3_scratch.config import Config

if TYPE_CHECKING:  # the headers of files are read without torch
    from torch import Tensor

# A layer's modules in the order in which they run, by Meta's names.
LAYER_MODULES = {
    "attention_norm": "input_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
}
_NAMES = {"tok_embeddings": "model.embed_tokens", **LAYER_MODULES, "norm": "model.norm", "output": "lm_head"}


def hf_name(name: str) -> str:
    """Hugging Face's name of a tensor that Meta's files call `name`."""
    stem = name.removesuffix(".weight")
    if not stem.startswith("layers."):
        return f"{_NAMES[stem]}.weight"
    _, layer, kind = stem.split(".", 2)
    return f"model.layers.{layer}.{_NAMES[kind]}.weight"


def interleaved(rows: Tensor, heads: int) -> Tensor:
    """Rows of q or k (heads · K, …) from Hugging Face's order (i beside i + K/2) to Meta's (2i beside 2i + 1)."""
    return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def half_split(rows: Tensor, heads: int) -> Tensor:
    """Rows of q or k (heads · K, …) from Meta's order to Hugging Face's: the inverse of `interleaved`."""
    return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def rotated_heads(name: str, config: Config) -> int | None:
    """How many heads RoPE turns in the output of the weight `name`; None where it turns nothing."""
    kind = name.removesuffix(".weight").rpartition(".")[2]
    return {"wq": config.n_heads, "wk": config.n_kv_heads}.get(kind)
