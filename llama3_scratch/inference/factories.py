"""Make what the choices mean for a model: its cache, its sampler, its draft tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from llama3_scratch.cache import Cache, MakeSlots, Slots
from llama3_scratch.caches.paged import PAGE_SLOTS, PagedCache, page_bytes, pages_for
from llama3_scratch.caches.quantized import SLOTS_BY_BITS, group_size
from llama3_scratch.caches.sliding import SlidingCache
from llama3_scratch.checkpoint.load import Checkpoint
from llama3_scratch.config import Config
from llama3_scratch.errors import UsageError
from llama3_scratch.inference import speculate
from llama3_scratch.inference.choices import SINKS, CacheChoice, DraftChoice, ModelChoice, SamplingChoice
from llama3_scratch.inference.fast_forward import FastForward
from llama3_scratch.inference.loading import read
from llama3_scratch.inference.prefill import CHUNK
from llama3_scratch.inference.sample import Sampler, sampler
from llama3_scratch.system.memory import available_memory, memory_plan, require_memory


def context(choice: CacheChoice, config: Config) -> int:
    """Tokens of the context in use, UsageError for more than the model's own."""
    if choice.max_seq_len and choice.max_seq_len > config.max_seq_len:
        raise UsageError(f"`max_seq_len` {choice.max_seq_len}: this model was trained for {config.max_seq_len} tokens")
    return choice.max_seq_len or config.max_seq_len


def _forms(choice: CacheChoice, config: Config) -> tuple[MakeSlots, MakeSlots]:
    """What keys and values are kept in."""
    group = choice.kv_group_size
    if group is not None and (config.head_dim % group or (4 in choice.bits and group % 2)):
        even = ", and be even for 4 bits" if 4 in choice.bits else ""
        raise UsageError(f"`kv_group_size` {group}: must divide the head's width, which is {config.head_dim}{even}")

    def form(bits: int | None) -> MakeSlots:
        if bits is None:
            return Slots
        kind = SLOTS_BY_BITS[bits]
        return kind if bits == 16 else partial(kind, group=group_size(config.head_dim, group))

    keys, values = map(form, choice.bits)
    return keys, values


def make_cache(choice: CacheChoice, config: Config) -> Cache:
    """The cache that was chosen, empty, for one prompt."""
    limit, (keys, values) = context(choice, config), _forms(choice, config)
    if choice.sliding:
        sinks = SINKS if choice.sinks is None else choice.sinks
        return SlidingCache(limit, config, window=choice.sliding, sinks=sinks, keys=keys, values=values)
    return Cache(limit, keys=keys, values=values)


def make_pool(choice: CacheChoice, model: FastForward, lengths: Sequence[int], *, rows: int) -> PagedCache:
    """A paged cache for sequences that may get as long as `lengths`, of which `rows` run at once.

    Raises ResourceError where there isn't so much memory.
    """
    config = model.config
    limit, (keys, values) = context(choice, config), _forms(choice, config)
    longest = sorted((min(length, limit) for length in lengths), reverse=True)[:rows]
    if model.device.type == "cpu":
        number = page_bytes(config, keys=keys, values=values, dtype=model.dtype) / (config.kv_bytes(PAGE_SLOTS, 1, 1))
        plan = memory_plan(config, context=longest[0], batch=len(longest), cache_bytes=number, chunk=CHUNK)
        require_memory(plan, available_memory())
    pages = sum(map(pages_for, longest))
    return PagedCache(config, pages, limit=limit, keys=keys, values=values, dtype=model.dtype, device=model.device)


def make_sampler(choice: SamplingChoice, prompt_tokens: int = 0) -> Sampler:
    """The sampler that was chosen, for an answer to a prompt of so many tokens."""
    choice = choice.seeded()
    return sampler(
        temperature=choice.temperature,
        top_k=choice.top_k,
        top_p=choice.top_p,
        min_p=choice.min_p,
        repeat_penalty=choice.repeat_penalty,
        repeat_last_n=choice.repeat_last_n,
        presence_penalty=choice.presence_penalty,
        frequency_penalty=choice.frequency_penalty,
        logit_bias=choice.logit_bias,
        prompt_tokens=prompt_tokens,
        seed=choice.seed,
    )


def make_drafts(
    choice: DraftChoice, checkpoint: Checkpoint, dtype: torch.dtype, *, reading: ModelChoice | None = None
) -> speculate.NoDrafts:
    """Draft tokens for an answer of this model; a model that makes them is read as `reading` says."""
    if not choice.speculate:
        return speculate.NO_DRAFTS
    max_tokens = choice.draft_tokens or speculate.DRAFT_TOKENS
    if choice.speculate == "lookup":
        return speculate.Drafts(speculate.lookup, max_tokens=max_tokens)
    draft = read(choice.speculate, reading or ModelChoice(), device=checkpoint.params["tok_embeddings.weight"].device)
    ours, its = checkpoint.tokenizer, draft.tokenizer
    if ours is None or its is None or not ours.same_tokens(its):
        raise UsageError(f"`speculate` {choice.speculate}: its tokenizer isn't that of {checkpoint.path}")
    if draft.config.vocab_size != checkpoint.config.vocab_size:
        sizes = f"{draft.config.vocab_size} tokens, {checkpoint.path} {checkpoint.config.vocab_size}"
        raise UsageError(f"`speculate` {choice.speculate}: its vocabulary has {sizes}")
    return speculate.Drafts(speculate.DraftModel(draft.params, draft.config, dtype=dtype), max_tokens=max_tokens)
