"""Answer prompts in batches, as `generate` does, and print the answers as they come."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama3_scratch.errors import UsageError
from llama3_scratch.inference.choices import (
    BATCH_SIZE,
    CacheChoice,
    DraftChoice,
    ModelChoice,
    PromptChoice,
    SamplingChoice,
)
from llama3_scratch.inference.loading import open_model
from llama3_scratch.inference.prompt_cache_file import PromptCacheFile, check_path
from llama3_scratch.inference.prompt_encoding import encode_prompt
from llama3_scratch.system.timings import Timings
from llama3_scratch.terminal.printer import Printer
from llama3_scratch.terminal.prompts import Prompt, refuse_empty
from llama3_scratch.text.detokenizer import Detokenizer

if TYPE_CHECKING:
    import torch

    from llama3_scratch.checkpoint.load import Checkpoint
    from llama3_scratch.inference.timed import Watch

    MakeWatch = Callable[[Checkpoint, torch.dtype, Sequence[int], str], Watch]

log = logging.getLogger("llama3_scratch")

_MARKS = {"llama3": "<|start_header_id|>", "chatml": "<|im_start|>"}  # tokens without which there's no such chat


@dataclass(frozen=True)
class Answering:
    """How prompts are answered, and what is printed."""

    model: ModelChoice
    cache: CacheChoice
    drafts: DraftChoice
    prompt: PromptChoice
    sampling: SamplingChoice
    batch: int | None = None  # prompts at once; None: BATCH_SIZE
    json: bool = False
    logprobs: int | None = None  # the likeliest tokens to show beside each chosen one; None: show none
    prompt_cache: Path | None = None  # the file of a single prompt's cache

    def check(self, n_prompts: int, *, traced: bool) -> None:
        """Raise UsageError for what doesn't go together, before a model is loaded."""
        if self.drafts.speculate and (traced or self.cache.sliding or n_prompts > 1):
            raise UsageError("`speculate` goes with one prompt, without `trace` and without `sliding`")
        if traced and self.batch:
            raise UsageError("`batch`: a trace takes one prompt after the other; leave it out")
        for setting, value in (("prompt_cache", self.prompt_cache), ("sliding", self.cache.sliding)):
            if value is not None and n_prompts > 1:
                raise UsageError(f"`{setting}`: takes one prompt, got {n_prompts}")
        if self.prompt_cache is None:
            return
        if self.cache.sliding:
            raise UsageError("`prompt_cache` keeps the beginning of a text, `sliding` forgets it; leave one out")
        if traced:
            raise UsageError("`prompt_cache`: a trace shows the whole prompt on its way; leave one out")
        check_path(self.prompt_cache)


def answer_prompts(asked: Sequence[Prompt], how: Answering, *, make_watch: MakeWatch | None = None) -> int:
    """Answer and print them all; the exit code, 130 where Ctrl-C ended it.

    `make_watch` makes who looks at the run of these prompts, which is one batch then, of floats.
    """
    traced = make_watch is not None
    how.check(len(asked), traced=traced)
    refuse_empty(asked, how.model, how.prompt)
    started = time.perf_counter()
    checkpoint, dtype = open_model(how.model, as_floats=traced)
    total = Timings(load_s=time.perf_counter() - started)
    from llama3_scratch.stored import form

    weights, sampling = form(checkpoint.params), how.sampling.seeded()
    prompts = _encoded(asked, checkpoint, how)
    watch = make_watch(checkpoint, dtype, prompts[0], asked[0].text) if make_watch is not None else None
    about = {"seed": sampling.seed, "weights": weights} if how.json else None
    code, at_once = 0, 1 if traced else len(prompts)  # a trace looks at the first prompt, and then at no other
    for first in range(0, len(prompts), at_once):
        batch = slice(first, first + at_once)
        printer = Printer(asked[batch], prompts[batch], first=first, n_prompts=len(prompts), about=about)
        code = _answer(printer, checkpoint, dtype, how, sampling, total, None if first else watch)
        if code:
            break
    if watch is not None:
        watch.finish()
    drawn = f" · seed {sampling.seed}" if sampling.temperature else ""  # the likeliest token needs none
    log.info("%s · %s weights%s", total, weights, drawn)
    if watch is not None and not code:
        watch.compare()
    return code


