"""Tokens to text as they come: no half characters, and nothing of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from llama3_scratch.tokenizer import Tokenizer


class TextStream:
    """Collects one answer's tokens; `push` and `finish` return the text that is certain by now."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self.stopped = False  # a stop string has come
        self._tokenizer = tokenizer
        self._stop = [string for string in stop if string]
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def push(self, token: int) -> str:
        """The text that `token` completes, perhaps none."""
        return self._release(self._bytes.decode(self._tokenizer.decode_bytes([token])))

    def finish(self) -> str:
        """What was held back, once no token follows; a half character becomes U+FFFD."""
        text = self._release(self._bytes.decode(b"", final=True))
        text, self._held = text + self._held, ""
        return text

    def _release(self, text: str) -> str:
        if self.stopped:
            return ""
        self._held += text
        ends = [found for string in self._stop if (found := self._held.find(string)) >= 0]
        if ends:
            self.stopped = True
            text, self._held = self._held[: min(ends)], ""
            return text
        # What might be the beginning of a stop string waits for the next token.
        waiting = max((_overlap(self._held, string) for string in self._stop), default=0)
        cut = len(self._held) - waiting
        text, self._held = self._held[:cut], self._held[cut:]
        return text


def _overlap(text: str, string: str) -> int:
    """The longest end of `text` that `string` begins with."""
    return next((n for n in range(min(len(text), len(string) - 1), 0, -1) if text.endswith(string[:n])), 0)


def visible(text: str) -> str:
    """Text for a terminal: control characters, with which a model could drive it, shown instead of obeyed."""
    return "".join(
        chr(0x2400 + ord(c)) if c < " " and c not in "\n\t" else "�" if "\x7f" <= c <= "\x9f" else c for c in text
    )
