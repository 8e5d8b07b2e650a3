"""Whole answers to many prompts at once, where nobody watches them come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from llama3_scratch.checkpoint.load import Checkpoint
from llama3_scratch.inference.choices import BATCH_SIZE, CacheChoice
from llama3_scratch.inference.engine.engine import Engine
from llama3_scratch.inference.factories import make_pool
from llama3_scratch.inference.fast_forward import FastForward
from llama3_scratch.inference.requests import Request
from llama3_scratch.inference.sample import Sampler, sampler
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
    if not prompts:
        return []
    stops = frozenset(tokenizer.stop_tokens)
    how = samplers or [sampler()] * len(prompts)
    requests = [
        Request(prompt, how[row], max_tokens, stops.__contains__, row=row) for row, prompt in enumerate(prompts)
    ]
    model = FastForward(checkpoint.params, checkpoint.config, dtype=dtype)
    pool = make_pool(CacheChoice(), model, [len(prompt) + max_tokens for prompt in prompts], rows=batch)
    for step in Engine(model, pool, max_rows=batch).run(requests):
        said[step.row].append(step.token)
        ended[step.row] = step.finish_reason == "stop"
        if step.finish_reason:
            on_done(step.row)
    return [
        Completion(text_of(ids[:-1] if done else ids, tokenizer, cut=not done), len(ids), done)
        for ids, done in zip(said, ended, strict=True)
    ]
