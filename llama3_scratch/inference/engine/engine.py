"""The engine: requests join and leave at any step, each step is one pass of the model over a batch of their tokens.

There is no prefill mode (vLLM's one rule, after nano-vllm): a sequence has tokens, of which some are computed, and a
step computes more of them. Whoever lacks only the last one gets the next token drawn.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llama3_scratch.caches.paged import PAGE_SLOTS, PagedCache, pages_for
from llama3_scratch.caches.prompt_cache import common_prefix
from llama3_scratch.errors import UsageError
from llama3_scratch.inference.engine.pages import PagePool, Parent
from llama3_scratch.inference.fast_forward import FastForward
from llama3_scratch.inference.non_finite import located
from llama3_scratch.inference.requests import Failure, GeneratedToken, Request, Stats, check_prompt
from llama3_scratch.inference.sample import NonFiniteError
from llama3_scratch.native.decode import Chunk

MAX_ROWS = 16  # sequences that run at once, unless told otherwise
PREFILL_TOKENS = 512  # prompt tokens of a step, unless told otherwise
# Where answers are under way a step has fewer of them, that none of the answers halts for longer than this: as many as
# the model has been seen to take in that time, and these at least.
STEP_SECONDS, MIN_PREFILL_TOKENS = 0.09, 16


@dataclass(eq=False)
class _Sequence:
    """A request on its way."""

    request: Request
    order: int  # of arrival
    tokens: list[int]
    max_length: int  # tokens that there may be in all, the prompt included
    computed: int = 0  # tokens whose keys and values are in the pages
    pages: list[int] = field(default_factory=list)
    full: int = 0  # pages whose content is known to the pool
    parent: Parent = None  # of the next one
    let_in: bool = False  # once, and counted
    ahead: _Sequence | None = None  # who computes pages that this one waits for, and until which token
    ahead_tokens: int = 0

    @property
    def missing(self) -> int:
        return len(self.tokens) - self.computed


class Engine:
    """Requests in, tokens out, over one model and one pool of pages, which is all the memory that sequences get.

    `adapters` are models of the same sizes by name: the params of `model` with a LoRA adapter beside them, in a
    FastForward of their own. Not for several threads at once (`EngineThread`).
    """

    def __init__(
        self,
        model: FastForward,
        cache: PagedCache,
        *,
        adapters: Mapping[str, FastForward] | None = None,
        max_rows: int = MAX_ROWS,
        prefill_tokens: int = PREFILL_TOKENS,
        prefill_tokens_beside: int | None = None,
    ) -> None:
        """A step computes `prefill_tokens` of prompts, or `prefill_tokens_beside` where answers are under way; None: as
        many as take STEP_SECONDS."""
        for name, value in (("max_rows", max_rows), ("prefill_tokens", prefill_tokens)):
            if value < 1:
                raise UsageError(f"`{name}`: expected 1 or more, got {value}")
        self.cache, self.pool = cache, PagePool(cache.pages)
        self._models: dict[str | None, FastForward] = {None: model}
        self._models.update(adapters or {})
        self._max_rows = max_rows
        self._prefill_tokens, self._prefill_tokens_beside = prefill_tokens, prefill_tokens_beside
        self._tokens_per_second = 0.0  # of prompts, as seen lately
        self._waiting: list[_Sequence] = []  # in order of arrival
        self._running: list[_Sequence] = []  # likewise
        self._arrived = 0
        self._prompt_tokens = self._cached_tokens = self._generated = self._preemptions = 0

    @property
    def unfinished(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._waiting or self._running)

    @property
    def limit(self) -> int:
        """Tokens that a sequence may have: those of the context that the pool has room for."""
        return min(self.cache.limit, self.pool.pages * PAGE_SLOTS)

    @property
    def stats(self) -> Stats:
        return Stats(
            len(self._running),
            len(self._waiting),
            self.pool.pages,
            self.pool.free,
            self.pool.cached,
            self._prompt_tokens,
            self._cached_tokens,
            self._generated,
            self._preemptions,
        )

    def holders(self) -> list[list[Request] | None]:
        """Of every page the requests that hold it, the oldest first; none where it's cached, None where it's free."""
        found: list[list[Request] | None] = [
            [] if self.pool.is_cached(page) else None for page in range(self.pool.pages)
        ]
        for sequence in self._running:
            for page in sequence.pages:
                found[page] = [*(found[page] or []), sequence.request]
        return found

    def check(self, request: Request) -> None:
        """Raise UsageError for a request that could never be answered; nothing of the engine's state is touched."""
        check_prompt(request.prompt, self.limit, self._models[None].config.vocab_size)
        if request.max_tokens < 1:
            raise UsageError(f"`max_tokens`: expected 1 or more, got {request.max_tokens}")
        if request.adapter not in self._models:
            known = ", ".join(str(name) for name in self._models if name is not None) or "none"
            raise UsageError(f"no adapter {request.adapter!r:.99} here, there are: {known}")

    def add(self, request: Request) -> None:
        """Queue a request. Raises what `check` raises."""
        self.check(request)
        max_length = min(len(request.prompt) + request.max_tokens, self.limit)
        self._waiting.append(_Sequence(request, self._arrived, list(request.prompt), max_length))
        self._arrived += 1

    def cancel(self, request: Request) -> None:
        """Forget a request, wherever it is; its pages are free at once. One that has ended already is no error."""
        for sequences in (self._waiting, self._running):
            for sequence in sequences:
                if sequence.request is request:
                    sequences.remove(sequence)
                    self._release(sequence)
                    return

    def run(self, requests: Sequence[Request]) -> Iterator[GeneratedToken]:
        """Answer them all, and yield the tokens as they come. Raises what one of them fails with; whoever stops
        listening cancels the rest."""
        for request in requests:
            self.check(request)
        for request in requests:
            self.add(request)
        try:
            while self.unfinished:
                for event in self.step():
                    if isinstance(event, Failure):
                        raise event.error
                    yield event
        finally:
            for request in requests:
                self.cancel(request)

    @torch.inference_mode()
    def step(self) -> list[GeneratedToken | Failure]:
        """One pass: the next token of every sequence that lacks only its last one, and as much of the prompts as the
        step has room for. What has come of it, in order of arrival."""
        self._admit()
        scheduled = self._schedule()
        events: list[tuple[int, GeneratedToken | Failure]] = []
        prompt_tokens, begun = sum(n for n in scheduled.values() if n > 1), time.perf_counter()
        for adapter, model in self._models.items():
            ours = [sequence for sequence in scheduled if sequence.request.adapter == adapter]
            if not ours:
                continue
            logits_NV = iter(model.chunks([_chunk(sequence, scheduled[sequence]) for sequence in ours], self.cache))
            for sequence in ours:
                sequence.computed += scheduled[sequence]
                self._fill(sequence)
                if not sequence.missing:
                    events.append((sequence.order, self._draw(sequence, next(logits_NV), model)))
        self._observe(prompt_tokens, time.perf_counter() - begun)
        return [event for _, event in sorted(events, key=lambda event: event[0])]

    def _admit(self) -> None:
        """Let in, in order of arrival, who fits; whoever doesn't isn't overtaken by a smaller one."""
        for sequence in list(self._waiting):
            if len(self._running) >= self._max_rows:
                return
            if self._is_computed_now(sequence):
                continue
            # The last token is always computed, since its logits are wanted.
            pages, parent = self.pool.find(sequence.tokens[:-1], _salt(sequence.request))
            self.pool.share(pages)
            if self.pool.available < pages_for(len(sequence.tokens)) - len(pages) + len(self._running):
                self.pool.release(pages)
                return
            sequence.pages, sequence.full, sequence.parent = pages, len(pages), parent
            sequence.computed = len(pages) * PAGE_SLOTS
            if not sequence.let_in:
                sequence.let_in = True
                sequence.request.let_in_at = time.perf_counter()
                sequence.request.cached_tokens = sequence.computed
                self._prompt_tokens += len(sequence.tokens)
                self._cached_tokens += sequence.computed
            self._waiting.remove(sequence)
            bisect.insort(self._running, sequence, key=_order)

    def _is_computed_now(self, sequence: _Sequence) -> bool:
        """Whether one that runs is computing pages that this one could have: then it waits for them."""
        if sequence.ahead in self._running and sequence.ahead.computed < sequence.ahead_tokens:
            return True
        for other in self._running:
            if other.missing > 1 and _salt(other.request) == _salt(sequence.request):
                same = min(common_prefix(other.tokens, sequence.tokens), len(sequence.tokens) - 1)
                whole = same - same % PAGE_SLOTS
                if whole > other.computed:
                    sequence.ahead, sequence.ahead_tokens = other, whole
                    return True
        return False

    def _schedule(self) -> dict[_Sequence, int]:
        """How many tokens of whom this step computes; each has its pages."""
        scheduled: dict[_Sequence, int] = {}
        for sequence in [sequence for sequence in self._running if sequence.missing == 1]:
            if sequence in self._running and self._make_room(sequence, 1, scheduled):
                scheduled[sequence] = 1
        left = self._tokens_beside() if scheduled else self._prefill_tokens
        for sequence in [sequence for sequence in self._running if sequence.missing > 1]:
            n = min(sequence.missing, left)
            if n and sequence in self._running and self._make_room(sequence, n, scheduled):
                scheduled[sequence] = n
                left -= n
        return scheduled

    def _tokens_beside(self) -> int:
        """Prompt tokens of a step in which answers go on."""
        if self._prefill_tokens_beside is not None:
            return self._prefill_tokens_beside
        in_time = int(self._tokens_per_second * STEP_SECONDS)
        return min(max(in_time, MIN_PREFILL_TOKENS), self._prefill_tokens)

    def _observe(self, tokens: int, seconds: float) -> None:
        """Hear of a step with so many prompt tokens. Few tell little of the rate: the weights are read for them too."""
        if tokens >= MIN_PREFILL_TOKENS and seconds > 0:
            rate = tokens / seconds
            self._tokens_per_second = 0.7 * self._tokens_per_second + 0.3 * rate if self._tokens_per_second else rate

    def _make_room(self, sequence: _Sequence, n: int, scheduled: dict[_Sequence, int]) -> bool:
        """Give it the pages for n more tokens, if need be those of the youngest; False where that is itself."""
        needed = pages_for(sequence.computed + n) - len(sequence.pages)
        while self.pool.available < needed:
            youngest = self._running.pop()
            scheduled.pop(youngest, None)
            self._release(youngest)  # it is computed again later, but for what is still cached then
            bisect.insort(self._waiting, youngest, key=_order)
            self._preemptions += 1
            if youngest is sequence:
                return False
        sequence.pages += [self.pool.take() for _ in range(needed)]
        return True

    def _fill(self, sequence: _Sequence) -> None:
        """Tell the pool of the pages that have become full."""
        while (end := (sequence.full + 1) * PAGE_SLOTS) <= sequence.computed:
            tokens = sequence.tokens[end - PAGE_SLOTS : end]
            sequence.parent = self.pool.fill(sequence.pages[sequence.full], sequence.parent, tokens)
            sequence.full += 1

    def _draw(self, sequence: _Sequence, logits_V: Tensor, model: FastForward) -> GeneratedToken | Failure:
        request = sequence.request
        try:
            token = request.sampler(logits_V, sequence.tokens)
            sequence.tokens.append(token)
            stopped = request.stop(token)
        except Exception as error:  # whatever a request's own parts raise is no other's failure
            self._end(sequence)
            if isinstance(error, NonFiniteError):
                error, _ = located(error, sequence.tokens, model, self.cache.forms)
            return Failure(request, error)
        self._generated += 1
        ends = "stop" if stopped else "length" if len(sequence.tokens) >= sequence.max_length else None
        if ends:
            self._end(sequence)
        return GeneratedToken(request, token, logits_V, ends)

    def _end(self, sequence: _Sequence) -> None:
        self._running.remove(sequence)
        self._release(sequence)

    def _release(self, sequence: _Sequence) -> None:
        self.pool.release(sequence.pages)
        sequence.pages, sequence.computed, sequence.full = [], 0, 0


def _order(sequence: _Sequence) -> int:
    return sequence.order


def _salt(request: Request) -> Parent:
    return request.salt, request.adapter


def _chunk(sequence: _Sequence, n: int) -> Chunk:
    begin, end = sequence.computed, sequence.computed + n
    return Chunk(sequence.tokens[begin:end], begin, sequence.pages, end == len(sequence.tokens))
