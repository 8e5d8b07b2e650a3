"""One answer as it grows, on the engine's thread: tokens in, and out what a client may see of them by now."""

from __future__ import annotations

import codecs
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from llama3_scratch.inference.requests import Failure, GeneratedToken, Request
from llama3_scratch.inference.sample import Sampler, logprobs
from llama3_scratch.text.detokenizer import Detokenizer, piece
from llama3_scratch.text.tokenizer import Tokenizer


@dataclass
class TokenLogprob:
    """A token that was drawn, its log-probability before any filter, and the likeliest in its place.

    `text` is what the token adds to the answer: nothing where it's the beginning of a character, the whole of which
    belongs to the token that completes it. So the texts joined are the answer.
    """

    text: str
    data: bytes
    logprob: float | None  # None: nothing stands before it
    top: list[tuple[bytes, float]]


@dataclass
class Part:
    """What has come of an answer: more text, more tokens, its end, or why there is none."""

    index: int
    text: str = ""
    tokens: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None  # "stop" or "length", on the last one
    error: Exception | None = None
    at: float = field(default_factory=time.perf_counter)
    generated: int = 1  # tokens since the part before


class Answer:
    """The answer number `index` of a request."""

    def __init__(
        self,
        index: int,
        prompt: Sequence[int],
        sampler: Sampler,
        tokenizer: Tokenizer,
        *,
        max_tokens: int,
        stop_tokens: Sequence[int],
        stop: Sequence[str] = (),
        logprobs: int | None = None,
        salt: str = "",
        adapter: str | None = None,
    ) -> None:
        self.index = index
        self.words = Detokenizer(tokenizer, stop_tokens, stop)
        self.request = Request(prompt, sampler, max_tokens, self.words.take, salt, adapter)
        self.ended = False
        self._tokenizer, self._stop_tokens, self._logprobs = tokenizer, frozenset(stop_tokens), logprobs
        self._sent = self._told = 0  # characters of the text, and of the text of the tokens, that are out
        self._waiting: list[TokenLogprob] = []  # until their text is certain
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def tokens(self) -> list[int]:
        """Those that were drawn, the stop token that ended them included."""
        return self.words.tokens

    def hear(self, event: GeneratedToken | Failure) -> Part:
        """Take what the engine says."""
        if isinstance(event, Failure):
            self.ended = True
            return Part(self.index, error=event.error, generated=0)
        if self._logprobs is not None and event.token not in self._stop_tokens:
            entry = token_logprob(event.token, event.logits_V, self._logprobs, self._tokenizer)
            entry.text = self._bytes.decode(entry.data)
            self._waiting.append(entry)
        if event.finish_reason:
            return self.end(event.finish_reason)
        return self._part(None)

    def end(self, reason: str, generated: int = 1) -> Part:
        """The last part, whose text holds nothing back."""
        self.ended = True
        self.words.finish(reason)
        if self._waiting and reason == "stop":
            self._waiting[-1].text += self._bytes.decode(b"", final=True)
        part = self._part(reason)
        part.generated = generated
        return part

    def _part(self, finish_reason: str | None) -> Part:
        text = self.words.text[self._sent :]
        self._sent += len(text)
        part = Part(self.index, text, finish_reason=finish_reason)
        if self._waiting:
            part.tokens = self._certain(ended=finish_reason is not None)
        return part

    def _certain(self, *, ended: bool) -> list[TokenLogprob]:
        """The tokens whose text is out; at the end a stop string may have cut the last of them.

        Tokens that add no text go along with the next one that does.
        """
        found: list[TokenLogprob] = []
        told = 0
        for entry in self._waiting:
            end = self._told + len(entry.text)
            if end > self._sent:
                if ended and self._told < self._sent:
                    entry.text = entry.text[: self._sent - self._told]
                    entry.data = entry.text.encode()
                    found.append(entry)
                break
            found.append(entry)
            self._told, told = end, len(found) if entry.text else told
        if not ended:
            del found[told:]
        self._waiting = [] if ended else self._waiting[len(found) :]
        return found


def token_logprob(token: int, logits_V: Tensor, n_top: int, tokenizer: Tokenizer) -> TokenLogprob:
    """A token beside the `n_top` likeliest in its place."""
    logprob, likeliest = logprobs(logits_V, token, n_top)
    data = piece(token, tokenizer)
    return TokenLogprob(
        data.decode("utf-8", "replace"), data, logprob, [(piece(id, tokenizer), value) for id, value in likeliest]
    )
