"""Prompts answered alone or together, and ragged rows of a paged cache, each in a line: what many tests begin with."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from llama3_scratch.cache import Cache, MakeSlots, Slots
from llama3_scratch.caches.paged import PagedCache, PagedRows, pages_for
from llama3_scratch.config import Config
from llama3_scratch.inference.engine.engine import Engine
from llama3_scratch.inference.fast_forward import FastForward
from llama3_scratch.inference.requests import GeneratedToken, Request
from llama3_scratch.inference.sample import Sampler
from llama3_scratch.inference.stream import stream
from llama3_scratch.model import Block
from llama3_scratch.stored import Params


def stream_all(
    prompts: Sequence[Sequence[int]],
    params: Params,
    config: Config,
    *,
    samplers: Sequence[Sampler],
    max_tokens: int,
    stop: Callable[[int, int], bool] = lambda row, token: False,
    max_seq_len: int | None = None,
    dtype: torch.dtype | None = None,
    block: Block | None = None,
    cache: Cache | None = None,
    forms: tuple[MakeSlots, MakeSlots] = (Slots, Slots),
    rows: int | None = None,
    **options: Any,
) -> Iterator[GeneratedToken]:
    """One prompt by `stream`, with its options; several by an engine, with its own, all at once unless `rows` says so.

    `stop` hears of the prompt's place and the token; `forms` are the keys' and values' where there is no `cache`.
    """
    limit = min(max_seq_len or config.max_seq_len, config.max_seq_len)
    model = FastForward(params, config, dtype=dtype, block=block)
    requests = [
        Request(prompt, sampler, max_tokens, partial(stop, row), row=row)
        for row, (prompt, sampler) in enumerate(zip(prompts, samplers, strict=True))
    ]
    if len(prompts) == 1:
        return stream(requests[0], model, cache or Cache(limit, keys=forms[0], values=forms[1]), **options)
    pages = sum(pages_for(min(limit, len(prompt) + max_tokens)) for prompt in prompts)
    pool = PagedCache(
        config, pages, limit=limit, keys=forms[0], values=forms[1], dtype=model.dtype, device=model.device
    )
    return Engine(model, pool, max_rows=rows or len(prompts), **options).run(requests)


def ragged_rows(
    config: Config, limit: int, rows: int, *, keys: MakeSlots = Slots, values: MakeSlots = Slots, **pool: Any
) -> PagedRows:
    """Empty rows of a paged cache, each of `limit` tokens, whose pages lie in any order."""
    each = pages_for(limit)
    pages = random.Random(rows).sample(range(rows * each), rows * each)
    cache = PagedCache(config, rows * each, keys=keys, values=values, **pool)
    return cache.rows([pages[row * each : (row + 1) * each] for row in range(rows)], [0] * rows)
