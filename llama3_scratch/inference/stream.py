"""The token loop: prompts in, tokens out one at a time, as one batch whose rows leave and join."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from llama3_scratch.cache import Cache
from llama3_scratch.caches.quantized import vector_bytes
from llama3_scratch.caches.ragged import RaggedCache
from llama3_scratch.config import Config
from llama3_scratch.errors import UsageError
from llama3_scratch.inference.prefill import CHUNK, prefill, step
from llama3_scratch.inference.sample import NonFiniteError, Sampler
from llama3_scratch.inference.speculate import NO_DRAFTS, NoDrafts
from llama3_scratch.linear import embed
from llama3_scratch.model import Block, decode, fused_block
from llama3_scratch.native.decode import FastForward
from llama3_scratch.stored import Params
from llama3_scratch.system.memory import available_memory, memory_plan, require_memory


@dataclass(frozen=True)
class GeneratedToken:
    """One token of one prompt's answer. `finish_reason` is "stop" or "length" on the last one, else None.

    `logits_V` are the model's own, before any filter.
    """

    row: int
    token: int
    logits_V: Tensor
    finish_reason: str | None


@dataclass
class _Row:
    """A prompt that is being answered, in the row of the cache that stands where this does."""

    prompt: int  # its place among the prompts
    seen: list[int]
    max_length: int  # tokens that there may be in all, the prompt included
    logits_TV: Tensor | None = None  # of the last pass, until the tokens that follow are drawn
    finish_reason: str | None = None


@torch.inference_mode()
def stream(
    prompts: Sequence[Sequence[int]],
    params: Params,
    config: Config,
    *,
    samplers: Sequence[Sampler],
    max_tokens: int,
    stop: Callable[[int, int], bool] = lambda row, token: False,
    max_seq_len: int | None = None,
    dtype: torch.dtype | None = None,
    chunk: int = CHUNK,
    cache: Cache | None = None,
    block: Block | None = None,
    drafts: NoDrafts = NO_DRAFTS,
) -> Iterator[GeneratedToken]:
    """Yield each prompt's next tokens, step by step, until all have stopped.

    `stop(row, token)` hears of every token and says whether it ends that row. `dtype` is that of the activations and,
    unless `cache` has another form, of the cache. `cache` may hold the beginning of a single prompt already: the loop
    goes on from there and leaves in it all but the last token. For several prompts it's an empty RaggedCache; where it
    has fewer rows than there are prompts, the others wait until a row is done (continuous batching). `block` is a
    layer's function, in the place of the fastest way through all layers. `drafts` are for a single prompt: what is
    drafted right needs no pass of its own, and the tokens stay the same.
    Raises UsageError for a prompt that is empty or longer than the context.
    """
    if not prompts:
        return
    limit = min(max_seq_len or config.max_seq_len, config.max_seq_len)
    _check_prompts(prompts, limit, config)
    if drafts is not NO_DRAFTS and len(prompts) > 1:
        raise UsageError(f"drafts are for one prompt, got {len(prompts)}")
    if cache is None:
        cache = Cache(limit) if len(prompts) == 1 else RaggedCache(limit, len(prompts))
    _check_cache(cache, prompts)
    _require_memory(cache, prompts, params, config, min(limit, max(map(len, prompts)) + max_tokens), dtype, chunk)

    model = FastForward(params, config, dtype=dtype, block=block)
    waiting = deque(
        _Row(place, list(prompt), len(prompt) + max_tokens if cache.endless else min(len(prompt) + max_tokens, limit))
        for place, prompt in enumerate(prompts)
    )
    rows = [waiting.popleft() for _ in range(cache.batch or 1)]
    drafted: list[int] = []  # draft tokens that the last pass took in behind the last token: a single prompt's alone
    seconds = 0.0
    _share(prefill(model, cache, [row.seen for row in rows], chunk), rows)
    try:
        while True:
            for row in rows:
                right = 0
                for place, logits_V in enumerate(() if row.logits_TV is None else row.logits_TV):
                    try:
                        token = samplers[row.prompt](logits_V, row.seen)
                    except NonFiniteError as error:
                        raise _located(error, row.seen, params, config, dtype, cache) from None
                    row.seen.append(token)
                    right += drafted[place : place + 1] == [token]
                    ends = "stop" if stop(row.prompt, token) else "length" if len(row.seen) >= row.max_length else None
                    row.finish_reason = ends
                    yield GeneratedToken(row.prompt, token, logits_V, ends)
                    if ends or right <= place:
                        break
                row.logits_TV = None
            drafts.observe(len(drafted), right, seconds)
            done = [index for index, row in enumerate(rows) if row.finish_reason]
            if done and waiting:
                _replace(rows, done[: len(waiting)], waiting, model, cast(RaggedCache, cache), chunk)
                continue  # to the first tokens of those that have joined
            if len(done) == len(rows):
                return
            if done:
                going = [index for index, row in enumerate(rows) if not row.finish_reason]
                rows = [rows[index] for index in going]
                cache.keep(going)
            if drafted:
                cache.rewind(len(rows[0].seen) - 1)
            drafted = drafts.propose(rows[0].seen, rows[0].max_length - len(rows[0].seen) - 1) if len(rows) == 1 else []
            begun = time.perf_counter()
            _share(step(model, cache, [[row.seen[-1], *drafted] for row in rows]), rows)
            seconds = time.perf_counter() - begun
    finally:  # whoever listens may leave at any token
        if drafted:
            cache.rewind(min(cache.length, len(rows[0].seen) - 1))


def _share(logits_BTV: Tensor, rows: Sequence[_Row]) -> None:
    for row, logits_TV in zip(rows, logits_BTV, strict=True):
        row.logits_TV = logits_TV


def _replace(
    rows: list[_Row], done: Sequence[int], waiting: deque[_Row], model: FastForward, cache: RaggedCache, chunk: int
) -> None:
    """Give the rows that are done to prompts that wait."""
    joining = [waiting.popleft() for _ in done]
    fresh = cache.fresh(len(joining))
    _share(prefill(model, fresh, [row.seen for row in joining], chunk), joining)
    cache.insert(done, fresh)
    for index, row in zip(done, joining, strict=True):
        rows[index] = row


def _check_prompts(prompts: Sequence[Sequence[int]], limit: int, config: Config) -> None:
    for prompt in prompts:
        if not prompt:
            raise UsageError("the prompt has no tokens; a base model wants at least its begin-of-text token")
        if len(prompt) >= limit:
            raise UsageError(f"prompt {len(prompt)} tokens, limit {limit - 1}, so that one more fits the context")
        if bad := [token for token in prompt if not 0 <= token < config.vocab_size]:
            raise UsageError(f"token {bad[0]} in the prompt, the model's vocabulary has {config.vocab_size}")


def _check_cache(cache: Cache, prompts: Sequence[Sequence[int]]) -> None:
    if cache.batch is None and (len(prompts) > 1 or cache.length >= len(prompts[0])):
        raise UsageError(
            f"a cache takes one prompt of more tokens than it holds, which are {cache.length}, "
            f"got {len(prompts)}, the first of {len(prompts[0])}"
        )
    if cache.batch is not None and (cache.length or not 0 < cache.batch <= len(prompts)):
        raise UsageError(
            f"a ragged cache must be empty and have at most a row for each of {len(prompts)} prompts, "
            f"got {cache.batch} rows of up to {cache.length} tokens"
        )


def _require_memory(
    cache: Cache,
    prompts: Sequence[Sequence[int]],
    params: Params,
    config: Config,
    context: int,
    dtype: torch.dtype | None,
    chunk: int,
) -> None:
    """Raise ResourceError where what the batch will need isn't free."""
    activations = dtype or params["norm.weight"].dtype
    free = available_memory()
    if free is None or params["tok_embeddings.weight"].device.type != "cpu":
        return
    wanted = memory_plan(
        config,
        context=context,
        batch=cache.batch or 1,
        cache_bytes=sum(vector_bytes(form, config.head_dim, activations) for form in cache.forms)
        / (2 * config.head_dim),
        chunk=min(chunk, max(map(len, prompts))),
    )
    require_memory(wanted, free + cache.n_bytes)


