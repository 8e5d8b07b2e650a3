"""The tiny world of the tests: a Llama whose every dimension is a different number, seeded weights, real data."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch

from llama3_scratch.checkpoint.meta import write_meta
from llama3_scratch.config import Config, RopeScaling
from llama3_scratch.init import init
from llama3_scratch.stored import Params
from llama3_scratch.text.byte_level import BYTE_OF, byte_level_tokenizer
from llama3_scratch.text.pre_tokenizers import GPT2_PATTERN
from llama3_scratch.text.tokenizer import PATTERN, Tokenizer

# D=48 L=5 H=6 G=2 (R=3) V=67 F=40, K=8, J=4
CONFIG = Config(48, 5, 6, 2, 67, 40, rope_scaling=RopeScaling(32.0), max_seq_len=4096)
# The same for forms in tiles and groups of 64: D=192 L=5 H=6 G=2 (R=3) V=80 F=64, K=32, J=16
TILED = replace(CONFIG, dim=192, vocab_size=80, hidden_dim=64, head_dim=32)

META_SPECIAL = [
    f"<|{name}|>"
    for name in ["begin_of_text", "end_of_text", "start_header_id", "end_header_id", "eom_id", "eot_id", "python_tag"]
]


def params(
    config: Config = CONFIG, *, seed: int = 0, std: float | None = None, dtype: torch.dtype = torch.float32
) -> Params:
    """Weights wild enough for a wrong eps or an unpermuted query to show: matrices N(0, std), norms 1 + 0.2 N(0, 1).

    `std` is 0.3 for the tiny world and less for a wider one, whose sums are longer.
    """
    std = 0.3 * math.sqrt(CONFIG.dim / config.dim) if std is None else std
    return init(config, seed=seed, std=std, norm_std=0.2, dtype=dtype)


def tokens(batch: int, length: int, config: Config = CONFIG, *, seed: int = 1) -> torch.Tensor:
    """Random token ids: tokens_BT."""
    return torch.randint(config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


def data(name: str) -> Path:
    """A file of the tests' data, which are all shipped; their licences stand in data/README.md."""
    return Path(__file__).with_name("data") / name


def tokenizer(chat_format: str | None = "chatml") -> Tokenizer:
    """A token for each byte, and the special tokens of a chat format."""
    names = {"chatml": ["<|im_start|>", "<|im_end|>"], "llama3": META_SPECIAL, None: ["<s>", "</s>"]}[chat_format]
    special = {name: 256 + i for i, name in enumerate(names)}
    first, last = (
        special[name] for name in (("<|begin_of_text|>", "<|eot_id|>") if chat_format == "llama3" else names)
    )
    return Tokenizer(
        {bytes([byte]): byte for byte in range(256)},
        pattern=PATTERN,
        special_tokens=special,
        bos_id=first,
        eos_id=last,
        stop_tokens=[last],
        chat_format=chat_format,
        add_bos=chat_format != "chatml",
    )


def llama_cpp_tokenizer() -> Tokenizer:
    """A vocabulary of 512 that llama.cpp opens, which wants one with a merge; where prompts are ids, any will do."""
    return byte_level_tokenizer(
        {**BYTE_OF, "th": 256},
        [("t", "h")],
        {"</s>": 511},
        pattern=GPT2_PATTERN,
        bos_id=None,
        eos_id=511,
        stop_tokens=[511],
        chat_format=None,
        add_bos=False,
        source=Path("llama_cpp_tokenizer"),
    )


def folder(path: Path, chat_format: str | None = "chatml", *, seed: int = 0, shards: int = 1) -> Path:
    """A tiny model that can talk, in Meta's layout."""
    config = replace(CONFIG, vocab_size=272, hidden_dim=44)
    write_meta(path, params(config, seed=seed), config, tokenizer(chat_format), shards=shards)
    return path
