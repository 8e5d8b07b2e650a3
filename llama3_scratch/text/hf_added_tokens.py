"""The added tokens of a Hugging Face folder, with the ids that transformers gives them.

`tokenizer.json` lists some. `tokenizer_config.json` and the older `added_tokens.json` and `special_tokens_map.json` may
name more, BOS and EOS among them; transformers appends those that are missing at the vocabulary's end.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple

from llama3_scratch.errors import FileError
from llama3_scratch.text.added_tokens import FLAGS
from llama3_scratch.text.tokenizer import CHAT_TOKENS, TURN_ENDS
from llama3_scratch.text.tokenizer_file import is_id

log = logging.getLogger("llama3_scratch")

# In transformers' order (`SPECIAL_TOKENS_ATTRIBUTES`).
NAMED_TOKENS = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
# They begin a turn or end it, so they are control tokens even in a file that forgets to say so (as in llama.cpp).
_CONTROL = {*CHAT_TOKENS, *TURN_ENDS, "<|begin_of_text|>", "<|endoftext|>", "<|python_tag|>"}


class Added(NamedTuple):
    """A folder's added tokens: those that are control tokens, the other words, and the flags of both."""

    special: dict[str, int]
    words: dict[str, int]
    flags: dict[str, dict[str, bool]]


def control_names(names: set[str]) -> set[str]:
    """Those of `names` that are control tokens, whatever a file says of them."""
    return names & _CONTROL


def settings(beside: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """tokenizer_config.json, and special_tokens_map.json where transformers still reads it."""
    config = beside["tokenizer_config"]
    return config if "added_tokens_decoder" in config else config | beside["special_tokens_map"]


def read_added_tokens(
    data: dict[str, Any], vocabulary: dict[str, int], beside: dict[str, dict[str, Any]], folder: Path
) -> Added:
    """What `tokenizer.json` (`data`) and the files `beside` it add to its vocabulary.

    FileError, naming the entry, for what is no token.
    """
    path, config_path = folder / "tokenizer.json", folder / "tokenizer_config.json"
    adding = _Adding(vocabulary)
    for index, token in enumerate(_listed(data, path)):
        match token:
            case {"content": str(), "id": id} if is_id(id):
                adding.add(token, id, path)
            case _:
                raise FileError(f"{path}: added_tokens[{index}] must have a content and an id, got {token!r}")
    named, others = _special(settings(beside), config_path)
    for id, token in _beside(beside, [*named, *others], adding.ids, folder):
        adding.add(token, id, config_path)
    for token in (*named, *others):
        if (name := token["content"]) not in adding.ids:
            adding.add(token, None, config_path)
            if name in adding.ids:
                said = "%s: token %r isn't in %s; it gets id %d, as in transformers"
                log.warning(said, config_path, name, path.name, adding.ids[name])
    if strange := adding.renumbered:
        log.warning("%s: added token %s (%d such), as tokenizers numbers them", path, strange[0], len(strange))
    # Older files don't say special, and had no other words.
    control = {name for name, token in adding.tokens.items() if token.get("special", True) is not False}
    control |= {token["content"] for token in named} & adding.ids.keys() | control_names(set(adding.ids))
    flags = {name: _flags(token, name in control, path) for name, token in adding.tokens.items()}
    return Added(
        {name: id for name, id in adding.ids.items() if name in control},
        {name: id for name, id in adding.ids.items() if name not in control},
        {name: each for name, each in flags.items() if each},
    )


class _Adding:
    """Tokens added one by one, as `tokenizers` does: a word of the vocabulary keeps its id, another gets the next."""

    def __init__(self, vocabulary: dict[str, int]) -> None:
        self._vocabulary = vocabulary
        self.ids: dict[str, int] = {}
        self.tokens: dict[str, dict[str, Any]] = {}
        self.renumbered: list[str] = []  # those to which their file gives another id

    def add(self, token: dict[str, Any], stated: int | None, where: Path) -> None:
        name = token["content"]
        if not name:
            log.warning("%s: added token %s is the empty text; left out", where, stated)
            return
        if name not in self.ids:
            following = max(max(self.ids.values(), default=-1) + 1, len(self._vocabulary))
            self.ids[name] = self._vocabulary.get(name, following)
        if stated not in (None, self.ids[name]):
            self.renumbered.append(f"{name!r}, which is said to be {stated}, gets {self.ids[name]}")
        self.tokens[name] = token


def _listed(data: dict[str, Any], path: Path) -> list[Any]:
    listed = data.get("added_tokens") or []
    if not isinstance(listed, list):
        raise FileError(f"{path}: added_tokens must be a list, got {listed!r}")
    return listed


def _special(config: dict[str, Any], path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The special tokens that a configuration names (`bos_token` …), and its others."""
    named = []
    for key in [*NAMED_TOKENS, *(key for key in config if key.endswith("_token") and key not in NAMED_TOKENS)]:
        value = config.get(key)
        if value is None or (key not in NAMED_TOKENS and not isinstance(value, str)):  # add_bos_token and the like
            continue
        named.append(_token(value, key, path))
    others = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    if isinstance(others, dict):
        others = list(others.values())
    if not isinstance(others, list):
        raise FileError(f"{path}: additional_special_tokens must be a list of tokens, got {others!r}")
    return named, [_token(value, "additional_special_tokens", path) for value in others]


def _beside(
    beside: dict[str, dict[str, Any]], special: list[dict[str, Any]], ids: dict[str, int], folder: Path
) -> list[tuple[int, dict[str, Any]]]:
    """The tokens of `added_tokens_decoder`, or of the older added_tokens.json, with the ids that they state, by id."""
    path = folder / "tokenizer_config.json"
    decoder = beside["tokenizer_config"].get("added_tokens_decoder")
    if not isinstance(decoder, dict | None) or not all(id.isdecimal() and len(id) < 10 for id in decoder or {}):
        raise FileError(f"{path}: added_tokens_decoder must be tokens by id, got {str(decoder)[:80]}")
    if not all(map(is_id, beside["added_tokens"].values())):
        got = str(beside["added_tokens"])[:80]
        raise FileError(f"{folder / 'added_tokens.json'}: expected tokens with their ids, got {got}")
    if decoder is None:
        said = {token["content"] for token in special}
        older = {name: id for name, id in beside["added_tokens"].items() if name not in ids}
        found = [(id, {"content": name, "special": name in said}) for name, id in older.items()]
    else:
        found = [(int(id), _token(value, "added_tokens_decoder", path)) for id, value in decoder.items()]
    return sorted(found, key=lambda item: item[0])


def _flags(token: dict[str, Any], control: bool, path: Path) -> dict[str, bool]:
    """The token's flags that aren't what a control token, or another word, has by default."""
    default = {"normalized": not control}
    given = {"normalized": token.get("special", True) is False} | token
    flags = {flag: given[flag] for flag in FLAGS if given.get(flag, False) is not default.get(flag, False)}
    if not all(isinstance(flag, bool) for flag in flags.values()):
        raise FileError(f"{path}: the flags of added token {token['content']!r} must be true or false, got {token!r}")
    return flags


def _token(value: Any, key: str, path: Path) -> dict[str, Any]:
    match value:
        case str():
            return {"content": value}
        case {"content": str()}:
            return value
    raise FileError(f"{path}: {key} is {value!r}, which is no token")
