"""The token loop: prompts in, tokens out one at a time, as one batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llama3_scratch.cache import Cache, RaggedCache
from llama3_scratch.caches.quantized import vector_bytes
from llama3_scratch.config import Config
from llama3_scratch.errors import UsageError
from llama3_scratch.inference.sample import NonFiniteError, Sampler
from llama3_scratch.inference.speculate import NO_DRAFTS, NoDrafts
from llama3_scratch.linear import embed
from llama3_scratch.model import Block, decode, fused_block, unembed
from llama3_scratch.native.decode import FastForward
from llama3_scratch.stored import Params
from llama3_scratch.system.memory import available_memory, memory_plan, require_memory

CHUNK = 512  # tokens of a prompt that go through the model at once: memory stays flat however long the prompt is


@dataclass(frozen=True)
class GeneratedToken:
    """One token of one prompt's answer. `finish_reason` is "stop" or "length" on the last one, else None.

    `logits_V` are the model's own, before any filter.
    """

    row: int
    token: int
    logits_V: Tensor
    finish_reason: str | None


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
    guesses: NoDrafts = NO_DRAFTS,
) -> Iterator[GeneratedToken]:
    """Yield each prompt's next tokens, step by step, until all have stopped.

    `stop(row, token)` hears of every token and says whether it ends that row. `dtype` is that of the activations and,
    unless `cache` has another form, of the cache. `cache` may hold the beginning of a single prompt already: the loop
    goes on from there and leaves in it all but the last token. For several prompts it's an empty RaggedCache with a
    row for each. `block` is a layer's function, in the place of the fastest way through all layers.
    `guesses` are for a single prompt: what is guessed right needs no pass of its own, and the tokens stay the same.
    Raises UsageError for a prompt that is empty or longer than the context.
    """
    if not prompts:
        return
    limit = min(max_seq_len or config.max_seq_len, config.max_seq_len)
    for prompt in prompts:
        if not prompt:
            raise UsageError("the prompt has no tokens; a base model wants at least its begin-of-text token")
        if len(prompt) >= limit:
            raise UsageError(f"prompt {len(prompt)} tokens, limit {limit - 1}, so that one more fits the context")
        if bad := [token for token in prompt if not 0 <= token < config.vocab_size]:
            raise UsageError(f"token {bad[0]} in the prompt, the model's vocabulary has {config.vocab_size}")
    if guesses is not NO_DRAFTS and len(prompts) > 1:
        raise UsageError(f"guesses are for one prompt, got {len(prompts)}")
    if cache is None:
        cache = Cache(limit) if len(prompts) == 1 else RaggedCache(limit, len(prompts))
    elif isinstance(cache, RaggedCache):
        if cache.length or len(cache.lengths) != len(prompts):
            raise UsageError(
                f"a ragged cache must be empty with a row for each of {len(prompts)} prompts, "
                f"got {len(cache.lengths)} rows of up to {cache.length} tokens"
            )
    elif len(prompts) > 1 or cache.length >= len(prompts[0]):
        raise UsageError(
            f"a cache takes one prompt of more tokens than it holds, which are {cache.length}, "
            f"got {len(prompts)}, the first of {len(prompts[0])}"
        )
    activations = dtype or params["norm.weight"].dtype
    free = available_memory()
    if free is not None and params["tok_embeddings.weight"].device.type == "cpu":
        longest = max(map(len, prompts))
        wanted = memory_plan(
            config,
            context=min(limit, longest + max_tokens),
            batch=len(prompts),
            cache_bytes=sum(vector_bytes(form, config.head_dim, activations) for form in cache.forms)
            / (2 * config.head_dim),
            chunk=min(chunk, longest),
        )
        require_memory(wanted, free + cache.n_bytes)

    model = FastForward(params, config, dtype=dtype, block=block)
    rows = list(range(len(prompts)))
    seen = [list(prompt) for prompt in prompts]
    most = [len(prompt) + max_tokens if cache.endless else min(len(prompt) + max_tokens, limit) for prompt in prompts]
    guessed: list[int] = []  # what the last pass took in behind the last token: a single prompt's alone
    # The head only for the last position: it is the largest matrix of a small model.
    logits_BTV = unembed(_prefill(model, cache, prompts, chunk), params)
    seconds = 0.0
    try:
        while True:
            going = []
            for index, row in enumerate(rows):
                right = 0
                for place in range(len(guessed) + 1):
                    try:
                        token = samplers[row](logits_BTV[index, place], seen[row])
                    except NonFiniteError as error:
                        raise _located(error, seen[row], params, config, dtype, cache) from None
                    seen[row].append(token)
                    right += guessed[place : place + 1] == [token]
                    reason = "stop" if stop(row, token) else "length" if len(seen[row]) >= most[row] else None
                    yield GeneratedToken(row, token, logits_BTV[index, place], reason)
                    if reason or right <= place:
                        break
                if reason is None:
                    going.append(index)
            guesses.learn(len(guessed), right, seconds)
            if not going:
                return
            if len(going) < len(rows) and isinstance(cache, RaggedCache):
                cache.keep(going)
            rows = [rows[index] for index in going]
            if guessed:
                cache.rewind(len(seen[rows[0]]) - 1)
            guessed = guesses.guess(seen[rows[0]], most[rows[0]] - len(seen[rows[0]]) - 1) if len(rows) == 1 else []
            begun = time.perf_counter()
            logits_BTV = model.logits(torch.tensor([[seen[row][-1], *guessed] for row in rows]), cache)
            seconds = time.perf_counter() - begun
    finally:  # whoever listens may leave at any token
        if guessed:
            cache.rewind(min(cache.length, len(seen[rows[0]]) - 1))


def _prefill(model: FastForward, cache: Cache, prompts: Sequence[Sequence[int]], chunk: int) -> Tensor:
    """Take the prompts into the cache, a chunk at a time: the last token's x of each, x_B1D."""
    lengths = [len(prompt) for prompt in prompts]
    padded_BT = torch.tensor([[*prompt, *[0] * (max(lengths) - len(prompt))] for prompt in prompts])
    last_D: dict[int, Tensor] = {}
    for begin in range(cache.length, max(lengths), chunk):
        x_BTD = model.hidden(padded_BT[:, begin : begin + chunk], cache)
        for row, length in enumerate(lengths):
            if begin < length <= begin + chunk:
                last_D[row] = x_BTD[row, length - 1 - begin]
    if isinstance(cache, RaggedCache):
        cache.rewind_rows(torch.tensor(lengths))
    return torch.stack([last_D[row] for row in range(len(prompts))])[:, None]


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