def _located(
    error: NonFiniteError,
    tokens: Sequence[int],
    params: Params,
    config: Config,
    dtype: torch.dtype | None,
    cache: Cache,
) -> NonFiniteError:
    """The error with the layer and the position at which the first NaN or infinity appears.

    They're found by running the tokens once more; if nothing is wrong then, what the cache holds is looked through.
    """
    keys, values = cache.forms
    again = Cache(len(tokens), keys=keys, values=values)
    found: list[tuple[str, int]] = []

    def watched(x_BTD: Tensor, params: Params, name: str, config: Config, **state: Any) -> Tensor:
        out_BTD = fused_block(x_BTD, params, name, config, **state)
        if not found and (position := _first_bad(out_BTD)) is not None:
            # A value that is no number spoils all sums that it's in, even those in which it has no weight.
            kept = _first_bad_slot(again, f"{name}.attention", len(tokens))
            found.append((name, position if kept is None else kept))
        return out_BTD

    tokens_BT = torch.tensor([list(tokens)], device=params["tok_embeddings.weight"].device)
    decode(embed(tokens_BT, params, "tok_embeddings", dtype=dtype), params, config, cache=again, block=watched)
    if not found:
        for name in cache.layers:
            if (position := _first_bad_slot(cache, name, cache.length)) is not None:
                return NonFiniteError(f"{error}, first in the cache of {name} at position {position}; begin anew")
    where, at = (found[0][0], f" at position {found[0][1]}") if found else ("the head", "")
    floats = {key: tensor for key, tensor in params.items() if tensor.is_floating_point()}
    near = [key for key in floats if key.startswith(f"{where}.")]
    bad = next((key for key in [*near, *floats] if not torch.isfinite(floats[key]).all()), None)
    remedy = "verify the weights"
    if bad:
        remedy = f"{bad} holds NaN or infinity, download it again"
    elif dtype == torch.float16:
        remedy = "float16 overflows there, take `dtype=float32`"
    return NonFiniteError(f"{error}, first in {where}{at}; {remedy}")


def _first_bad_slot(cache: Cache, name: str, slots: int) -> int | None:
    """The first of the layer's slots whose key or value holds a NaN or an infinity."""
    bad = [position for kept in cache.layers[name] if (position := _first_bad(kept.get(slots))) is not None]
    return min(bad, default=None)


def _first_bad(x: Tensor) -> int | None:
    """The first index along axis 1, the tokens' one, at which a NaN or an infinity stands."""
    bad = ~torch.isfinite(x).transpose(0, 1).flatten(1).all(1)
    return int(bad.nonzero()[0]) if bad.any() else None
