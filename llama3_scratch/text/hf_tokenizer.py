"""A Hugging Face folder's tokenizer: `tokenizer.json` and the files beside it ↔ our tokenizer."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, NoReturn

from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.system.files import read_json
from llama3_scratch.system.writing import write_whole
from llama3_scratch.text import byte_level
from llama3_scratch.text.byte_level import byte_level_tokenizer, to_alphabet
from llama3_scratch.text.chat_format import adopt_template, chat_settings, read_template, written_template
from llama3_scratch.text.hf_added_tokens import read_added_tokens, settings
from llama3_scratch.text.pre_tokenizers import kind, read_rule, rule_json
from llama3_scratch.text.tokenizer import Tokenizer
from llama3_scratch.text.tokenizer_file import is_id

log = logging.getLogger("llama3_scratch")

# What is read beside tokenizer.json, without the files' .json.
_BESIDE = (
    "tokenizer_config",
    "special_tokens_map",
    "added_tokens",
    "generation_config",
    "config",
    "chat_template",
)


def read_tokenizer_json(folder: str | Path) -> Tokenizer:
    """The tokenizer of a Hugging Face folder: `tokenizer.json`; BOS, stop tokens and chat from the files beside it.

    FileError, naming the part, where it isn't byte-level BPE, or splits text as tiktoken can't.
    """
    folder = Path(folder)
    path = folder / "tokenizer.json"
    data = read_json(path, "a Hugging Face tokenizer")
    vocabulary, merges = _vocabulary(data, path)
    beside = {
        name: read_json(file, "a Hugging Face configuration") if (file := folder / f"{name}.json").exists() else {}
        for name in _BESIDE
    }
    special_tokens, words, flags = read_added_tokens(data, vocabulary, beside, folder)
    config = settings(beside)
    known = {*vocabulary.values(), *special_tokens.values(), *words.values()}
    numbers = {**beside["config"], **beside["generation_config"]}

    def named(key: str) -> int | None:
        token = config.get(key)
        name = token.get("content") if isinstance(token, dict) else token
        return None if not name else special_tokens.get(name, vocabulary.get(name))

    def numbered(key: str) -> list[int]:
        value = numbers.get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(id, int) and not isinstance(id, bool) for id in ids):
            raise FileError(f"{folder}: {key} of generation_config.json or config.json must be ids, got {value!r}")
        if absent := [id for id in ids if id not in known]:
            log.warning("%s: %s %s is no token of %s; left out", folder, key, absent[0], path.name)
        return [id for id in ids if id in known]

    bos_id, eos_id = named("bos_token"), named("eos_token")
    stop_tokens = numbered("eos_token_id") or ([] if eos_id is None else [eos_id])
    template = read_template(folder, config, beside["chat_template"])
    chat_format, system_prompt = chat_settings(template.source if template else None, special_tokens, stop_tokens)
    bos_id = next(iter(numbered("bos_token_id")), None) if bos_id is None else bos_id
    begins = _begins_with(data.get("post_processor"), path)
    add_bos = special_tokens[begins] == bos_id if begins in special_tokens else config.get("add_bos_token") is True
    if add_bos and bos_id is None:
        log.warning("%s: add_bos_token is set, but there is no BOS; texts begin without one", folder)
    rule = read_rule(data.get("pre_tokenizer"), path)
    tokenizer = byte_level_tokenizer(
        vocabulary,
        merges,
        special_tokens,
        pattern=rule.pattern,
        bos_id=bos_id,
        eos_id=eos_id if eos_id is not None else next(iter(stop_tokens), None),
        stop_tokens=stop_tokens,
        chat_format=chat_format,
        add_bos=add_bos and bos_id is not None,
        system_prompt=system_prompt,
        ignore_merges=data["model"].get("ignore_merges") is True,
        splits=rule.splits,
        added_tokens=words,
        token_flags=flags,
        source=path,
    )
    adopt_template(tokenizer, template)
    return tokenizer


def _vocabulary(data: dict[str, Any], path: Path) -> tuple[dict[str, int], list[list[str]]]:
    """Tokens with their ids, and the merges as pairs. FileError where the file holds another kind of tokenizer."""
    model = _part(data, "model", path)
    if model.get("type", "BPE") != "BPE":
        _refuse(path, f"model {model['type']}", "BPE")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(key):
            _refuse(path, f"model.{key} {model[key]!r}", "none")
    if data.get("normalizer") and data["normalizer"] != {"type": "Sequence", "normalizers": []}:
        _refuse(path, f"normalizer {kind(data['normalizer'])}", "none")
    vocabulary, listed = model.get("vocab"), model.get("merges")
    if not isinstance(vocabulary, dict) or not all(map(is_id, vocabulary.values())):
        raise FileError(f"{path}: model.vocab must be tokens with their ids")
    if not isinstance(listed, list):
        raise FileError(f"{path}: model.merges must be a list of pairs of tokens")
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in listed]
    for index, pair in enumerate(merges):
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], str)):
            raise FileError(f"{path}: model.merges[{index}] must be a pair of tokens, got {listed[index]!r}")
    return vocabulary, merges


def _refuse(path: Path, got: str, wanted: str) -> NoReturn:
    raise FileError(f"{path}: {got} can't be carried over, expected {wanted}; only byte-level BPE can be read")


def _part(data: dict[str, Any], key: str, path: Path) -> dict[str, Any]:
    if not isinstance(data.get(key), dict):
        raise FileError(f"{path}: {key} is missing, expected a JSON object")
    return data[key]


def _begins_with(processor: Any, path: Path) -> str | None:
    """The special token that a `post_processor` puts before a text."""
    match processor:
        case None | {"type": "ByteLevel"} | {"type": "TemplateProcessing", "single": [{"Sequence": _}]}:
            return None
        case {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": str(name)}}, {"Sequence": _}]}:
            return name
        case {"type": "Sequence", "processors": [*steps]}:
            return next(filter(None, [_begins_with(step, path) for step in steps]), None)
    _refuse(path, f"post_processor {kind(processor)}", "none, or one that puts BOS before the text")


def write_tokenizer_json(tokenizer: Tokenizer, folder: str | Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`, from which transformers makes the same ids."""
    vocabulary = {to_alphabet(token): id for token, id in tokenizer.ranks.items()}
    both = tokenizer.special_tokens | tokenizer.added_tokens
    if clash := next((name for name, id in both.items() if vocabulary.get(name, id) != id), None):
        raise UsageError(f"tokenizer.json can't hold both the added token {clash!r} and the bytes that it spells so")
    # Ids of added tokens hold only if the vocabulary has them too: tokenizers numbers the others itself.
    vocabulary |= both
    names: dict[int | None, str] = {id: name for name, id in tokenizer.special_tokens.items()}
    bos, eos = names.get(tokenizer.bos_id), names.get(tokenizer.eos_id)
    plain = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [
            {"SpecialToken": {"id": bos, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": bos, "type_id": 1}},
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {bos: {"id": bos, "ids": [tokenizer.bos_id], "tokens": [bos]}},
    }
    data = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": id,
                "content": name,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": name in tokenizer.added_tokens,
                "special": name in tokenizer.special_tokens,
                **tokenizer.token_flags.get(name, {}),
            }
            for name, id in sorted(both.items(), key=lambda item: item[1])
        ],
        "normalizer": None,
        "pre_tokenizer": rule_json(tokenizer),
        "post_processor": template if tokenizer.add_bos else plain,
        "decoder": plain,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": dict(sorted(vocabulary.items(), key=lambda item: item[1])),
            "merges": [[to_alphabet(left), to_alphabet(right)] for left, right in byte_level.merges(tokenizer.ranks)],
        },
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": eos,
        "add_bos_token": tokenizer.add_bos,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    settings |= written_template(tokenizer)
    write_whole(Path(folder) / "tokenizer.json", json.dumps(data, ensure_ascii=False))
    kept = {key: value for key, value in settings.items() if value is not None}
    write_whole(Path(folder) / "tokenizer_config.json", json.dumps(kept, indent=2, ensure_ascii=False) + "\n")
