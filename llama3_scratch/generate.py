"""Answer or complete prompts with a Llama."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama3_scratch import cli
from llama3_scratch.checkpoint.names import DEFAULT
from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.options import (
    add_cache_options,
    add_model_options,
    add_sampling_options,
    add_sliding_options,
    check_sampling,
    check_sliding,
    make_cache,
    make_guesses,
    make_sampler,
    open_model,
)
from llama3_scratch.text import Answer, piece, visible
from llama3_scratch.timings import Timings
from llama3_scratch.trace.session import Session, add_trace_options, asks_for_trace, trace_without_weights

if TYPE_CHECKING:
    import torch

    from llama3_scratch.cache import Cache
    from llama3_scratch.checkpoint.load import Checkpoint
    from llama3_scratch.speculate import NoGuesses
    from llama3_scratch.stream import Step
    from llama3_scratch.tokenizer import Tokenizer

log = logging.getLogger("llama3_scratch")


def _parser() -> cli.Parser:
    parser = cli.Parser("generate", "Answer prompts with an instruct model, or complete them with a base model.")
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="the prompt; - reads it from stdin")
    parser.add_argument(
        "--prompt",
        dest="prompts",
        action="append",
        default=[],
        metavar="PROMPT",
        help="one more prompt; several run as one batch",
    )
    parser.add_argument("--prompt-file", type=Path, metavar="FILE", help="one more prompt: all of FILE")
    parser.add_argument(
        "--errors", choices=("strict", "replace"), default="strict", help="what to do with bytes that aren't UTF-8"
    )
    parser.add_argument("--system", metavar="TEXT", help="the system message of a chat")
    parser.add_argument("--raw", action="store_true", help="complete the prompt as it stands, whatever the model")
    parser.add_argument(
        "--raw-special", action="store_true", help="like --raw, and names of special tokens are those tokens"
    )
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
    if not options.prompt_cache.parent.is_dir():
        raise FileError(f"{options.prompt_cache}: there is no folder {options.prompt_cache.parent} to write it in")


def _without_weights(options: argparse.Namespace) -> int:
    """Trace shapes alone: of --length tokens, or of a prompt where the model's tokenizer is at hand."""
    from llama3_scratch.describe import describe

    found = describe(options.model or DEFAULT)
    if options.length:
        length = options.length
    elif found.tokenizer is not None:
        lengths = [len(encode_prompt(text, found.tokenizer, options)) for text in _prompts(options)]
        length, options.batch = max(lengths), options.batch or len(lengths)
    else:
        raise UsageError(f"--no-weights: {found.source} has no tokenizer at hand; give the --length of the prompt")
    trace_without_weights(options, found.config, length)
    return 0


def _prompts(options: argparse.Namespace) -> Iterator[str]:
    """Every prompt that was given, as Unicode."""
    given = [*([options.prompt] if options.prompt is not None else []), *options.prompts]
    if not given and options.prompt_file is None:
        raise UsageError("no prompt; give one, or - to read it from stdin, or --prompt-file FILE (see --help)")
    for text in given:
        if text == "-":
            yield _decoded(sys.stdin.buffer.read(), "stdin", options.errors)
        else:
            yield _decoded(text.encode("utf-8", "surrogateescape"), "the prompt", options.errors)
    if options.prompt_file is not None:
        try:
            data = options.prompt_file.read_bytes()
        except OSError as error:
            raise UsageError(f"--prompt-file {options.prompt_file}: {error.strerror}") from error
        yield _decoded(data, f"--prompt-file {options.prompt_file}", options.errors)


def _decoded(data: bytes, source: str, errors: str) -> str:
    try:
        return data.decode("utf-8", errors)
    except UnicodeDecodeError as error:
        raise UsageError(f"{source}: byte {error.start} isn't UTF-8; --errors replace puts � in its place") from error


def encode_prompt(text: str, tokenizer: Tokenizer, options: argparse.Namespace) -> list[int]:
    """The prompt's tokens: a user's message where the model chats, else the text itself."""
    from llama3_scratch.dialog import encode_dialog

    if options.raw or options.raw_special or tokenizer.chat_format is None:
        if options.system is not None:
            raise UsageError("--system goes with a chat, not with a base model or --raw")
        if not (options.raw or options.raw_special):
            log.info("completing text, since nothing says that this model chats; if it does, take --chat-format llama3")
        special = set(tokenizer.special_tokens) if options.raw_special else set()
        ids = tokenizer.encode(text, bos=tokenizer.add_bos, eos=False, allowed_special=special)
        if tokenizer.add_bos and ids[1:2] == [tokenizer.bos_id]:
            log.warning("the prompt begins with BOS, and another is put before it; leave yours out")
        if not ids and tokenizer.bos_id is not None:
            ids = [tokenizer.bos_id]
        return ids
    if not text:
        raise UsageError("the prompt is empty; say something, or take --raw to let the model begin by itself")
    system = [] if options.system is None else [{"role": "system", "content": options.system}]
    return encode_dialog([*system, {"role": "user", "content": text}], tokenizer, date=options.date)


def require_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    if checkpoint.tokenizer is None:
        raise FileError(f"{checkpoint.path}: has no tokenizer, so it can't take text; use it from Python, with tokens")
    return checkpoint.tokenizer


