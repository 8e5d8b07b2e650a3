"""Text ↔ token ids: tiktoken for the merging, ids equal to Meta's Tokenizer. No torch here."""

from __future__ import annotations

import operator
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import regex
import tiktoken

from llama3_scratch.errors import UsageError
from llama3_scratch.text.added_tokens import AddedTokens

CHAT_FORMATS = ("llama3", "chatml", "template")
# What ends a chat's turn or its text, of those that a vocabulary has: a chat that doesn't stop there never stops.
TURN_ENDS = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>", "<|im_end|>")
# What lays out a chat's messages.
CHAT_TOKENS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|im_start|>", "<|im_end|>")
# Meta's two limits in characters (`Tokenizer.encode`), of a text and of spaces or non-spaces in a row: beyond them the
# splitting regex runs out of stack.
MAX_CHARS, MAX_RUN = 400_000, 25_000
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


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
        self._take_chat_format(chat_format)
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
        how = {None: "completes text", "template": "chats by a template of its own"}
        chats = how.get(self.chat_format) or f"chats in {self.chat_format}"
        return f"Tokenizer({self.n_words:,} tokens, {len(self.special_tokens)} of them special, {chats})"

    def set_chat_format(self, chat_format: str | None) -> None:
        """Lay chats out so, and so alone; with a chat format, whatever ends a turn becomes a stop token."""
        self._take_chat_format(chat_format)
        if chat_format != "template":
            self.chat_template = None

    def _take_chat_format(self, chat_format: str | None) -> None:
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
                for run in split_runs(part[start : start + MAX_CHARS]):
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


def split_runs(text: str) -> Iterator[str]:
    """`text` cut after every MAX_RUN spaces or non-spaces in a row (`_split_whitespaces_or_nonwhitespaces`)."""
    start = 0
    if len(text) > MAX_RUN:
        for run in re.finditer(r"\s+|\S+", text):
            for cut in range(run.start() + MAX_RUN, run.end(), MAX_RUN):
                yield text[start:cut]
                start = cut
    yield text[start:]
