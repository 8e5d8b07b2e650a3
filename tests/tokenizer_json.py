"""Whole tokenizer.json files with added tokens, and the package `tokenizers` reading them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llama3_scratch.text.byte_level import to_alphabet
from llama3_scratch.text.tokenizer import PATTERN

tokenizers = pytest.importorskip("tokenizers")

BYTES = {to_alphabet(bytes([byte])): byte for byte in range(256)}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
SPLIT = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def document(*added: dict[str, Any], merges: tuple[str, ...] = ("a b", "Ġ ab")) -> dict[str, Any]:
    """A whole tokenizer.json; each of `added` has a content and what differs from a control token's flags."""
    vocabulary = BYTES | {merge.replace(" ", ""): 256 + i for i, merge in enumerate(merges)}
    tokens = []
    for token in added:
        id = vocabulary.get(token["content"], len(vocabulary) + sum(t["content"] not in vocabulary for t in tokens))
        tokens.append({"id": id, **FLAGS, "special": True, **token})
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": tokens,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [SPLIT, BYTE_LEVEL]},
        "post_processor": None,
        "decoder": BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": list(merges),
        },
    }


def folder(path: Path, data: dict[str, Any], **beside: Any) -> Path:
    for name, content in {"tokenizer": data, "tokenizer_config": {}, **beside}.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


def theirs(data: dict[str, Any], *, special: bool = False) -> Any:
    """The same file in Hugging Face's library; special tokens stay text as here, unless `special`."""
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(data))
    tokenizer.encode_special_tokens = not special
    return tokenizer
