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
from llama3_scratch.text.tokenizer import FRAMES, TURN_ENDS, is_id

log = logging.getLogger("llama3_scratch")

# In transformers' order (`SPECIAL_TOKENS_ATTRIBUTES`).
NAMED = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
# They end a turn or frame it, so they are control tokens even in a file that forgets to say so (as in llama.cpp).
_CONTROL = {*FRAMES, *TURN_ENDS, "<|begin_of_text|>", "<|endoftext|>", "<|python_tag|>"}


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
    listed = data.get("added_tokens") or []
    path, config_path = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if not isinstance(listed, list):
        raise FileError(f"{path}: added_tokens must be a list, got {listed!r}")
    ids: dict[str, int] = {}
    tokens: dict[str, dict[str, Any]] = {}
    others: list[str] = []

    def add(token: dict[str, Any], stated: int | None, where: Path) -> None:
        """As `tokenizers` adds: a word of the vocabulary keeps its id, another gets the next one."""
        name = token["content"]
        if not name:
            log.warning("%s: added token %s is the empty text; left out", where, stated)
            return
        if name not in ids:
            last = max(ids.values(), default=-1)
            ids[name] = vocabulary.get(name, max(last + 1, len(vocabulary)))
        if stated not in (None, ids[name]):
            others.append(f"{name!r}, which is said to be {stated}, gets {ids[name]}")
        tokens[name] = token

    for index, token in enumerate(listed):
        match token:
            case {"content": str(), "id": id} if is_id(id):
                add(token, id, path)
            case _:
                raise FileError(f"{path}: added_tokens[{index}] must have a content and an id, got {token!r}")

    config = settings(beside)
    named = {}
    for key in [*NAMED, *(key for key in config if key.endswith("_token") and key not in NAMED)]:
        value = config.get(key)
        if value is None or (key not in NAMED and not isinstance(value, str)):  # add_bos_token and the like
            continue
        named[key] = _token(value, key, config_path)
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    if isinstance(extra, dict):
        extra = list(extra.values())
    if not isinstance(extra, list):
        raise FileError(f"{config_path}: additional_special_tokens must be a list of tokens, got {extra!r}")
    specials = [*named.values(), *(_token(value, "additional_special_tokens", config_path) for value in extra)]
    names = {token["content"] for token in named.values()}

    decoder = beside["tokenizer_config"].get("added_tokens_decoder")
    if not isinstance(decoder, dict | None) or not all(id.isdecimal() and len(id) < 10 for id in decoder or {}):
        raise FileError(f"{config_path}: added_tokens_decoder must be tokens by id, got {str(decoder)[:80]}")
    if not all(map(is_id, beside["added_tokens"].values())):
        got = str(beside["added_tokens"])[:80]
        raise FileError(f"{folder / 'added_tokens.json'}: expected tokens with their ids, got {got}")
    if decoder is None:
        said = {token["content"] for token in specials}
        older = {name: id for name, id in beside["added_tokens"].items() if name not in ids}
        more = [(id, {"content": name, "special": name in said}) for name, id in older.items()]
    else:
        more = [(int(id), _token(value, "added_tokens_decoder", config_path)) for id, value in decoder.items()]
    for id, token in sorted(more, key=lambda item: item[0]):
        add(token, id, config_path)
    for token in specials:
        if token["content"] not in ids:
            add(token, None, config_path)
            if token["content"] in ids:
                name = token["content"]
                log.warning(
                    "%s: token %r isn't in %s; it gets id %d, as in transformers",
                    config_path,
                    name,
                    path.name,
                    ids[name],
                )
    if others:
        log.warning("%s: added token %s (%d such), as tokenizers numbers them", path, others[0], len(others))
    # Older files don't say special, and had no other words.
    control = {name for name, token in tokens.items() if token.get("special", True) is not False}
    control |= names & ids.keys() | control_names(set(ids))
    flags = {}
    for name, token in tokens.items():
        default = {"normalized": name not in control}
        given = {"normalized": token.get("special", True) is False} | token
        flags[name] = {flag: given[flag] for flag in FLAGS if given.get(flag, False) is not default.get(flag, False)}
        if not all(isinstance(flag, bool) for flag in flags[name].values()):
            raise FileError(f"{path}: the flags of added token {name!r} must be true or false, got {token!r}")
    return Added(
        {name: id for name, id in ids.items() if name in control},
        {name: id for name, id in ids.items() if name not in control},
        {name: each for name, each in flags.items() if each},
    )


def _token(value: Any, key: str, path: Path) -> dict[str, Any]:
    match value:
        case str():
            return {"content": value}
        case {"content": str()}:
            return value
    raise FileError(f"{path}: {key} is {value!r}, which is no token")
