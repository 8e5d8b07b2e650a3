"""The engine of a server: the model, its adapters beside it, and a pool of pages that is planned at the start."""

from __future__ import annotations

import torch

from llama3_scratch.caches.paged import PAGE_SLOTS, PagedCache
from llama3_scratch.checkpoint.adapters import add_adapters
from llama3_scratch.checkpoint.load import Checkpoint
from llama3_scratch.errors import ResourceError
from llama3_scratch.inference.choices import CacheChoice
from llama3_scratch.inference.engine.engine import Engine
from llama3_scratch.inference.factories import context, make_pool
from llama3_scratch.inference.fast_forward import FastForward
from llama3_scratch.serving.choices import ServeChoice
from llama3_scratch.system.memory import available_memory, format_bytes


def make_models(checkpoint: Checkpoint, choice: ServeChoice, dtype: torch.dtype) -> dict[str | None, FastForward]:
    """The model under None, and with each adapter beside its weights, which are in memory once, under its name."""
    models: dict[str | None, FastForward] = {None: FastForward(checkpoint.params, checkpoint.config, dtype=dtype)}
    for name, folder in choice.adapters.items():
        adapted = add_adapters(checkpoint, [folder])
        models[name] = FastForward(adapted.params, adapted.config, dtype=dtype)
    return models


def make_engine(models: dict[str | None, FastForward], cache: CacheChoice, choice: ServeChoice) -> Engine:
    adapters = {name: model for name, model in models.items() if name is not None}
    pool = plan_pool(models[None], cache, choice)
    return Engine(models[None], pool, adapters=adapters, max_rows=choice.max_concurrent)


def plan_pool(model: FastForward, cache: CacheChoice, choice: ServeChoice) -> PagedCache:
    """The pool: `pool_gb`, else as much as all concurrent answers can need, and half of what is free at most.

    Raises ResourceError where that isn't a page.
    """
    limit = context(cache, model.config)
    page = make_pool(cache, model, [1], rows=1).n_bytes
    if choice.pool_gb is not None:
        pages = int(choice.pool_gb * 1e9) // page
    else:
        pages = choice.max_concurrent * -(-limit // PAGE_SLOTS)
        free = available_memory()
        if free is not None and model.device.type == "cpu":
            pages = min(pages, free // 2 // page)
    if pages < 1:
        raise ResourceError(f"`pool_gb`: a page of {PAGE_SLOTS} tokens takes {format_bytes(page)}, give more than that")
    whole, rest = divmod(pages, -(-limit // PAGE_SLOTS))
    lengths = [limit] * whole + ([rest * PAGE_SLOTS] if rest else [])
    return make_pool(cache, model, lengths, rows=len(lengths))
