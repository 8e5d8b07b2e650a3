"""Answer or complete prompts with a Llama."""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama3_scratch.checkpoint.names import DEFAULT
from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.inference.options import (
    add_cache_options,
    add_model_options,
    add_sampling_options,
    add_sliding_options,
    check_sampling,
    check_sliding,
    make_cache,
    make_drafts,
    make_sampler,
    open_model,
)
from llama3_scratch.system import cli, stdio
from llama3_scratch.system.files import require_utf8_name
from llama3_scratch.system.timings import Timings
from llama3_scratch.terminal.prompts import Prompt, add_prompt_options, encode_prompt, read_prompts, refuse_empty
from llama3_scratch.terminal.word_wrap import WrappedOutput
from llama3_scratch.text.detokenizer import Detokenizer, piece
from llama3_scratch.trace.session import Session, add_trace_options, asks_for_trace, check_number, trace_without_weights

if TYPE_CHECKING:
    import torch

    from llama3_scratch.cache import Cache
    from llama3_scratch.checkpoint.load import Checkpoint
    from llama3_scratch.inference.speculate import NoDrafts
    from llama3_scratch.inference.stream import GeneratedToken
    from llama3_scratch.text.tokenizer import Tokenizer

log = logging.getLogger("llama3_scratch")

AT_ONCE = 16  # prompts, unless --batch says otherwise
_MARKS = {"llama3": "<|start_header_id|>", "chatml": "<|im_start|>"}  # tokens without which there's no such chat


def _parser() -> cli.Parser:
    parser = cli.Parser("generate", "Answer prompts with an instruct model, or complete them with a base model.")
    add_prompt_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object a prompt, on a line of its own")
    parser.add_argument(
        "--logprobs",
        type=cli.number(int, least=0),
        metavar="N",
        help="each token's log-probability and the N likeliest, before sampling",
    )
    add_model_options(parser)
    add_cache_options(parser)
    _add_single_cache_options(parser)
    add_sampling_options(parser, temperature=0.0, top_p=1.0)
    add_trace_options(parser)
    return parser


def _add_single_cache_options(parser: cli.Parser) -> None:
    group = parser.add_argument_group("KV cache of a single prompt")
    group.add_argument(
        "--prompt-cache",
        type=Path,
        metavar="FILE",
        help="begin with what FILE holds of the prompt, if it's there, and write prompt and answer to it at the end; "
        "the answer is the same but for rounding",
    )
    add_sliding_options(group)


def _check_single_cache(options: argparse.Namespace, n_prompts: int, *, traced: bool) -> None:
    check_sliding(options)
    for flag, value in (("--prompt-cache", options.prompt_cache), ("--sliding", options.sliding)):
        if value is not None and n_prompts > 1:
            raise UsageError(f"{flag}: takes one prompt, got {n_prompts}")
    if options.prompt_cache is None:
        return
    if options.sliding:
        raise UsageError("--prompt-cache keeps the beginning of a text, --sliding forgets it; leave one out")
    if traced:
        raise UsageError("--prompt-cache: a trace shows the whole prompt on its way; leave one out")
    require_utf8_name(options.prompt_cache)
    if not options.prompt_cache.parent.is_dir():
        raise FileError(f"{options.prompt_cache}: there is no folder {options.prompt_cache.parent} to write it in")


def _without_weights(options: argparse.Namespace) -> int:
    """Trace shapes alone: of --length tokens, or of a prompt where the model's tokenizer is at hand."""
    from llama3_scratch.checkpoint.description import describe

    found = describe(options.model or DEFAULT)
    if options.length:
        length = options.length
    elif found.tokenizer is not None:
        asked = read_prompts(options)
        lengths = [len(encode_prompt(prompt.asked, found.tokenizer, options)) for prompt in asked]
        length, options.batch = max(lengths), options.batch or len(lengths)
    else:
        raise UsageError(f"--no-weights: {found.source} has no tokenizer at hand; give the --length of the prompt")
    trace_without_weights(options, found.config, length)
    return 0


@cli.verb(_parser)
def main(options: argparse.Namespace) -> int:
    check_sampling(options)
    traced = asks_for_trace(options)
    if options.no_weights:
        return _without_weights(options)
    asked = read_prompts(options)
    if options.speculate and (traced or options.sliding or len(asked) > 1):
        raise UsageError("--speculate goes with one prompt, without --trace and without --sliding")
    if traced:
        check_number(options, len(asked))
    if traced and options.batch:
        raise UsageError("--batch: a trace takes all prompts at once; leave it out")
    _check_single_cache(options, len(asked), traced=traced)
    refuse_empty(asked, options)
    started = time.perf_counter()
    checkpoint, dtype = open_model(options, as_floats=traced)
    timings = Timings(load_s=time.perf_counter() - started)
    from llama3_scratch.stored import form

    tokenizer = checkpoint.require_tokenizer()
    weights = form(checkpoint.params)
    prompts = _encoded(asked, checkpoint, tokenizer, options)
    session = Session(options, checkpoint, dtype, prompts[0], asked[0].text) if traced else None
    code, at_once = 0, len(prompts) if traced else options.batch or AT_ONCE
    for first in range(0, len(prompts), at_once):
        batch = slice(first, first + at_once)
        printer = _Printer(first, len(prompts), options, asked[batch], prompts[batch], weights)
        code = _answer(printer, checkpoint, tokenizer, dtype, options, timings, session)
        if len(prompts) > at_once:
            log.info("%d of %d prompts answered", printer.done, len(prompts))
        if code:
            break
    if session is not None:
        session.finish()
    log.info("%s · %s weights · seed %d", timings, weights, options.seed)
    if session is not None and not code:
        session.compare()
    return code


