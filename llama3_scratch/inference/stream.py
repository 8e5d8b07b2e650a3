"""The token loop: a prompt in, tokens out one at a time, each as soon as it's there.

For one prompt, in a cache of its own, with draft tokens if wanted. Several at once are `engine.Engine`'s.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from llama3_scratch.cache import Cache
from llama3_scratch.caches.quantized import vector_bytes
from llama3_scratch.errors import UsageError
from llama3_scratch.inference.fast_forward import FastForward
from llama3_scratch.inference.non_finite import located, located_in
from llama3_scratch.inference.prefill import CHUNK, prefill, step
from llama3_scratch.inference.requests import GeneratedToken, Request, check_prompt
from llama3_scratch.inference.sample import NonFiniteError
from llama3_scratch.inference.speculate import NO_DRAFTS, NoDrafts
from llama3_scratch.system.memory import available_memory, memory_plan, require_memory


@torch.inference_mode()
def stream(
    request: Request, model: FastForward, cache: Cache, *, drafts: NoDrafts = NO_DRAFTS, chunk: int = CHUNK
) -> Iterator[GeneratedToken]:
    """Yield the next tokens, step by step, until the request's end.

    `cache` may hold the beginning of the prompt already: the loop goes on from there and leaves in it all but the last
    token. What `drafts` draft right needs no pass of its own, and the tokens stay the same. `chunk` tokens of the
    prompt go through the model at once. Raises UsageError for a prompt that is empty or longer than the context, and
    NonFiniteError, which says where it begins, for logits that are no numbers.
    """
    seen = list(request.prompt)
    check_prompt(seen, cache.limit, model.config.vocab_size)
    if cache.length >= len(seen):
        raise UsageError(f"a prompt of {len(seen)} tokens, the cache holds {cache.length} already; it must hold fewer")
    wanted = len(seen) + request.max_tokens
    max_length = wanted if cache.endless else min(wanted, cache.limit)
    _require_memory(cache, model, min(cache.limit, wanted), min(chunk, len(seen)))
    drafted: list[int] = []  # draft tokens that the last pass took in behind the last token
    seconds = 0.0
    logits_TV: Tensor = prefill(model, cache, [seen], chunk)[0]
    try:
        while True:
            right = 0
            for place, logits_V in enumerate(logits_TV):
                try:
                    token = request.sampler(logits_V, seen)
                except NonFiniteError as error:
                    raise _located(error, seen, model, cache) from None
                seen.append(token)
                right += drafted[place : place + 1] == [token]
                ends = "stop" if request.stop(token) else "length" if len(seen) >= max_length else None
                yield GeneratedToken(request, token, logits_V, ends)
                if ends or right <= place:
                    break
            drafts.observe(len(drafted), right, seconds)
            if ends:
                return
            if drafted:
                cache.rewind(len(seen) - 1)
            drafted = drafts.propose(seen, max_length - len(seen) - 1)
            begun = time.perf_counter()
            logits_TV = step(model, cache, [[seen[-1], *drafted]])[0]
            seconds = time.perf_counter() - begun
    finally:  # whoever listens may leave at any token
        if drafted:
            cache.rewind(min(cache.length, len(seen) - 1))


def _located(error: NonFiniteError, tokens: Sequence[int], model: FastForward, cache: Cache) -> NonFiniteError:
    found, again = located(error, tokens, model, cache.forms)
    return found if again else located_in(error, cache) or found


def _require_memory(cache: Cache, model: FastForward, context: int, chunk: int) -> None:
    """Raise ResourceError where what the run will need isn't free."""
    free = available_memory()
    if free is None or model.device.type != "cpu":
        return
    width = model.config.head_dim
    number = sum(vector_bytes(form, width, model.dtype) for form in cache.forms) / (2 * width)
    require_memory(memory_plan(model.config, context=context, cache_bytes=number, chunk=chunk), free + cache.n_bytes)
