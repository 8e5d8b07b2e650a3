"""What the model said before, as it said it: a client sends an answer back as text, and text can be cut into tokens in
several ways. With the model's own tokens the pages of the prefix cache that hold the conversation are found again.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence

from llama3_scratch.text.detokenizer import piece
from llama3_scratch.text.tokenizer import Tokenizer

MAX_ANSWERS = 256


class SaidBefore:
    """The latest answers, each behind the tokens of its prompt."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._answers: OrderedDict[tuple[str, bytes], tuple[int, ...]] = OrderedDict()

    def keep(self, prompt: Sequence[int], answer: Sequence[int], text: str, salt: str) -> None:
        """Remember an answer, without what ended it; one whose tokens say more or less than its text isn't kept."""
        ids = tuple(answer[:-1] if answer and answer[-1] in self._tokenizer.stop_tokens else answer)
        if ids and self._said(ids) == text.encode():
            self._answers[salt, _bytes(prompt)] = ids
            self._answers.move_to_end((salt, _bytes(prompt)))
            if len(self._answers) > MAX_ANSWERS:
                self._answers.popitem(last=False)

    def restore(self, ids: list[int], salt: str) -> list[int]:
        """The prompt with our own tokens in the place of others that say the same: bytes and place are equal."""
        done = 0
        while True:
            data = _bytes(ids)
            behind = [
                (len(prompt) // array("q").itemsize, said)
                for (its_salt, prompt), said in self._answers.items()
                if its_salt == salt and len(prompt) > done * array("q").itemsize and data.startswith(prompt)
            ]
            if not behind:
                return ids
            begin, said = min(behind)
            if (end := self._same(ids, begin, said)) is not None:
                ids = [*ids[:begin], *said, *ids[end:]]
            done = begin

    def _same(self, ids: Sequence[int], begin: int, said: Sequence[int]) -> int | None:
        """Where the tokens from `begin` on that say the same as `said` end; None where they say something else, or
        say more than that before a token that no text is made of."""
        wanted, got = self._said(said), b""
        for end in range(begin, len(ids)):
            if got == wanted:
                return end if ids[end] in self._control else None
            got += piece(ids[end], self._tokenizer)
            if not wanted.startswith(got):
                return None
        return len(ids) if got == wanted else None

    @property
    def _control(self) -> frozenset[int]:
        return frozenset(self._tokenizer.special_tokens.values())

    def _said(self, ids: Sequence[int]) -> bytes:
        return b"".join(piece(id, self._tokenizer) for id in ids)


def _bytes(ids: Sequence[int]) -> bytes:
    return array("q", ids).tobytes()
