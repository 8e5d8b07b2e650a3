"""Text ↔ token ids: `tokenizer.model` read strictly, tiktoken for the merging, ids equal to Meta's Tokenizer.

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
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

import regex
import tiktoken

from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.system.files import read_json, require_file, write_whole
from llama3_scratch.text.added_tokens import FLAGS, AddedTokens

log = logging.getLogger("llama3_scratch")

FILE, EXTRA_FILE = "tokenizer.model", "tokenizer_extra.json"
CHAT_FORMATS = ("llama3", "chatml", "template")
# What ends a chat's turn or its text, of those that a vocabulary has: a chat that doesn't stop there never stops.
TURN_ENDS = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>", "<|im_end|>")
# What a chat's messages are framed by.
FRAMES = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|im_start|>", "<|im_end|>")
# Meta's two limits (`Tokenizer.encode`): beyond them the splitting regex runs out of stack.
MAX_CHARS, MAX_RUN = 400_000, 25_000
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
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


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template's Jinja source, and the texts of the special tokens that it knows by name (`bos_token` …)."""

    source: str
    variables: dict[str, str] = field(default_factory=dict)


class Tokenizer:
    """A byte-level BPE whose ranks are its ids, and the special and added tokens beside it.

    `add_bos`: whether plain text is to start with BOS. `system_prompt`: what a chat says first when nothing else does.
    `chat_template`: the model's own; it lays chats out where `chat_format` is "template".
    `splits`: patterns that cut a text, one after the other, before `pattern` does. `added_tokens`: words that are one
    token wherever they stand in a text; `token_flags` (lstrip, rstrip, single_word, normalized, by name) and
    `longest_first` say how they and special tokens are found, see `AddedTokens`.
    """

    def __init__(
        self,
        ranks: dict[bytes, int],
        *,
        pattern: str,
        special_tokens: dict[str, int],
        bos_id: int | None,
        eos_id: int | None,
        stop_tokens: Sequence[int],
        chat_format: str | None,
        add_bos: bool,
        system_prompt: str | None = None,
        chat_template: ChatTemplate | None = None,
        splits: Sequence[str] = (),
        added_tokens: Mapping[str, int] | None = None,
        token_flags: Mapping[str, Mapping[str, bool]] | None = None,
        longest_first: bool = False,
    ) -> None:
        added_tokens = dict(added_tokens or {})
        both = special_tokens | added_tokens
        if "" in both:
            raise UsageError(f"special token {both['']} is the empty text, expected at least a character")
        if name := next(iter(special_tokens.keys() & added_tokens), None):
            raise UsageError(f"{name!r} is a special and an added token, expected one of them")
        names = {id: repr(name) for name, id in both.items()}
        if len(names) < len(both):
            twice = [name for name, id in both.items() if names[id] != repr(name)]
            raise UsageError(
                f"special tokens {twice[0]!r} and {names[both[twice[0]]]} have the same id "
                f"{both[twice[0]]}, expected one each"
            )
        made = {id for name, id in both.items() if ranks.get(name.encode(errors="replace")) == id}
        shared = names.keys() & set(ranks.values()) - made  # a word that merging makes too may be both
        if shared:
            id = min(shared)
            raise UsageError(f"special token {names[id]} has id {id}, which is also the rank of an ordinary token")
        known = names.keys() | set(ranks.values())
        for number in (bos_id, eos_id, *stop_tokens):
            if number is not None and number not in known:
                raise UsageError(f"BOS, EOS or stop token {number} is no token of this vocabulary of {len(known)}")
        if add_bos and bos_id is None:
            raise UsageError("add_bos is set, but there is no bos_id")
        self.ranks = ranks
        self.pattern = pattern
        self.special_tokens = special_tokens
        self.bos_id = bos_id
        self.eos_id = eos_id
        self.stop_tokens = list(stop_tokens)
        self.chat_template = chat_template
        self._frame_chats(chat_format)
        self.add_bos = add_bos
        self.system_prompt = system_prompt
        self.splits = list(splits)
        self.added_tokens = added_tokens
        self.token_flags = {name: dict(flags) for name, flags in (token_flags or {}).items() if name in both}
        self.longest_first = longest_first
        self.n_words = max(known, default=-1) + 1
        self._missing = bytes(byte for byte in range(256) if bytes([byte]) not in ranks)
        self._words = AddedTokens(special_tokens, added_tokens, self.token_flags, longest_first=longest_first)
        try:
            self._bpe = tiktoken.Encoding("llama3_scratch", pat_str=pattern, mergeable_ranks=ranks, special_tokens=both)
        except ValueError as error:
            raise UsageError(f"the split pattern {pattern!r} isn't a regular expression: {error}") from error
        try:
            self._cuts = [regex.compile(each) for each in self.splits]
        except regex.error as error:
            raise UsageError(f"the split pattern {error.pattern!r} isn't a regular expression: {error}") from error

    def __repr__(self) -> str:
        framed = {None: "completes text", "template": "chats by a template of its own"}
        chats = framed.get(self.chat_format) or f"chats in {self.chat_format}"
        return f"Tokenizer({self.n_words:,} tokens, {len(self.special_tokens)} of them special, {chats})"

    def set_chat_format(self, chat_format: str | None) -> None:
        """Frame chats so, and so alone; with a chat format, whatever ends a turn becomes a stop token."""
        self._frame_chats(chat_format)
        if chat_format != "template":
            self.chat_template = None

    def _frame_chats(self, chat_format: str | None) -> None:
        if chat_format not in (None, *CHAT_FORMATS):
            raise UsageError(f"chat_format must be one of {', '.join(CHAT_FORMATS)} or none, got {chat_format!r}")
        if chat_format == "template" and self.chat_template is None:
            raise UsageError("chat_format template needs a chat template, and this model's files have none")
        self.chat_format = chat_format
        if chat_format is not None:
            ends = [self.special_tokens[name] for name in TURN_ENDS if name in self.special_tokens]
            self.stop_tokens += [id for id in ends if id not in self.stop_tokens]

    def encode(
        self,
        text: str,
        *,
        bos: bool | None = None,
        eos: bool = False,
        allowed_special: Literal["all"] | Collection[str] = frozenset(),
    ) -> list[int]:
        """Ids of `text`, BOS before it as `add_bos` has it unless `bos` says whether.

        Special tokens in the text are ordinary text but for those named in `allowed_special` (or "all").
        Hugging Face's libraries take the names of special tokens in a text for the tokens unless told otherwise; here
        what somebody typed is text. Added words are one token each. They are found before long texts are cut.
        """
        text = _whole_characters(text)
        allowed = set(self.special_tokens) if allowed_special == "all" else set(allowed_special)
        ids = [self._require("bos_id")] if (self.add_bos if bos is None else bos) else []
        parts = self._words.split(text, allowed)
        self._check_bytes(parts, text)
        for part in parts:
            if isinstance(part, int):
                ids.append(part)
                continue
            for start in range(0, len(part), MAX_CHARS):
                for run in _split_runs(part[start : start + MAX_CHARS]):
                    ids += self._merge(run)
        if eos:
            ids.append(self._require("eos_id"))
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`, special tokens by name; bytes that aren't UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Bytes of `ids`: what a stream holds back until a character is whole."""
        numbers = [operator.index(id) for id in ids]
        try:
            return self._bpe.decode_bytes(numbers)
        except (KeyError, OverflowError) as error:
            known = {*self.ranks.values(), *self.special_tokens.values(), *self.added_tokens.values()}
            position, bad = next((i, id) for i, id in enumerate(numbers) if id not in known)
            raise UsageError(
                f"token id {bad} at position {position} isn't in the vocabulary, expected 0 to {self.n_words - 1}"
            ) from error

    def same_tokens(self, other: Tokenizer) -> bool:
        """Whether every id means the same text and kind of token to both."""
        return (self.ranks, self.special_tokens, self.added_tokens) == (
            other.ranks,
            other.special_tokens,
            other.added_tokens,
        )

    def special(self, name: str) -> int:
        """Id of a special token, UsageError where the tokenizer has none of that name."""
        if name not in self.special_tokens:
            raise UsageError(f"this tokenizer has no special token {name}; take one of the model that it belongs to")
        return self.special_tokens[name]

    def _require(self, field: str) -> int:
        id = getattr(self, field)
        if id is None:
            raise UsageError(f"this tokenizer has no {field}; encode with {field[:3]}=False")
        return id

    def _check_bytes(self, parts: Iterable[str | int], text: str) -> None:
        """UsageError where a byte has no token, in one of the parts of `text` that aren't ids."""
        start = 0
        for part in parts if self._missing else []:
            if isinstance(part, int):
                start += len(self.decode([part]))
                continue
            start, data = text.index(part, start), part.encode()
            if len(data.translate(None, self._missing)) < len(data):
                inside = next(i for i, byte in enumerate(data) if byte in self._missing)
                character = start + len(data[:inside].decode(errors="ignore"))
                position = len(text[:start].encode()) + inside
                raise UsageError(
                    f"this vocabulary has no token for byte 0x{data[inside]:02X}, at byte {position} of the text "
                    f"(character {character}, {text[character]!r}); remove that character"
                )
            start += len(part)

    def _merge(self, text: str) -> list[int]:
        pieces = [text]
        for cut in self._cuts:
            pieces = [part for piece in pieces for part in _isolate(cut, piece)]
        try:
            return [id for piece in pieces for id in self._bpe.encode_ordinary(piece)]
        except BaseException as error:
            # Older tiktoken panics where newer raises ValueError, and pyo3's PanicException is a bare BaseException.
            if isinstance(error, ValueError) or type(error).__name__ == "PanicException":
                raise UsageError(f"tiktoken can't encode this text of {len(text)} characters: {error}") from error
            raise


def _whole_characters(text: str) -> str:
    """`text` as UTF-8 can hold it, UsageError where it can't."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        try:  # two halves of a pair, as JSON's \ud83d\ude00 gives them, are one character
            return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
        except UnicodeDecodeError as error:
            lone = re.search(r"[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]", text)
            assert lone
            raise UsageError(
                f"the text has a lone surrogate U+{ord(lone[0]):04X} at character {lone.start()}, "
                "expected Unicode that UTF-8 can hold; remove or replace it"
            ) from error


def _isolate(cut: regex.Pattern[str], text: str) -> Iterator[str]:
    """The matches of `cut` and what lies between them."""
    done = 0
    for match in cut.finditer(text):
        yield from (text[done : match.start()], match[0]) if match.start() > done else (match[0],)
        done = match.end()
    if done < len(text):
        yield text[done:]


def _split_runs(text: str) -> Iterator[str]:
    """`text` cut after every MAX_RUN spaces or non-spaces in a row (`_split_whitespaces_or_nonwhitespaces`)."""
    start = 0
    if len(text) > MAX_RUN:
        for run in re.finditer(r"\s+|\S+", text):
            for cut in range(run.start() + MAX_RUN, run.end(), MAX_RUN):
                yield text[start:cut]
                start = cut
    yield text[start:]


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
    if lost.keys() & set(FRAMES):
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