@cli.verb(_parser)
def main(options: argparse.Namespace) -> int:
    check_sampling(options)
    traced = asks_for_trace(options)
    if options.no_weights:
        return _without_weights(options)
    texts = list(_prompts(options))
    if options.speculate and (traced or options.sliding or len(texts) > 1):
        raise UsageError("--speculate goes with one prompt, without --trace and without --sliding")
    _check_single_cache(options, len(texts), traced=traced)
    started = time.perf_counter()
    checkpoint, dtype = open_model(options, traced=traced)
    timings = Timings(load_s=time.perf_counter() - started)
    tokenizer = require_tokenizer(checkpoint)
    prompts = [encode_prompt(text, tokenizer, options) for text in texts]
    guesses = make_guesses(options, checkpoint, dtype)
    cache = make_cache(options, checkpoint.config, len(prompts))
    if not cache.endless:
        warn_if_clamped(max(map(len, prompts)), checkpoint, options)
    if options.prompt_cache is not None and options.prompt_cache.exists():
        _begin_with(options.prompt_cache, cache, prompts[0], checkpoint, dtype)
    answers = [Answer(tokenizer, tokenizer.stop_tokens, options.stop) for _ in prompts]
    logprobs: list[list[dict[str, Any]]] = [[] for _ in prompts]
    printer = _Printer(answers, enabled=not options.json)
    session = Session(options, checkpoint, dtype, prompts[0], texts[0]) if traced else None
    code = 0
    try:
        for step in timed_stream(
            prompts, answers, checkpoint, dtype, options, timings, cache=cache, session=session, guesses=guesses
        ):
            if options.logprobs is not None:
                logprobs[step.row].append(_logprobs(step, options.logprobs, tokenizer))
            if session is None or session.done:
                printer.show()
    except KeyboardInterrupt:
        code = 130
    finally:
        if session is not None:
            session.close()
    for answer in answers:
        answer.finish(answer.finish_reason or "interrupted")
    printer.show()
    if options.prompt_cache is not None and cache.length:
        from llama3_scratch import prompt_cache

        seen = [*prompts[0], *answers[0].tokens]
        prompt_cache.save(
            options.prompt_cache, cache, seen, checkpoint.params, checkpoint.config, dtype, origin=checkpoint.origin
        )
    if session is not None:
        session.finish()
    for prompt, answer, chosen in zip(prompts, answers, logprobs, strict=True):
        if options.json:
            result = {
                "prompt_tokens": prompt,
                "tokens": answer.tokens,
                "text": answer.text,
                "finish_reason": answer.finish_reason,
                "seed": options.seed,
                **({"logprobs": chosen} if options.logprobs is not None else {}),
                "timings": timings.as_dict(),
            }
            print(json.dumps(result, ensure_ascii=False))
        else:
            for token in chosen:
                top = "  ".join(f"{other['text']!r} {other['logprob']:.3f}" for other in token["top"])
                log.info("%r %.3f  | %s", token["text"], token["logprob"], top)
    log.info("%s · seed %d", timings, options.seed)
    if session is not None and not code:
        session.compare()
    return code


def _begin_with(path: Path, cache: Cache, prompt: list[int], checkpoint: Checkpoint, dtype: torch.dtype) -> None:
    """Fill the cache with what the file holds of the prompt."""
    from llama3_scratch import prompt_cache

    known = prompt_cache.load(path, cache, checkpoint.params, checkpoint.config, dtype, origin=checkpoint.origin)
    # The last token is computed anew: its logits are nowhere kept.
    cache.rewind(min(prompt_cache.common_prefix(known, prompt), len(prompt) - 1))
    log.info("%d of %d tokens of the prompt from %s", cache.length, len(prompt), path)


def warn_if_clamped(prompt_tokens: int, checkpoint: Checkpoint, options: argparse.Namespace) -> None:
    """Say so where the context ends before --max-tokens does."""
    limit = options.max_seq_len or checkpoint.config.max_seq_len
    if prompt_tokens < limit < prompt_tokens + options.max_tokens:
        log.warning("the context of %d tokens leaves room for %d more", limit, limit - prompt_tokens)


def timed_stream(
    prompts: list[list[int]],
    answers: list[Answer],
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    options: argparse.Namespace,
    timings: Timings,
    *,
    cache: Cache,
    session: Session | None = None,
    guesses: NoGuesses | None = None,
) -> Iterator[Step]:
    """`stream` by the options: each token goes into its answer, and `timings` grows with it; `session` watches,
    `guesses` are --speculate's."""
    from llama3_scratch.model import block
    from llama3_scratch.speculate import NO_GUESSES
    from llama3_scratch.stream import stream

    guesses = guesses or NO_GUESSES
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


def _logprobs(step: Step, n_top: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """The chosen token and the `n_top` likeliest, with their natural log-probabilities before any filter."""
    logprobs_V = step.logits_V.log_softmax(-1)

    def entry(id: int) -> dict[str, Any]:
        text = piece(id, tokenizer).decode(errors="replace")
        return {"token": id, "text": text, "logprob": round(float(logprobs_V[id]), 6)}

    top = logprobs_V.topk(min(n_top, len(logprobs_V))).indices.tolist()
    return entry(step.token) | {"top": [entry(id) for id in top]}


class _Printer:
    """Prints answers in their prompts' order, each as it grows once those before it are done."""

    def __init__(self, answers: list[Answer], *, enabled: bool) -> None:
        self._answers, self._enabled = answers, enabled
        self._row, self._printed = 0, -1  # -1: not even the heading
        self._terminal = sys.stdout.isatty()

    def show(self) -> None:
        while self._enabled and self._row < len(self._answers):
            answer = self._answers[self._row]
            if self._printed < 0:
                if len(self._answers) > 1:
                    print(f"== {self._row + 1} ==")
                self._printed = 0
            text = answer.text[self._printed :]
            self._printed += len(text)
            print(visible(text) if self._terminal else text, end="", flush=True)
            if answer.finish_reason is None:
                return
            print(flush=True)
            self._row, self._printed = self._row + 1, -1


if __name__ == "__main__":
    raise SystemExit(main())