def _encoded(asked: Sequence[Prompt], checkpoint: Checkpoint, how: Answering) -> list[list[int]]:
    """The tokens of all prompts: what is wrong with the last one is told before the first is answered."""
    from llama3_scratch.inference.factories import context

    tokenizer = checkpoint.require_tokenizer()
    if tokenizer.chat_format is None and not how.prompt.without_chat_format:
        formats = [f"`chat_format={name}`" for name, mark in _MARKS.items() if mark in tokenizer.special_tokens]
        hint = f"; if it does, take {' or '.join(formats)}" if formats else ""
        log.info("completing text, since nothing says that this model chats%s", hint)
    limit = context(how.cache, checkpoint.config)
    prompts = []
    for prompt in asked:
        try:
            ids = encode_prompt(prompt.asked, tokenizer, how.prompt)
        except UsageError as error:
            raise UsageError(f"{prompt.source}: {error}") from error
        if len(ids) >= limit:
            raise UsageError(
                f"{prompt.source}: {len(ids)} tokens, limit {limit - 1}, so that one more fits the context"
            )
        if tokenizer.add_bos and ids[1:2] == [tokenizer.bos_id]:
            log.warning("%s begins with BOS, and another is put before it; leave yours out", prompt.source)
        prompts.append(ids)
    return prompts


def _answer(
    printer: Printer,
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    how: Answering,
    sampling: SamplingChoice,
    total: Timings,
    watch: Watch | None,
) -> int:
    """Answer the prompts of one batch and print them; 130 where Ctrl-C ended it. `total` grows by what it took."""
    from llama3_scratch.inference.factories import make_cache, make_drafts, make_pool
    from llama3_scratch.inference.fast_forward import FastForward
    from llama3_scratch.inference.timed import logprobs, timed_stream, warn_if_clamped

    prompts, tokenizer = list(printer.prompts), checkpoint.require_tokenizer()
    timings = Timings(total.load_s)
    drafts = make_drafts(how.drafts, checkpoint, dtype, reading=how.model)
    cache = make_cache(how.cache, checkpoint.config)  # of one prompt; several are in pages
    lengths = [len(prompt) + sampling.at_most for prompt in prompts]
    model = FastForward(checkpoint.params, checkpoint.config, dtype=dtype)
    rows = min(how.batch or BATCH_SIZE, len(prompts))
    pool = make_pool(how.cache, model, lengths, rows=rows) if len(prompts) > 1 else None
    if not cache.endless:
        warn_if_clamped(max(map(len, prompts)), cache.limit, sampling)
    file = PromptCacheFile(how.prompt_cache, checkpoint, dtype) if how.prompt_cache is not None else None
    if file is not None:
        file.begin(cache, prompts[0])
    answers = [Detokenizer(tokenizer, tokenizer.stop_tokens, sampling.stop) for _ in prompts]
    chosen: list[list[dict[str, Any]]] | None = [[] for _ in prompts] if how.logprobs is not None else None
    code = told = 0
    try:
        steps = timed_stream(
            prompts,
            answers,
            checkpoint,
            dtype,
            sampling,
            timings,
            cache=pool or cache,
            rows=rows,
            drafts=drafts,
            watch=watch,
        )
        for step in steps:
            if chosen is not None:
                chosen[step.row].append(logprobs(step, how.logprobs or 0, tokenizer))
            if watch is None or watch.done:
                printer.show(answers, chosen, timings)
            if len(prompts) > rows and printer.done >= told + rows:
                told = printer.done
                log.info("%d of %d prompts answered", told, len(prompts))
    except KeyboardInterrupt:
        code = 130
        begun = [row for row, answer in enumerate(answers) if answer.tokens]
        answers = answers[: max(begun, default=0) + 1]
    finally:
        if watch is not None:
            watch.close()
    for answer in answers:
        answer.finish(answer.finish_reason or "interrupted")
    printer.show(answers, chosen, timings)
    total.add(timings)
    if file is not None:
        file.keep(cache, [*prompts[0], *answers[0].tokens], wanted=len(prompts[0]))
    return code