def _encoded(
    asked: list[Prompt], checkpoint: Checkpoint, tokenizer: Tokenizer, options: argparse.Namespace
) -> list[list[int]]:
    """The tokens of all prompts: what is wrong with the last one is told before the first is answered."""
    if tokenizer.chat_format is None and not (options.raw or options.raw_special):
        frames = [f"--chat-format {name}" for name, mark in _MARKS.items() if mark in tokenizer.special_tokens]
        hint = f"; if it does, take {' or '.join(frames)}" if frames else ""
        log.info("completing text, since nothing says that this model chats%s", hint)
    limit = options.max_seq_len or checkpoint.config.max_seq_len
    prompts = []
    for prompt in asked:
        try:
            ids = encode_prompt(prompt.asked, tokenizer, options)
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
    printer: _Printer,
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    dtype: torch.dtype,
    options: argparse.Namespace,
    total: Timings,
    session: Session | None,
) -> int:
    """Answer the prompts of one batch and print them; 130 where Ctrl-C ended it. `total` grows by what it took."""
    prompts = printer.prompts
    timings = Timings(total.load_s)
    guesses = make_drafts(options, checkpoint, dtype)
    cache = make_cache(options, checkpoint.config, len(prompts))
    if not cache.endless:
        warn_if_clamped(max(map(len, prompts)), checkpoint, options)
    known: list[int] = []
    if options.prompt_cache is not None and options.prompt_cache.exists():
        known = _begin_with(options.prompt_cache, cache, prompts[0], checkpoint, dtype)
    answers = [Detokenizer(tokenizer, tokenizer.stop_tokens, options.stop) for _ in prompts]
    logprobs: list[list[dict[str, Any]]] = [[] for _ in prompts]
    code = 0
    try:
        for step in timed_stream(
            prompts, answers, checkpoint, dtype, options, timings, cache=cache, session=session, guesses=guesses
        ):
            if options.logprobs is not None:
                logprobs[step.row].append(_logprobs(step, options.logprobs, tokenizer))
            if session is None or session.done:
                printer.show(answers, logprobs, timings)
    except KeyboardInterrupt:
        code = 130
    finally:
        if session is not None:
            session.close()
    for answer in answers:
        answer.finish(answer.finish_reason or "interrupted")
    printer.show(answers, logprobs, timings)
    total.add(timings)
    if options.prompt_cache is not None and cache.length:
        _keep(options.prompt_cache, cache, known, prompts[0], answers[0].tokens, checkpoint, dtype)
    return code


def _begin_with(path: Path, cache: Cache, prompt: list[int], checkpoint: Checkpoint, dtype: torch.dtype) -> list[int]:
    """Fill the cache with what the file holds of the prompt; all tokens that it holds."""
    from llama3_scratch.caches import prompt_cache

    known = prompt_cache.load(path, cache, checkpoint.params, checkpoint.config, dtype, origin=checkpoint.origin)
    # The last token is computed anew: its logits are nowhere kept.
    cache.rewind(min(prompt_cache.common_prefix(known, prompt), len(prompt) - 1))
    log.info("%d of %d tokens of the prompt from %s", cache.length, len(prompt), path)
    return known


def _keep(
    path: Path,
    cache: Cache,
    known: list[int],
    prompt: list[int],
    new: list[int],
    checkpoint: Checkpoint,
    dtype: torch.dtype,
) -> None:
    """Write the cache of prompt and new tokens to the file, unless that would lose any of those that it holds."""
    from llama3_scratch.caches import prompt_cache

    seen = [*prompt, *new]
    shared = prompt_cache.common_prefix(known, seen[: cache.length])
    if shared == len(known) < cache.length:
        prompt_cache.save(path, cache, seen, checkpoint.params, checkpoint.config, dtype, origin=checkpoint.origin)
    elif shared < min(len(prompt), cache.length):
        log.warning(
            "%s holds another prompt, like this one for %d of %d tokens, and stays as it is; "
            "give --prompt-cache another file to keep this one too",
            path,
            shared,
            len(prompt),
        )


