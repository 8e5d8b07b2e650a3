"""Byte-level BPE as Hugging Face and GGUF store it ↔ the tokenizer of ranks.

Their tokens are strings in GPT-2's alphabet (one printable character per byte) with a list of merges; ours are bytes
whose id is their priority. The two agree where ids rise in the order of the merges, as they do in every vocabulary
that a BPE trainer wrote; another one is refused.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from llama3_scratch.checkpoint.chat_format import adopt_template, chat_settings, read_template, written_template
from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.files import read_json, write_whole
from llama3_scratch.tokenizer import PATTERN, Tokenizer, is_id

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# GPT-2's after every digit was set apart: a run of spaces before a digit then ends its text and stays whole.
SMOLLM_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+"
# By GGUF's `tokenizer.ggml.pre`.
PATTERNS = {
    "llama-bpe": PATTERN,
    "llama3": PATTERN,
    "smollm": SMOLLM_PATTERN,
    "gpt-2": GPT2_PATTERN,
    "default": GPT2_PATTERN,
}


def _alphabet() -> dict[str, int]:
    """GPT-2's character for each byte: printable Latin-1 as itself, the others from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


BYTE_OF = _alphabet()
_CHARACTER_OF = {byte: ord(character) for character, byte in BYTE_OF.items()}


def to_alphabet(token: bytes) -> str:
    """A token in GPT-2's byte alphabet."""
    return token.decode("latin-1").translate(_CHARACTER_OF)


def byte_level_tokenizer(
    tokens: dict[str, int],
    merges: Sequence[Sequence[str]],
    special_tokens: dict[str, int],
    *,
    pattern: str,
    bos_id: int | None,
    eos_id: int | None,
    stop_tokens: Sequence[int],
    chat_format: str | None,
    add_bos: bool,
    system_prompt: str | None = None,
    ignore_merges: bool = False,
    source: Path,
) -> Tokenizer:
    """The tokenizer of a vocabulary in GPT-2's byte alphabet; FileError, naming the token, where ranks can't carry it.

    `special_tokens` are plain text and may stand in `tokens` too: every token that isn't made by merging belongs
    there. `ignore_merges`: a whole word that is a token is taken as it is, which is what tiktoken does.
    """
    special_ids = set(special_tokens.values())
    ids = {token: id for token, id in tokens.items() if id not in special_ids}
    ranks: dict[bytes, int] = {}
    for token, id in ids.items():
        try:
            ranks[bytes([BYTE_OF[character] for character in token])] = id
        except KeyError as error:
            raise FileError(
                f"{source}: token {id}, {token!r}, has {error.args[0]!r}, which is outside GPT-2's byte alphabet; "
                "only byte-level BPE can be read"
            ) from error
    if len(set(ranks.values())) < len(ids) or b"" in ranks:
        raise FileError(f"{source}: a token is empty or an id stands twice, expected one id for each token")
    last, made = -1, set()
    for index, (left, right) in enumerate(merges):
        try:
            _, _, id = ids[left], ids[right], ids[left + right]
        except KeyError as error:
            raise FileError(
                f"{source}: merge {index}, {left!r} {right!r}, needs {error.args[0]!r}, which is no token"
            ) from error
        if id < last:
            raise FileError(
                f"{source}: merge {index}, {left!r} {right!r}, gives token {id} after a merge that gave {last}; "
                "expected ids that rise in the order of the merges, only such a vocabulary can be read"
            )
        last = id
        made.add(id)
    if not ignore_merges:
        stray = next((token for token, id in ids.items() if len(token) > 1 and id not in made), None)
        if stray is not None:
            raise FileError(f"{source}: token {ids[stray]}, {stray!r}, is made by no merge and isn't a special token")
    try:
        return Tokenizer(
            ranks,
            pattern=pattern,
            special_tokens=special_tokens,
            bos_id=bos_id,
            eos_id=eos_id,
            stop_tokens=stop_tokens,
            chat_format=chat_format,
            add_bos=add_bos,
            system_prompt=system_prompt,
        )
    except UsageError as error:
        raise FileError(f"{source}: {error}") from error


