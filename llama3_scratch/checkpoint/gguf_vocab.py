"""A GGUF file's `tokenizer.*` metadata ↔ our tokenizer. No torch here."""

from __future__ import annotations

import logging
from collections.abc import Collection
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.system.json_fields import text_field
from llama3_scratch.text.byte_level import byte_level_tokenizer, merges, to_alphabet
from llama3_scratch.text.chat_format import adopt_template, chat_settings, written_template
from llama3_scratch.text.hf_added_tokens import control_names
from llama3_scratch.text.pre_tokenizers import RULES, rule_name
from llama3_scratch.text.tokenizer import ChatTemplate, Tokenizer

log = logging.getLogger("llama3_scratch")

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5  # llama.h, enum llama_token_type


def read_vocabulary(values: dict[str, Any], path: Path, rows: int) -> Tokenizer | None:
    """The byte-level BPE for an embedding of `rows` rows; None, with a logged note, where there is another kind."""
    model = text_field(values, "tokenizer.ggml.model", path)
    if model != "gpt2":
        log.info("%s: no tokenizer: tokenizer.ggml.model is %r, only byte-level BPE ('gpt2') is read", path, model)
        return None
    words = _strings(values, "tokenizer.ggml.tokens", path)
    if len(words) != rows:
        raise FileError(f"{path}: tokenizer.ggml.tokens has {len(words)} tokens, token_embd.weight has {rows} rows")
    pre = _pre(values, words, path)
    if pre not in RULES:
        log.info("%s: no tokenizer: tokenizer.ggml.pre is %r, expected one of %s", path, pre, ", ".join(RULES))
        return None
    rule = RULES[pre]
    if empty := [id for id, word in enumerate(words) if not word]:
        log.warning("%s: token %d of tokenizer.ggml.tokens is empty; left out", path, empty[0])
    ids = {word: id for id, word in enumerate(words) if word}
    if len(ids) < len(words) - len(empty):
        twice = next(word for id, word in enumerate(words) if word and ids[word] != id)
        raise FileError(f"{path}: tokenizer.ggml.tokens: {twice!r} stands twice, expected every token once")
    kinds = _kinds(values, path, rows)
    pairs = _merges(values, path)
    # As in llama.cpp: what ends a turn is a control token in any case, and merging makes a token of whatever kind.
    control = control_names(set(ids)) | {word for word, id in ids.items() if kinds[id] in (UNKNOWN, CONTROL)}
    special = {word: ids[word] for word in words if word in control}
    added = {word: id for word, id in ids.items() if kinds[id] == USER_DEFINED and word not in control}
    made = {*chain.from_iterable(pairs), *map("".join, pairs)}
    tokens = {word: id for word, id in ids.items() if kinds[id] == NORMAL or word in made or len(word) == 1}
    known = {*tokens.values(), *special.values(), *added.values()}
    eos_id = _id(values, "eos", path, rows, known)
    stops = {eos_id, _id(values, "eot", path, rows, known), _id(values, "eom", path, rows, known)}
    template = text_field(values, "tokenizer.chat_template", path)
    chat_format, system_prompt = chat_settings(template, special, [] if eos_id is None else [eos_id])
    bos_id = _id(values, "bos", path, rows, known)
    # As in llama.cpp: Llama 3's kind begins with BOS unless the file says otherwise, GPT-2's doesn't.
    add_bos = values.get("tokenizer.ggml.add_bos_token", rule.add_bos) is True
    if add_bos and bos_id is None:
        log.warning("%s: texts begin with BOS, but tokenizer.ggml.bos_token_id names none; they go without", path)
    tokenizer = byte_level_tokenizer(
        tokens,
        pairs,
        special,
        pattern=rule.pattern,
        bos_id=bos_id,
        eos_id=eos_id,
        stop_tokens=sorted(id for id in stops if id is not None),
        chat_format=chat_format,
        add_bos=add_bos and bos_id is not None,
        system_prompt=system_prompt,
        ignore_merges=rule.ignore_merges,
        splits=rule.splits,
        added_tokens=added,
        longest_first=bool(added),  # special tokens alone don't overlap
        source=path,
    )
    if template is not None:
        others = {"unk_token": "unknown", "pad_token": "padding"}
        named = {token: _id(values, key, path, rows, known) for token, key in others.items()}
        named |= {"bos_token": bos_id, "eos_token": eos_id}
        variables = {token: words[id] for token, id in named.items() if id is not None}
        adopt_template(tokenizer, ChatTemplate(template, variables))
    return tokenizer


def _pre(values: dict[str, Any], words: list[str], path: Path) -> str:
    """GGUF's name for how text is split, with a warning where the file doesn't say."""
    pre = text_field(values, "tokenizer.ggml.pre", path, "")
    if pre not in ("", "default"):
        return pre
    said = "tokenizer.ggml.pre is missing" if pre == "" else "tokenizer.ggml.pre is 'default'"
    if words[128_000:128_002] == ["<|begin_of_text|>", "<|end_of_text|>"]:
        log.warning("%s: %s; the vocabulary is Llama 3's, so text is split and begun as Llama 3's", path, said)
        return "llama-bpe"
    if pre == "":
        log.warning("%s: %s; text is split as llama.cpp does then ('default'), which may be wrong", path, said)
    return "default"


def vocabulary(tokenizer: Tokenizer, rows: int) -> dict[str, Any]:
    """The metadata that says a tokenizer, for an embedding of `rows` rows: key → text, number, truth or list."""
    pre = rule_name(tokenizer)
    if tokenizer.n_words > rows:
        raise UsageError(f"the tokenizer has {tokenizer.n_words} tokens, the embedding {rows} rows; they don't belong")
    words = [f"[PAD{id}]" for id in range(rows)]
    kinds = [UNUSED] * rows
    for token, id in tokenizer.ranks.items():
        words[id], kinds[id] = to_alphabet(token), NORMAL
    spelt = set(words)
    for name, id in (tokenizer.special_tokens | tokenizer.added_tokens).items():
        if name in spelt and words[id] != name:
            raise UsageError(f"GGUF can't hold both the added token {name!r} and the bytes that it spells so")
        words[id], kinds[id] = name, CONTROL if name in tokenizer.special_tokens else USER_DEFINED
    if kept := [name for name, flags in tokenizer.token_flags.items() if flags.keys() - {"normalized"}]:
        log.warning("GGUF can't say that the added token %r takes the spaces beside it or is a single word", kept[0])
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


def _id(values: dict[str, Any], name: str, path: Path, rows: int, known: Collection[int]) -> int | None:
    key = f"tokenizer.ggml.{name}_token_id"
    id = values.get(key)
    if id is None:
        return None
    if not isinstance(id, int) or isinstance(id, bool):
        raise FileError(f"{path}: {key} must be an id from 0 to {rows - 1}, got {_described(id)}")
    if not (0 <= id < rows and id in known):
        log.warning("%s: %s is %d, which is no token; left out", path, key, id)
        return None
    return id
