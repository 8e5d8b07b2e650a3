"""A tokenizer's files: `tokenizer.model`, read strictly, and what it leaves unsaid.

`tokenizer.model` is a list of byte strings in base64 with their ranks; a rank is the token's id and its priority in
merging. What such a file can't say (split pattern, special tokens, BOS …) is Meta's own unless `tokenizer_extra.json`
lies beside it. No torch here.
"""

from __future__ import annotations

import base64
import codecs
import json
import logging
import operator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import regex

from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.system.files import read_json, require_file
from llama3_scratch.system.writing import write_whole
from llama3_scratch.text.added_tokens import FLAGS
from llama3_scratch.text.tokenizer import CHAT_TOKENS, PATTERN, ChatTemplate, Tokenizer

log = logging.getLogger("llama3_scratch")

FILE, EXTRA_FILE = "tokenizer.model", "tokenizer_extra.json"
_NAMED = "begin_of_text end_of_text reserved_special_token_0 reserved_special_token_1 finetune_right_pad_id step_id"
_NAMED += " start_header_id end_header_id eom_id eot_id python_tag image"
_RESERVED = [f"reserved_special_token_{i}" for i in range(2, 246)]
# tokenizer_extra.json's fields, with the values that hold where there is no such file.
META: dict[str, Any] = {
    "pattern": PATTERN,
    "first_rank": 0,
    "n_ranks": 128_000,
    "n_single_bytes": 256,
    "special_tokens": {f"<|{name}|>": 128_000 + i for i, name in enumerate([*_NAMED.split(), *_RESERVED])},
    "bos_id": 128_000,
    "eos_id": 128_001,
    "stop_tokens": [128_001, 128_008, 128_009],
    "add_bos": True,
    "chat_format": "llama3",
    "system_prompt": None,
    "splits": [],
    "added_tokens": {},
    "token_flags": {},
    "longest_first": False,
}
# Those that files written before they were thought of lack.
_LATER = ("splits", "added_tokens", "token_flags", "longest_first")

# A key that files without it do without.
_TEMPLATE = "chat_template"


