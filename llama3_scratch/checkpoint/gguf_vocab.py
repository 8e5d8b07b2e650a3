"""A GGUF file's `tokenizer.*` metadata ↔ our tokenizer. No torch here."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from llama3_scratch.checkpoint.byte_level import PATTERNS, byte_level_tokenizer, merges, to_alphabet
from llama3_scratch.checkpoint.chat_format import adopt_template, chat_settings, written_template
from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.files import text
from llama3_scratch.tokenizer import PATTERN, ChatTemplate, Tokenizer

log = logging.getLogger("llama3_scratch")

NORMAL, CONTROL, UNUSED = 1, 3, 5  # llama.h, enum llama_token_type


def read_vocabulary(values: dict[str, Any], path: Path, rows: int) -> Tokenizer | None:
    """The byte-level BPE for an embedding of `rows` rows; None, with a logged note, where there is another kind."""
    model = text(values, "tokenizer.ggml.model", path)
    if model != "gpt2":
        log.info("%s: no tokenizer: tokenizer.ggml.model is %r, only byte-level BPE ('gpt2') is read", path, model)
        return None
    pre = text(values, "tokenizer.ggml.pre", path, "default")
    if pre not in PATTERNS:
        known = ", ".join(PATTERNS)
        log.info("%s: no tokenizer: tokenizer.ggml.pre is %r, expected one of %s", path, pre, known)
        return None
    words = _strings(values, "tokenizer.ggml.tokens", path)
    if len(words) != rows:
        raise FileError(f"{path}: tokenizer.ggml.tokens has {len(words)} tokens, token_embd.weight has {rows} rows")
    ids = {word: id for id, word in enumerate(words)}
    if len(ids) < len(words):
        twice = next(word for id, word in enumerate(words) if ids[word] != id)
        raise FileError(f"{path}: tokenizer.ggml.tokens: {twice!r} stands twice, expected every token once")
    kinds = _kinds(values, path, rows)
    # Whatever isn't normal is matched whole or not at all; a placeholder stands only for its row.
    special = {word: id for word, id in ids.items() if kinds[id] not in (NORMAL, UNUSED)}
    eos_id = _id(values, "eos", path, rows)
    stops = {eos_id, _id(values, "eot", path, rows), _id(values, "eom", path, rows)}
    template = text(values, "tokenizer.chat_template", path)
    chat_format, system_prompt = chat_settings(template, special, [] if eos_id is None else [eos_id])
    # As in llama.cpp: Llama 3's kind begins with BOS unless the file says otherwise, GPT-2's doesn't.
    llama3 = PATTERNS[pre] == PATTERN
    add_bos = values.get("tokenizer.ggml.add_bos_token", llama3)
    tokenizer = byte_level_tokenizer(
        {word: id for word, id in ids.items() if kinds[id] == NORMAL},
        _merges(values, path),
        special,
        pattern=PATTERNS[pre],
        bos_id=_id(values, "bos", path, rows),
        eos_id=eos_id,
        stop_tokens=sorted(id for id in stops if id is not None),
        chat_format=chat_format,
        add_bos=add_bos is True,
        system_prompt=system_prompt,
        ignore_merges=llama3,
        source=path,
    )
    if template is not None:
        names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
        named = {token: _id(values, key, path, rows) for token, key in names.items()}
        variables = {token: words[id] for token, id in named.items() if id is not None}
        adopt_template(tokenizer, ChatTemplate(template, variables))
    return tokenizer


def vocabulary(tokenizer: Tokenizer, rows: int) -> dict[str, Any]:
    """The metadata that says a tokenizer, for an embedding of `rows` rows: key → text, number, truth or list."""
    pre = next((name for name, pattern in PATTERNS.items() if pattern == tokenizer.pattern), None)
    if pre is None:
        raise UsageError(f"llama.cpp splits text as one of {', '.join(PATTERNS)}, not by {tokenizer.pattern!r}")
    if tokenizer.n_words > rows:
        raise UsageError(f"the tokenizer has {tokenizer.n_words} tokens, the embedding {rows} rows; they don't belong")
    words = [f"[PAD{id}]" for id in range(rows)]
    kinds = [UNUSED] * rows
    for token, id in tokenizer.ranks.items():
        words[id], kinds[id] = to_alphabet(token), NORMAL
    for name, id in tokenizer.special_tokens.items():
        words[id], kinds[id] = name, CONTROL
    ids = {
        "bos": tokenizer.bos_id,
        "eos": tokenizer.eos_id,
        **{name: tokenizer.special_tokens.get(f"<|{name}_id|>") for name in ("eot", "eom")},
    }
    values = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": [f"{to_alphabet(a)} {to_alphabet(b)}" for a, b in merges(tokenizer.ranks)],
        **{f"tokenizer.ggml.{name}_token_id": id for name, id in ids.items()},
        "tokenizer.ggml.add_bos_token": tokenizer.add_bos,
        "tokenizer.chat_template": written_template(tokenizer).get("chat_template"),
    }
    return {key: value for key, value in values.items() if value is not None}


def _strings(values: dict[str, Any], key: str, path: Path) -> list[str]:
    value = values.get(key)
    if not isinstance(value, list):
        raise FileError(f"{path}: {key} must be an array of texts, got {_described(value)}")
    return value


def _described(value: Any) -> str:
    """What a wrong value is, briefly, since it may be an array of a million."""
    if isinstance(value, np.ndarray | list):
        return f"{len(value)} of {value.dtype if isinstance(value, np.ndarray) else 'text'}"
    return "nothing" if value is None else repr(value)


def _kinds(values: dict[str, Any], path: Path, rows: int) -> list[int]:
    kinds = values.get("tokenizer.ggml.token_type")
    if kinds is None:
        return [NORMAL] * rows
    if not isinstance(kinds, np.ndarray) or kinds.dtype.kind not in "iu" or len(kinds) != rows:
        got = _described(kinds)
        raise FileError(f"{path}: tokenizer.ggml.token_type must be {rows} whole numbers, got {got}")
    return kinds.tolist()


def _merges(values: dict[str, Any], path: Path) -> list[tuple[str, str]]:
    merges = []
    # The gguf package leaves an empty array out: a vocabulary of single bytes has no merges.
    stored = _strings(values, "tokenizer.ggml.merges", path) if "tokenizer.ggml.merges" in values else []
    for index, merge in enumerate(stored):
        left, _, right = merge.partition(" ")
        if not (left and right) or " " in right:
            raise FileError(f"{path}: tokenizer.ggml.merges: entry {index} must be two tokens, got {merge!r}")
        merges.append((left, right))
    return merges


def _id(values: dict[str, Any], name: str, path: Path, rows: int) -> int | None:
    key = f"tokenizer.ggml.{name}_token_id"
    id = values.get(key)
    if id is not None and not (isinstance(id, int) and 0 <= id < rows):
        raise FileError(f"{path}: {key} must be an id from 0 to {rows - 1}, got {_described(id)}")
    return id