def warn_if_clamped(prompt_tokens: int, checkpoint: Checkpoint, options: argparse.Namespace) -> None:
    """Say so where the context ends before --max-tokens does."""
    limit = options.max_seq_len or checkpoint.config.max_seq_len
    if prompt_tokens < limit < prompt_tokens + options.max_tokens:
        log.warning("the context of %d tokens leaves room for %d more", limit, limit - prompt_tokens)


def timed_stream(
    prompts: list[list[int]],
    answers: list[Detokenizer],
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    options: argparse.Namespace,
    timings: Timings,
    *,
    cache: Cache,
    session: Session | None = None,
    guesses: NoDrafts | None = None,
) -> Generator[GeneratedToken, None, None]:
    """`stream` by the options: each token goes into its answer, and `timings` grows with it; `session` watches,
    `guesses` are --speculate's."""
    from llama3_scratch.inference.speculate import NO_DRAFTS
    from llama3_scratch.inference.stream import stream
    from llama3_scratch.model import block

    guesses = guesses or NO_DRAFTS
    started = time.perf_counter()
    timings.prompt_tokens = sum(map(len, prompts)) - cache.length
    if session is not None:
        session.start(answers[0])
    before = len(prompts)
    for step in stream(
        prompts,
        checkpoint.params,
        checkpoint.config,
        samplers=[make_sampler(options) for _ in prompts],
        max_tokens=options.max_tokens,
        stop=lambda row, token: answers[row].take(token),
        max_seq_len=options.max_seq_len,
        dtype=dtype,
        cache=cache,
        block=block if session is not None else None,
        guesses=guesses,
    ):
        if session is not None and step.row <= before:  # rows ascend within a pass
            session.passed()
        before = step.row
        if not timings.prefill_s:
            timings.prefill_s = time.perf_counter() - started
        timings.decode_s = time.perf_counter() - started - timings.prefill_s
        timings.decoded_tokens += len(answers[step.row].tokens) > 1
        timings.proposed, timings.accepted = guesses.proposed, guesses.accepted
        if step.finish_reason:
            answers[step.row].finish(step.finish_reason)
        yield step


def _logprobs(step: GeneratedToken, n_top: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """The chosen token and the `n_top` likeliest, with their natural log-probabilities before any filter."""
    logprobs_V = step.logits_V.log_softmax(-1)

    def entry(id: int) -> dict[str, Any]:
        text = piece(id, tokenizer).decode(errors="replace")
        return {"token": id, "text": text, "logprob": round(float(logprobs_V[id]), 6)}

    top = logprobs_V.topk(min(n_top, len(logprobs_V))).indices.tolist()
    return entry(step.token) | {"top": [entry(id) for id in top]}


class _Printer:
    """Prints the answers of a batch in their prompts' order, each as it grows once those before it are done; as JSON,
    each once it is done."""

    def __init__(
        self,
        first: int,
        n_prompts: int,
        options: argparse.Namespace,
        asked: list[Prompt],
        prompts: list[list[int]],
        weights: str,
    ) -> None:
        """`first` is the place of the batch's first prompt among all `n_prompts`; `weights` is their form's name."""
        self.prompts, self._weights = prompts, weights
        self._first, self._several, self._options, self._asked = first, n_prompts > 1, options, asked
        self._row, self._printed = 0, -1  # -1: not even the heading
        self._page = WrappedOutput()

    @property
    def done(self) -> int:
        """How many of all prompts are answered and printed."""
        return self._first + self._row

    def show(self, answers: list[Detokenizer], logprobs: list[list[dict[str, Any]]], timings: Timings) -> None:
        while self._row < len(answers):
            answer = answers[self._row]
            if self._options.json:
                if answer.finish_reason is None:
                    return
                stdio.print_json(self._as_json(answer, logprobs[self._row], timings))
            elif not self._as_text(answer):
                return
            else:
                for token in logprobs[self._row]:
                    top = "  ".join(f"{other['text']!r} {other['logprob']:.3f}" for other in token["top"])
                    log.info("%r %.3f  | %s", token["text"], token["logprob"], top)
            self._row, self._printed, self._page = self._row + 1, -1, WrappedOutput()

    def _as_text(self, answer: Detokenizer) -> bool:
        """Print what is new of the answer; whether it's done."""
        if self._printed < 0:
            if self._several:
                print(f"== {self.done + 1} ==")
            self._printed = 0
        text = answer.text[self._printed :]
        self._printed += len(text)
        self._page.write(text)
        if answer.finish_reason is not None:
            self._page.finish()
        return answer.finish_reason is not None

    def _as_json(self, answer: Detokenizer, logprobs: list[dict[str, Any]], timings: Timings) -> dict[str, Any]:
        return {
            "index": self.done,
            **self._asked[self._row].as_json(),
            "prompt_tokens": self.prompts[self._row],
            "tokens": answer.tokens,
            "text": answer.text,
            "finish_reason": answer.finish_reason,
            "seed": self._options.seed,
            "weights": self._weights,
            **({"logprobs": logprobs} if self._options.logprobs is not None else {}),
            "timings": timings.as_dict(),
        }


if __name__ == "__main__":
    raise SystemExit(main())