def read_tokenizer_json(folder: str | Path) -> Tokenizer:
    """The tokenizer of a Hugging Face folder: `tokenizer.json`; BOS, stop tokens and chat from the files beside it.

    FileError, naming the part, where it isn't byte-level BPE with one of Llama 3's, SmolLM2's and GPT-2's splittings.
    """
    folder = Path(folder)
    path = folder / "tokenizer.json"
    data = read_json(path, "a Hugging Face tokenizer")
    model = _part(data, "model", path)
    if model.get("type", "BPE") != "BPE":
        _refuse(path, f"model {model['type']}", "BPE")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(key):
            _refuse(path, f"model.{key} {model[key]!r}", "none")
    if data.get("normalizer"):
        _refuse(path, f"normalizer {_kind(data['normalizer'])}", "none")
    vocabulary, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocabulary, dict) or not all(map(is_id, vocabulary.values())):
        raise FileError(f"{path}: model.vocab must be tokens with their ids")
    if not isinstance(merges, list):
        raise FileError(f"{path}: model.merges must be a list of pairs of tokens")
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    for index, pair in enumerate(pairs):
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], str)):
            raise FileError(f"{path}: model.merges[{index}] must be a pair of tokens, got {merges[index]!r}")
    added, special_tokens = data.get("added_tokens") or [], {}
    if not isinstance(added, list):
        raise FileError(f"{path}: added_tokens must be a list, got {added!r}")
    for index, token in enumerate(added):
        match token:
            case {"content": str(name), "id": id} if is_id(id):
                special_tokens[name] = id
            case _:
                raise FileError(f"{path}: added_tokens[{index}] must have a content and an id, got {token!r}")

    beside = {
        name: read_json(folder / f"{name}.json", "a Hugging Face configuration")
        if (folder / f"{name}.json").exists()
        else {}
        for name in ("tokenizer_config", "special_tokens_map", "generation_config", "config", "chat_template")
    }
    settings = {**beside["special_tokens_map"], **beside["tokenizer_config"]}
    numbers = {**beside["config"], **beside["generation_config"]}

    def named(key: str) -> int | None:
        token = settings.get(key)
        name = token.get("content") if isinstance(token, dict) else token
        if name is None:
            return None
        if not isinstance(name, str) or (name not in vocabulary and name not in special_tokens):
            raise FileError(f"{folder / 'tokenizer_config.json'}: {key} is {name!r}, which is no token of {path.name}")
        return special_tokens.get(name, vocabulary.get(name))

    def numbered(key: str) -> list[int]:
        value = numbers.get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(map(is_id, ids)):
            raise FileError(f"{folder}: {key} of generation_config.json or config.json must be ids, got {value!r}")
        return ids

    bos_id, eos_id = named("bos_token"), named("eos_token")
    stop_tokens = numbered("eos_token_id") or ([] if eos_id is None else [eos_id])
    template = read_template(folder, settings, beside["chat_template"])
    chat_format, system_prompt = chat_settings(template.source if template else None, special_tokens, stop_tokens)
    bos_id = next(iter(numbered("bos_token_id")), None) if bos_id is None else bos_id
    begins = _begins_with(data.get("post_processor"), path)
    tokenizer = byte_level_tokenizer(
        vocabulary,
        pairs,
        special_tokens,
        pattern=_pattern(data.get("pre_tokenizer"), path),
        bos_id=bos_id,
        eos_id=eos_id if eos_id is not None else next(iter(stop_tokens), None),
        stop_tokens=stop_tokens,
        chat_format=chat_format,
        add_bos=special_tokens[begins] == bos_id if begins in special_tokens else settings.get("add_bos_token") is True,
        system_prompt=system_prompt,
        ignore_merges=model.get("ignore_merges") is True,
        source=path,
    )
    adopt_template(tokenizer, template)
    return tokenizer


def _refuse(path: Path, got: str, wanted: str) -> NoReturn:
    raise FileError(f"{path}: {got} can't be carried over, expected {wanted}; only byte-level BPE can be read")


