"""Speculative decoding: a pass over the last token and a few draft tokens costs little more than one over the last
alone, and where the drafts are what the model says anyway, one pass makes several tokens.

What is sampled at each place comes from the model's own logits there, so the text is that of a run without drafts,
with any sampler: a draft only decides whether the next place's logits were computed for the right beginning. For
drafts without a probability of their own this is the rule of arXiv:2211.17192 and arXiv:2302.01318.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from llama3_scratch.cache import Cache
from llama3_scratch.caches.prompt_cache import common_prefix
from llama3_scratch.config import Config
from llama3_scratch.inference.fast_forward import FastForward
from llama3_scratch.inference.prefill import prefill, step
from llama3_scratch.stored import Params

# Tokens so far, how many may follow at most → the tokens that may follow.
Propose = Callable[[Sequence[int], int], list[int]]

DRAFT_TOKENS = 8  # draft tokens that a pass checks at most, unless told otherwise
_FADING = 0.8  # of an average at each new pass: about the last five count
_PAUSE, _LONGEST_PAUSE = 16, 256  # tokens without drafts, once they have cost more than they brought


class NoDrafts:
    """Nothing is drafted: a pass makes one token."""

    proposed = accepted = 0

    def propose(self, seen: Sequence[int], max_tokens: int) -> list[int]:
        """At most `max_tokens` tokens that may follow `seen`."""
        return []

    def observe(self, proposed: int, accepted: int, seconds: float) -> None:
        """Hear of a pass: how many draft tokens it checked, how many were right, how long it took."""


NO_DRAFTS = NoDrafts()


class Drafts(NoDrafts):
    """Draft tokens by `propose`, as many as have lately been right, and for a while none where they lose time.

    `proposed` and `accepted` count all of them. `clock` tells seconds.
    """

    def __init__(
        self, propose: Propose, *, max_tokens: int = DRAFT_TOKENS, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._propose, self._max_tokens, self._clock = propose, max_tokens, clock
        self.proposed = self.accepted = 0
        self._wanted = min(4, max_tokens)
        self._plain = self._drafted = 0.0  # seconds a token, averaged: without drafts and with them
        self._drafting = 0.0  # seconds that the drafts of the coming pass took
        self._paused, self._pause = 1, _PAUSE  # the first pass is without drafts, to know what one takes

    def propose(self, seen: Sequence[int], max_tokens: int) -> list[int]:
        if self._paused:
            self._paused -= 1
            return []
        begun = self._clock()
        drafted = self._propose(seen, min(self._wanted, max_tokens))
        self._drafting = self._clock() - begun
        return drafted

    def observe(self, proposed: int, accepted: int, seconds: float) -> None:
        self.proposed += proposed
        self.accepted += accepted
        if not proposed:
            self._plain = self._faded(self._plain, seconds)
            return
        self._wanted = min(self._max_tokens, 2 * self._wanted) if accepted == proposed else max(1, accepted + 1)
        self._drafted = self._faded(self._drafted, (seconds + self._drafting) / (accepted + 1))
        if self._plain and self._drafted > self._plain:
            self._paused, self._drafted = self._pause, 0.0
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        elif accepted == proposed:
            self._pause = _PAUSE

    @staticmethod
    def _faded(average: float, new: float) -> float:
        return _FADING * average + (1 - _FADING) * new if average else new


def lookup(seen: Sequence[int], max_tokens: int, *, longest: int = 3) -> list[int]:
    """What followed the last tokens where they stood before: no second model, good for texts that repeat or quote.

    The latest place counts at which the last `longest` tokens stood, or else the last two, or the last one.
    """
    for n in range(min(longest, len(seen) - 1), 0, -1):
        last = list(seen[-n:])
        for begin in range(len(seen) - n - 1, -1, -1):
            if seen[begin] == last[0] and list(seen[begin : begin + n]) == last:
                return list(seen[begin + n : begin + n + max_tokens])
    return []


class DraftModel:
    """Draft tokens of a smaller model with the same tokens: what it finds likeliest. It keeps a cache of its own."""

    def __init__(self, params: Params, config: Config, *, dtype: torch.dtype | None = None) -> None:
        self._model, self._config = FastForward(params, config, dtype=dtype), config
        self._cache = Cache(config.max_seq_len)
        self._cached: list[int] = []

    @torch.inference_mode()
    def __call__(self, seen: Sequence[int], max_tokens: int) -> list[int]:
        same = min(common_prefix(seen, self._cached), len(seen) - 1)
        self._cache.rewind(same)
        drafted: list[int] = []
        for _ in range(min(max_tokens, self._config.max_seq_len - len(seen))):
            if drafted:
                logits_BTV = step(self._model, self._cache, [drafted[-1:]])
            else:
                logits_BTV = prefill(self._model, self._cache, [seen])
            drafted.append(int(logits_BTV[0, -1].argmax()))
        self._cached = [*seen, *drafted][: self._cache.length]
        return drafted