def read_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer in a `tokenizer.model`, or in the folder that has one."""
    path = Path(path) / FILE if Path(path).is_dir() else Path(path)
    ranks = _read_ranks(path)
    extra_path = path.with_name(EXTRA_FILE)
    extra = _read_extra(extra_path) if extra_path.exists() else META
    _check_ranks(ranks, extra, path)
    return _build(ranks, extra, extra_path)


def with_rows(tokenizer: Tokenizer, rows: int, path: Path) -> Tokenizer:
    """`tokenizer` without the special and added tokens that an embedding of `rows` rows lacks, which a warning names.

    FileError where it lacks ordinary ones, since then it is another model's.
    """
    if tokenizer.n_words <= rows:
        return tokenizer
    if max(tokenizer.ranks.values(), default=-1) >= rows:
        raise FileError(
            f"{path}: the tokenizer has {tokenizer.n_words} tokens, the embedding {rows} rows "
            "(vocab_size); they belong to different models"
        )
    extra = _extra(tokenizer)
    lost = {name: id for name, id in (tokenizer.special_tokens | tokenizer.added_tokens).items() if id >= rows}
    shown = ", ".join(f"{id} {name!r}" for name, id in sorted(lost.items(), key=operator.itemgetter(1))[:5])
    more = f" and {len(lost) - 5} more" if len(lost) > 5 else ""
    log.warning("%s: the embedding has %d rows, none for token %s%s; left out", path, rows, shown, more)
    for key in ("special_tokens", "added_tokens"):
        extra[key] = {name: id for name, id in extra[key].items() if name not in lost}
    for key in ("bos_id", "eos_id"):
        extra[key] = None if extra[key] in lost.values() else extra[key]
    extra["stop_tokens"] = [id for id in extra["stop_tokens"] if id < rows]
    extra["add_bos"] &= extra["bos_id"] is not None
    if lost.keys() & set(CHAT_TOKENS):
        extra["chat_format"] = None
    return _build(tokenizer.ranks, extra, path)


def write_tokenizer(tokenizer: Tokenizer, folder: str | Path, *, extra_file: bool = False) -> None:
    """Write `tokenizer.model` into `folder` and, unless all is as Meta has it, `tokenizer_extra.json` beside it.

    `extra_file` writes it in any case, for a folder whose name wouldn't tell that its model chats.
    """
    folder = Path(folder)
    lines = (
        b"%s %d\n" % (base64.b64encode(token), rank)
        for token, rank in sorted(tokenizer.ranks.items(), key=operator.itemgetter(1))
    )
    extra = _extra(tokenizer)
    _check_ranks(tokenizer.ranks, extra, folder / FILE)
    write_whole(folder / FILE, b"".join(lines))
    if extra == META and not extra_file:
        (folder / EXTRA_FILE).unlink(missing_ok=True)
    else:
        write_whole(folder / EXTRA_FILE, json.dumps(extra, indent=1, ensure_ascii=False) + "\n")


def _read_ranks(path: Path) -> dict[bytes, int]:
    require_file(path, "a tokenizer (base64 and rank on each line)")
    data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    if b"<unk>" in data[:64]:
        raise FileError(
            f"{path}: this is SentencePiece, Llama 2's tokenizer, expected Llama 3's lines of base64 and rank; "
            "take the tokenizer.model that came with the weights"
        )
    lines = data.splitlines()

    def refuse(number: int, problem: str) -> NoReturn:
        cut = number == len(lines) and not data.endswith(b"\n")
        where = "the file ends within this line, so it is truncated; " if cut else ""
        raise FileError(f"{path}: line {number}: {problem}; {where}download it again")

    entries = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                entries.append((number, *_parse(line)))
            except ValueError as error:
                refuse(number, str(error))
    ranks = {token: rank for _, token, rank in entries}
    if len(set(ranks.values())) < len(entries):  # as it is when a token stands twice
        seen: dict[bytes | int, int] = {}
        for number, token, rank in entries:
            for what, value in (("token", token), ("rank", rank)):
                if seen.setdefault(value, number) != number:
                    refuse(number, f"{what} {value!r} stands on line {seen[value]} too, expected once")
    return ranks


def _parse(line: bytes) -> tuple[bytes, int]:
    columns = line.split()
    if len(columns) != 2:
        raise ValueError(f"expected 2 columns, base64 and rank, got {len(columns)}")
    try:
        token = base64.b64decode(columns[0], validate=True)
    except ValueError:
        token = b""
    if not token:
        raise ValueError(f"expected a token in base64, got {columns[0][:20].decode(errors='replace')!r}")
    if not columns[1].isdigit() or len(columns[1]) > 9:
        shown = columns[1][:20].decode(errors="replace")
        raise ValueError(f"expected a rank, a whole number of at least 0, got {shown!r}")
    return token, int(columns[1])


def _check_ranks(ranks: dict[bytes, int], extra: dict[str, Any], path: Path) -> None:
    first, count = extra["first_rank"], extra["n_ranks"]
    if extra is META and len(ranks) == 200_000:
        raise FileError(f"{path}: this is Llama 4's tokenizer (200000 ranks), expected Llama 3's 128000")
    ids = set(ranks.values())
    taken = ids.union(extra["special_tokens"].values(), extra["added_tokens"].values())
    gap = next((id for id in range(first, max(ids, default=first)) if id not in taken), None)
    if len(ranks) != count or min(ids, default=first) != first or gap is not None:
        raise FileError(
            f"{path}: expected {count} ranks from {first} on without a gap, got {len(ranks)}"
            + (f" from {min(ids)} to {max(ids)}" if ids else "")
            + (f", where {gap} is missing" if gap is not None else "")
            + "; download it again"
        )
    absent = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if 256 - len(absent) != extra["n_single_bytes"]:
        raise FileError(
            f"{path}: expected {extra['n_single_bytes']} tokens of a single byte, got {256 - len(absent)}"
            + (f"; missing {' '.join(f'0x{byte:02X}' for byte in absent[:10])}" if absent else "")
        )


def _extra(tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "pattern": tokenizer.pattern,
        "first_rank": min(tokenizer.ranks.values(), default=0),
        "n_ranks": len(tokenizer.ranks),
        "n_single_bytes": sum(len(token) == 1 for token in tokenizer.ranks),
        "special_tokens": tokenizer.special_tokens,
        "bos_id": tokenizer.bos_id,
        "eos_id": tokenizer.eos_id,
        "stop_tokens": tokenizer.stop_tokens,
        "add_bos": tokenizer.add_bos,
        "chat_format": tokenizer.chat_format,
        "system_prompt": tokenizer.system_prompt,
        "splits": tokenizer.splits,
        "added_tokens": tokenizer.added_tokens,
        "token_flags": tokenizer.token_flags,
        "longest_first": tokenizer.longest_first,
        **({_TEMPLATE: asdict(tokenizer.chat_template)} if tokenizer.chat_template else {}),
    }


def _read_extra(path: Path) -> dict[str, Any]:
    extra = {key: META[key] for key in _LATER} | read_json(path, "what tokenizer.model leaves unsaid")
    for key in META.keys() | extra.keys() - {_TEMPLATE}:
        if key not in META or key not in extra:
            raise FileError(f"{path}: {key} is {'missing' if key in META else 'unknown'}, expected {', '.join(META)}")
    natural = {"first_rank", "n_ranks", "n_single_bytes"}
    for key, value in extra.items():
        if key in ("pattern", "chat_format", "system_prompt"):
            good, wanted = isinstance(value, str) or (value is None and key != "pattern"), "a string"
        elif key in ("add_bos", "longest_first"):
            good, wanted = isinstance(value, bool), "true or false"
        elif key == _TEMPLATE:
            good, wanted = _is_template(value), "a source and variables, all of them texts"
        elif key == "stop_tokens":
            good, wanted = isinstance(value, list) and all(map(is_id, value)), "a list of ids"
        elif key == "splits":
            good, wanted = isinstance(value, list) and all(isinstance(each, str) for each in value), "a list of strings"
        elif key == "token_flags":
            good, wanted = _are_flags(value), f"names with true or false for some of {', '.join(FLAGS)}"
        elif key in ("special_tokens", "added_tokens"):
            good, wanted = isinstance(value, dict) and all(map(is_id, value.values())), "names with their ids"
        else:
            good, wanted = is_id(value) or (value is None and key not in natural), "a whole number of at least 0"
        if not good:
            raise FileError(f"{path}: {key} must be {wanted}, got {value!r}")
    return extra


def _is_template(value: Any) -> bool:
    match value:
        case {"source": str(), "variables": dict(variables), **rest}:
            return not rest and all(isinstance(text, str) for text in variables.values())
    return False


def _are_flags(value: Any) -> bool:
    each = value.values() if isinstance(value, dict) else [None]
    return all(
        isinstance(flags, dict)
        and flags.keys() <= set(FLAGS)
        and all(isinstance(flag, bool) for flag in flags.values())
        for flags in each
    )


def is_id(value: Any) -> bool:
    """Whether a value out of JSON can be a token's id."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _build(ranks: dict[bytes, int], extra: dict[str, Any], path: Path) -> Tokenizer:
    fields = {key: extra[key] for key in META if key not in ("first_rank", "n_ranks", "n_single_bytes")}
    fields["special_tokens"] = dict(extra["special_tokens"])
    if _TEMPLATE in extra:
        fields[_TEMPLATE] = ChatTemplate(**extra[_TEMPLATE])
    try:
        tokenizer = Tokenizer(ranks, **fields)
    except UsageError as error:
        raise FileError(f"{path}: {error}") from error
    if _loses_text(tokenizer.pattern):
        lost = f"pattern {tokenizer.pattern!r} loses some of a text"
        raise FileError(f"{path}: {lost}, expected one that matches all of it")
    return tokenizer


def _loses_text(pattern: str) -> bool:
    """Whether a split pattern passes over characters, which tiktoken then drops, or matches nothing at all."""
    everything = "aZ\u00e9\u4e2d1\u0967 \t\r\n\u3000.'s\u2026\U0001f600"
    matched = "".join(found[0] for found in regex.finditer(pattern, everything))
    return matched != everything or regex.match(pattern, "") is not None
