"""The token loop with a clock beside it, and with answers that grow: what `generate`, `chat` and notebooks run."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator
from typing import Any, Protocol

import torch

from llama3_scratch.cache import Cache
from llama3_scratch.checkpoint.load import Checkpoint
from llama3_scratch.inference import stream
from llama3_scratch.inference.choices import SamplingChoice
from llama3_scratch.inference.factories import make_sampler
from llama3_scratch.inference.speculate import NO_DRAFTS, NoDrafts
from llama3_scratch.inference.stream import GeneratedToken
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
    cache: Cache,
    drafts: NoDrafts = NO_DRAFTS,
    watch: Watch | None = None,
) -> Generator[GeneratedToken, None, None]:
    """`stream` into this cache: each token goes into its answer, and `timings` grows with it."""
    started = time.perf_counter()
    timings.prompt_tokens = sum(map(len, prompts)) - cache.length
    if watch is not None:
        watch.start(answers[0])
    before = len(prompts)
    for step in stream.stream(
        prompts,
        checkpoint.params,
        checkpoint.config,
        samplers=[make_sampler(sampling) for _ in prompts],
        max_tokens=sampling.at_most,
        stop=lambda row, token: answers[row].take(token),
        max_seq_len=cache.limit,
        dtype=dtype,
        cache=cache,
        block=block if watch is not None else None,
        drafts=drafts,
    ):
        if watch is not None and step.row <= before:  # rows ascend within a pass
            watch.passed()
        before = step.row
        if not timings.prefill_s:
            timings.prefill_s = time.perf_counter() - started
        timings.decode_s = time.perf_counter() - started - timings.prefill_s
        timings.decoded_tokens += len(answers[step.row].tokens) > 1
        timings.proposed, timings.accepted = drafts.proposed, drafts.accepted
        if step.finish_reason:
            answers[step.row].finish(step.finish_reason)
        yield step


def warn_if_clamped(prompt_tokens: int, cache: Cache, sampling: SamplingChoice) -> None:
    """Say so where the context ends before as many tokens have come as were asked for."""
    if sampling.max_tokens is None or cache.endless:
        return
    if prompt_tokens < cache.limit < prompt_tokens + sampling.max_tokens:
        log.warning("the context of %d tokens leaves room for %d more", cache.limit, cache.limit - prompt_tokens)


def logprobs(step: GeneratedToken, n_top: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """The chosen token and the `n_top` likeliest, with their natural log-probabilities before any filter."""
    logprobs_V = step.logits_V.log_softmax(-1)

    def entry(id: int) -> dict[str, Any]:
        text = piece(id, tokenizer).decode(errors="replace")
        return {"token": id, "text": text, "logprob": round(float(logprobs_V[id]), 6)}

    top = logprobs_V.topk(min(n_top, len(logprobs_V))).indices.tolist()
    return entry(step.token) | {"top": [entry(id) for id in top]}
