"""The token loop with a clock beside it, and with answers that grow: what `generate`, `chat` and notebooks run."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator
from typing import Any, Protocol

import torch

from llama3_scratch.cache import Cache
from llama3_scratch.caches.paged import PagedCache
from llama3_scratch.checkpoint.load import Checkpoint
from llama3_scratch.inference import sample, stream
from llama3_scratch.inference.choices import SamplingChoice
from llama3_scratch.inference.engine.engine import Engine
from llama3_scratch.inference.factories import make_sampler
from llama3_scratch.inference.fast_forward import FastForward
from llama3_scratch.inference.requests import GeneratedToken, Request
from llama3_scratch.inference.speculate import NO_DRAFTS, NoDrafts
from llama3_scratch.model import block
from llama3_scratch.system.timings import Timings
from llama3_scratch.text.detokenizer import Detokenizer, piece
from llama3_scratch.text.tokenizer import Tokenizer

log = logging.getLogger("llama3_scratch")


class Watch(Protocol):
    """Who looks at the first passes of a run, as a trace does: at the readable block, not at the fused one."""

    @property
    def done(self) -> bool:
        """Whether it has seen enough."""

    def start(self, answer: Detokenizer) -> None:
        """Look from now on; `answer` is that to the first prompt, as it grows."""

    def passed(self) -> None:
        """One more pass has made its token."""

    def close(self) -> None:
        """Look no more."""

    def finish(self) -> None:
        """Tell what was seen."""

    def compare(self) -> None:
        """Hold it against what it was to be like. Raises MismatchError where it isn't."""


def timed_stream(
    prompts: list[list[int]],
    answers: list[Detokenizer],
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    sampling: SamplingChoice,
    timings: Timings,
    *,
    cache: Cache | PagedCache,
    rows: int = 1,
    drafts: NoDrafts = NO_DRAFTS,
    watch: Watch | None = None,
) -> Generator[GeneratedToken, None, None]:
    """Answer one prompt in a cache of its own, or several in pages, `rows` at once.

    Each token goes into its answer, and `timings` grows with it.
    """
    started = time.perf_counter()
    timings.prompt_tokens = sum(map(len, prompts)) - (0 if isinstance(cache, PagedCache) else cache.length)
    if watch is not None:
        watch.start(answers[0])
    model = FastForward(checkpoint.params, checkpoint.config, dtype=dtype, block=block if watch is not None else None)
    requests = [
        Request(prompt, make_sampler(sampling, len(prompt)), sampling.at_most, answer.take, row=row)
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
    ]
    if isinstance(cache, PagedCache):
        steps = Engine(model, cache, max_rows=rows).run(requests)
    else:
        steps = stream.stream(requests[0], model, cache, drafts=drafts)
    for step in steps:
        if watch is not None:
            watch.passed()
        if not timings.prefill_s:
            timings.prefill_s = time.perf_counter() - started
        timings.decode_s = time.perf_counter() - started - timings.prefill_s
        timings.decoded_tokens += len(answers[step.row].tokens) > 1
        timings.proposed, timings.accepted = drafts.proposed, drafts.accepted
        if step.finish_reason:
            answers[step.row].finish(step.finish_reason)
        yield step


def warn_if_clamped(prompt_tokens: int, limit: int, sampling: SamplingChoice) -> None:
    """Say so where the context of `limit` tokens ends before as many have come as were asked for."""
    if sampling.max_tokens is not None and prompt_tokens < limit < prompt_tokens + sampling.max_tokens:
        log.warning("the context of %d tokens leaves room for %d more", limit, limit - prompt_tokens)


def logprobs(step: GeneratedToken, n_top: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """The chosen token and the `n_top` likeliest, with their natural log-probabilities before any filter."""
    chosen, top = sample.logprobs(step.logits_V, step.token, n_top)

    def entry(id: int, logprob: float) -> dict[str, Any]:
        return {"token": id, "text": piece(id, tokenizer).decode(errors="replace"), "logprob": round(logprob, 6)}

    return entry(step.token, chosen) | {"top": [entry(*one) for one in top]}