def _part(data: dict[str, Any], key: str, path: Path) -> dict[str, Any]:
    if not isinstance(data.get(key), dict):
        raise FileError(f"{path}: {key} is missing, expected a JSON object")
    return data[key]


def _kind(part: Any) -> str:
    """A component's type, with those that a Sequence is made of."""
    if not isinstance(part, dict):
        return repr(part)
    inner = next((value for value in part.values() if isinstance(value, list)), None)
    kind = str(part.get("type"))
    return f"{kind}[{', '.join(map(_kind, inner))}]" if kind == "Sequence" and inner else kind


def _pattern(pre: Any, path: Path) -> str:
    """The one regular expression that splits as a `pre_tokenizer` does."""
    match pre:
        case {"type": "Sequence", "pretokenizers": [*steps]}:
            pass
        case _:
            steps = [pre]
    match steps:
        case [*_, {"type": "ByteLevel", "add_prefix_space": True}]:
            _refuse(path, "pre_tokenizer ByteLevel with add_prefix_space", "ByteLevel without")
        case [{"type": "ByteLevel", **rest}] if rest.get("use_regex", True):
            return GPT2_PATTERN
        case [{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel", **rest}] if rest.get(
            "use_regex", True
        ):
            return SMOLLM_PATTERN
        case [
            {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "use_regex": False},
        ]:
            # Split keeps what lies between two matches, tiktoken would drop it; none of the known patterns leaves any.
            return pattern if pattern in PATTERNS.values() else rf"{pattern}|(?:(?!{pattern})[\s\S])+"
    _refuse(path, f"pre_tokenizer {_kind(pre)}", "ByteLevel, Digits + ByteLevel, or a Split by regex + ByteLevel")


def _begins_with(processor: Any, path: Path) -> str | None:
    """The special token that a `post_processor` puts before a text."""
    match processor:
        case None | {"type": "ByteLevel"} | {"type": "TemplateProcessing", "single": [{"Sequence": _}]}:
            return None
        case {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": str(name)}}, {"Sequence": _}]}:
            return name
        case {"type": "Sequence", "processors": [*steps]}:
            return next(filter(None, [_begins_with(step, path) for step in steps]), None)
    _refuse(path, f"post_processor {_kind(processor)}", "none, or one that puts BOS before the text")


def merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The merges that ranks stand for, in order: every split of a token in two tokens, since tiktoken takes any."""
    pairs = []
    for token in sorted(ranks, key=ranks.__getitem__):
        halves = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [pair for pair in halves if pair[0] in ranks and pair[1] in ranks]
        pairs += sorted(known, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    return pairs


def write_tokenizer_json(tokenizer: Tokenizer, folder: str | Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`, from which transformers makes the same ids."""
    vocabulary = {to_alphabet(token): id for token, id in tokenizer.ranks.items()}
    # Ids of added tokens hold only if the vocabulary has them too: tokenizers numbers the others itself.
    vocabulary |= tokenizer.special_tokens
    names: dict[int | None, str] = {id: name for name, id in tokenizer.special_tokens.items()}
    bos, eos = names.get(tokenizer.bos_id), names.get(tokenizer.eos_id)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    first = {
        GPT2_PATTERN: [],
        SMOLLM_PATTERN: [{"type": "Digits", "individual_digits": True}],
    }.get(
        tokenizer.pattern,
        [{"type": "Split", "pattern": {"Regex": tokenizer.pattern}, "behavior": "Isolated", "invert": False}],
    )
    splits_itself = tokenizer.pattern in (GPT2_PATTERN, SMOLLM_PATTERN)
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
                "content": names[id],
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for id in sorted(tokenizer.special_tokens.values())
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*first, {**byte_level, "use_regex": splits_itself}]},
        "post_processor": template if tokenizer.add_bos else byte_level,
        "decoder": byte_level,
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
            "merges": [[to_alphabet(left), to_alphabet(right)] for left, right in merges(tokenizer.ranks)],
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
