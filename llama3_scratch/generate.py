"""Answer or complete prompts with a Llama."""

from __future__ import annotations

import argparse

from llama3_scratch.errors import UsageError
from llama3_scratch.inference.loading import describe_model
from llama3_scratch.inference.prompt_encoding import encode_prompt
from llama3_scratch.system import cli
from llama3_scratch.terminal import flags
from llama3_scratch.terminal.batches import Answering, answer_prompts
from llama3_scratch.terminal.prompts import Prompt, read_prompts
from llama3_scratch.trace.choice import TraceChoice
from llama3_scratch.trace.flags import add_trace_flags, trace_choice
from llama3_scratch.trace.session import TraceSession


def make_parser() -> cli.Parser:
    parser = cli.Parser("generate", "Answer prompts with an instruct model, or complete them with a base model.")
    flags.add_prompt_flags(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object a prompt, on a line of its own")
    parser.add_argument(
        "--logprobs",
        type=cli.number(int, minimum=0),
        metavar="N",
        help="each token's log-probability and the N likeliest, before sampling",
    )
    flags.add_model_flags(parser)
    flags.add_cache_flags(parser)
    single = parser.add_argument_group("KV cache of a single prompt")
    flags.add_prompt_cache_flag(single, "the prompt, if it's there, and write prompt and answer")
    flags.add_sliding_flags(single)
    flags.add_sampling_flags(parser)
    add_trace_flags(parser)
    return parser


@cli.verb(make_parser)
def main(options: argparse.Namespace) -> int:
    how = _answering(options)
    trace = trace_choice(options)
    if options.no_weights:
        return _without_weights(options, how, trace)
    asked = _asked(options)
    if not trace.watches:
        return answer_prompts(asked, how)
    trace.check_prompts(len(asked))
    from_flags = {"allow_extra": options.allow_extra, "json": options.json}
    return answer_prompts(asked, how, make_watch=lambda *run: TraceSession(trace, *run, **from_flags))


def _answering(options: argparse.Namespace) -> Answering:
    return Answering(
        model=flags.model_choice(options),
        cache=flags.cache_choice(options),
        drafts=flags.draft_choice(options),
        prompt=flags.prompt_choice(options),
        sampling=flags.sampling_choice(options),
        batch=options.batch,
        json=options.json,
        logprobs=options.logprobs,
        prompt_cache=options.prompt_cache,
    )


def _asked(options: argparse.Namespace) -> list[Prompt]:
    given = [*([options.prompt] if options.prompt is not None else []), *options.prompts]
    return read_prompts(given, file=options.prompt_file, lines=options.prompts_file, errors=options.errors)


def _without_weights(options: argparse.Namespace, how: Answering, trace: TraceChoice) -> int:
    """Trace shapes alone: of --length tokens, or of a prompt where the model's tokenizer is at hand."""
    from llama3_scratch.trace.shapes import show_shapes

    found = describe_model(how.model)
    batch = options.batch or 1
    if options.length:
        length = options.length
    elif found.tokenizer is not None:
        lengths = [len(encode_prompt(prompt.asked, found.tokenizer, how.prompt)) for prompt in _asked(options)]
        length, batch = max(lengths), options.batch or len(lengths)
    else:
        raise UsageError(f"--no-weights: {found.source} has no tokenizer at hand; give the --length of the prompt")
    context = how.cache.max_seq_len or found.config.max_seq_len
    show_shapes(trace, found.config, length=length, batch=batch, context=context, dtype=how.model.dtype)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
