"""Tokens to text as they come: no half characters, and nothing of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

from llama3_scratch.errors import UsageError
from llama3_scratch.text.tokenizer import Tokenizer


class Detokenizer:
    """One prompt's answer as it grows: its tokens, its text, and in the end why it ended.

    `text` holds only what is certain: the bytes of half a character, and what may be the beginning of a stop string,
    wait for the next token.
    """

    def __init__(self, tokenizer: Tokenizer, stop_tokens: Sequence[int] = (), stop: Sequence[str] = ()) -> None:
        self.tokens: list[int] = []
        self.text = ""
        self.finish_reason: str | None = None
        self._stopped = False
        self._tokenizer = tokenizer
        self._stop_tokens = frozenset(stop_tokens)
        self._stop = tuple(stop)
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def take(self, token: int) -> bool:
        """Add a token; whether it was the last."""
        self.tokens.append(token)
        if token in self._stop_tokens:
            self._release(self._bytes.decode(b"", final=True))
            self._stopped = True
        else:
            self._release(self._bytes.decode(piece(token, self._tokenizer)))
        return self._stopped

    def finish(self, reason: str) -> None:
        """Let out what was held back, since no token follows.

        Half a character becomes U+FFFD where the model ended by itself. Where it was cut short, as by `max_tokens`, the
        text ends before that character, of which only `tokens` has the beginning.
        """
        self.finish_reason = reason
        if reason == "stop":
            self._release(self._bytes.decode(b"", final=True))
        self.text, self._held = self.text + self._held, ""

    def _release(self, text: str) -> None:
        if self._stopped:
            return
        self._held += text
        ends = [found for string in self._stop if (found := self._held.find(string)) >= 0]
        if ends:
            self._stopped = True
            self.text, self._held = self.text + self._held[: min(ends)], ""
            return
        waiting = max((_overlap(self._held, string) for string in self._stop), default=0)
        cut = len(self._held) - waiting
        self.text, self._held = self.text + self._held[:cut], self._held[cut:]


def piece(token: int, tokenizer: Tokenizer) -> bytes:
    """The bytes of an id that a model may say; none where no token has it, since it only pads the embedding to a round
    size or stands in a gap of the vocabulary. transformers decodes it to nothing too."""
    if token >= tokenizer.n_words:
        return b""
    try:
        return tokenizer.decode_bytes([token])
    except UsageError:
        return b""


def text_of(tokens: Iterable[int], tokenizer: Tokenizer, *, cut: bool = False) -> str:
    """The text of ids that a model said, `piece` by `piece`; bytes that are no UTF-8 become U+FFFD. Where a limit `cut`
    the answer short, half a character at its end is left out."""
    said = b"".join(piece(token, tokenizer) for token in tokens)
    return codecs.getincrementaldecoder("utf-8")("replace").decode(said, final=not cut)


def legible(data: bytes) -> str:
    """The text that the bytes are; those that are no whole character as numbers, ⟨E4 BD⟩, and never as U+FFFD."""
    return data.decode(errors="llama3_scratch.numbers")


def _numbers(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return f"⟨{error.object[error.start : error.end].hex(' ').upper()}⟩", error.end


codecs.register_error("llama3_scratch.numbers", _numbers)


def label(token: int, tokenizer: Tokenizer) -> str:
    """A token's text for people, on a line: blanks at its ends, line ends and all that has no glyph can be seen."""
    text = legible(piece(token, tokenizer))
    inner = text.strip(" ")
    begin = len(text) - len(text.lstrip(" "))
    return "␣" * begin + "".join(map(_glyph, inner)) + "␣" * (len(text) - begin - len(inner)) or "∅"


def _glyph(character: str) -> str:
    if character < " ":
        return {"\n": "⏎", "\t": "⇥"}.get(character, chr(0x2400 + ord(character)))
    return character if character.isprintable() else f"⟨{ord(character):X}⟩"


def _overlap(text: str, string: str) -> int:
    """The longest end of `text` that `string` begins with."""
    return next((n for n in range(min(len(text), len(string) - 1), 0, -1) if text.endswith(string[:n])), 0)


def visible(text: str) -> str:
    """Text for a terminal: control characters, with which a model could drive it, shown instead of obeyed."""
    return "".join(
        chr(0x2400 + ord(c)) if c < " " and c not in "\n\t" else "�" if "\x7f" <= c <= "\x9f" else c for c in text
    )
