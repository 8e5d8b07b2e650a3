"""Whole answers to many prompts at once, where nobody watches them come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from llama3_scratch.cache import Cache
from llama3_scratch.caches.ragged import RaggedCache
from llama3_scratch.checkpoint.load import Checkpoint
from llama3_scratch.inference.choices import BATCH_SIZE
from llama3_scratch.inference.sample import Sampler, sampler
from llama3_scratch.inference.stream import stream
from llama3_scratch.text.detokenizer import text_of


@dataclass(frozen=True)
class Completion:
    """What a model said, how many tokens that took, and whether it ended by itself: with a stop token, not in text."""

    text: str
    tokens: int
    ended: bool


def answers(
    prompts: Sequence[Sequence[int]],
    checkpoint: Checkpoint,
    *,
    max_tokens: int,
    samplers: Sequence[Sampler] | None = None,
    batch: int = BATCH_SIZE,
    dtype: torch.dtype = torch.float32,
    on_done: Callable[[int], None] = lambda prompt: None,
) -> list[Completion]:
    """An answer to each prompt's tokens, in their order; without samplers the likeliest token each time.

    At most `batch` are answered at once, and whichever is done makes room for the next. `on_done` hears of each.
    """
    tokenizer = checkpoint.require_tokenizer()
    said: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    limit, rows = checkpoint.config.max_seq_len, min(batch, len(prompts))
    for step in stream(
        prompts,
        checkpoint.params,
        checkpoint.config,
        samplers=samplers or [sampler()] * len(prompts),
        max_tokens=max_tokens,
        stop=lambda row, token: token in tokenizer.stop_tokens,
        dtype=dtype,
        cache=Cache(limit) if len(prompts) == 1 else RaggedCache(limit, rows),
    ):
        said[step.row].append(step.token)
        ended[step.row] = step.finish_reason == "stop"
        if step.finish_reason:
            on_done(step.row)
    return [
        Completion(text_of(ids[:-1] if done else ids, tokenizer, cut=not done), len(ids), done)
        for ids, done in zip(said, ended, strict=True)
    ]
