"""A file as llama2.c's export writes it, made from a tiny Llama's weights."""

from __future__ import annotations

import struct

import torch

from llama3_scratch.config import Config

CONFIG = Config(24, 2, 6, 2, 31, 20, rope_theta=10_000.0, max_seq_len=16, tied=True)
SIZES = (24, 20, 2, 6, 2, 31, 16)


def write(path, params, config, *, header=None, tail=b""):
    """The file as llama2.c's export writes it: kind by kind, each over all layers."""
    kinds = ["attention_norm", "attention.wq", "attention.wk", "attention.wv", "attention.wo"]
    kinds += ["ffn_norm", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3"]
    tensors = [params["tok_embeddings.weight"]]
    tensors += [params[f"layers.{layer}.{kind}.weight"] for kind in kinds for layer in range(config.n_layers)]
    tensors += [params["norm.weight"], torch.full((config.max_seq_len, config.head_dim), 7.0)]
    tensors += [] if config.tied else [params["output.weight"]]
    data = b"".join(tensor.contiguous().numpy().tobytes() for tensor in tensors)
    sizes = header or (*SIZES[:5], config.vocab_size if config.tied else -config.vocab_size, *SIZES[6:])
    path.write_bytes(struct.pack("<7i", *sizes) + data + tail)
    return path
