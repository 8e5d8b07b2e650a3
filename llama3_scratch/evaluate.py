"""Measure how good a model is: perplexity and bits per byte, multiple choice, and distance from another model."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama3_scratch.errors import Llama3Error, UsageError
from llama3_scratch.inference.choices import ModelChoice
from llama3_scratch.system import cli, stdio
from llama3_scratch.terminal.flags import (
    add_adapter_flag,
    add_device_flags,
    add_quantize_flag,
    add_reading_flags,
    model_choice,
)

if TYPE_CHECKING:
    from llama3_scratch.checkpoint.load import Checkpoint


def make_parser() -> cli.Parser:
    parser = cli.Parser("evaluate", __doc__ or "")
    count, length = cli.number(int, minimum=1), cli.number(int, minimum=2)
    parser.add_argument("model", metavar="MODEL", help="a folder, a .gguf or .bin file, or a downloaded name")
    parser.add_argument("--text", type=Path, metavar="FILE", help="perplexity and bits per byte of a text")
    parser.add_argument("--tokens", type=count, metavar="N", help="of --text, the first N (all)")
    parser.add_argument("--window", type=length, metavar="N", help="tokens read at once (512, or the model's context)")
    parser.add_argument("--stride", type=count, metavar="N", help="tokens between windows (one less than they hold)")
    parser.add_argument(
        "--choices", type=Path, metavar="FILE.jsonl", help='questions: {"query", "choices": […], "gold": index} a line'
    )
    parser.add_argument("--limit", type=count, metavar="N", help="of --choices or --instructions, the first N (all)")
    parser.add_argument("--samples", type=Path, metavar="FILE", help="greedy answers to its lines, side by side")
    parser.add_argument(
        "--instructions", type=Path, metavar="FILE", help="conversations: their last answers and the model's own"
    )
    parser.add_argument("--judge", metavar="URL", help="an OpenAI-compatible endpoint that marks these, 0 to 100")
    parser.add_argument("--judge-model", metavar="NAME", help="the model there (key: OPENAI_API_KEY)")
    parser.add_argument("--max-tokens", type=count, default=60, metavar="N", help="of an answer (%(default)s)")
    parser.add_argument(
        "--against",
        metavar="MODEL",
        help="another model with the same tokens, the reference of --text; MODEL itself where that is quantised or "
        "has an adapter: --quantize and --adapter change MODEL alone",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    group = parser.add_argument_group("the model")
    add_device_flags(group)
    add_quantize_flag(group)
    add_adapter_flag(group, "merged when it's read, or beside weights in integers")
    add_reading_flags(group)
    return parser


@cli.verb(make_parser)
def main(options: argparse.Namespace) -> int:
    files = (options.text, options.choices, options.samples, options.instructions)
    if not any(files):
        raise UsageError("nothing to evaluate on; give --text, --choices, --samples or --instructions")
    if options.against and not (options.text or options.samples or options.instructions):
        raise UsageError("two models are compared on --text, --samples or --instructions; give one")
    if bool(options.judge) != bool(options.judge_model) or (options.judge and options.instructions is None):
        raise UsageError("a judge marks the answers to --instructions; give these, --judge and --judge-model together")
    from llama3_scratch.data.documents import require_text
    from llama3_scratch.evaluation.reference import open_reference
    from llama3_scratch.inference.loading import open_model

    for path in files:
        if path is not None:  # before a large model is read
            require_text(path)
    choice = model_choice(options)
    checkpoint, _ = open_model(choice, as_floats=True)
    reference = open_reference(options.against, checkpoint, choice) if options.against else None
    found, failed = _found(options, choice, checkpoint, reference)
    if options.json:
        stdio.print_json(found, indent=2)
    else:
        from llama3_scratch.evaluation.table import print_table

        print_table(found)
    if failed is not None:
        raise failed
    return 0


def _found(
    options: argparse.Namespace, choice: ModelChoice, checkpoint: Checkpoint, reference: Checkpoint | None
) -> tuple[dict[str, Any], Llama3Error | None]:
    """All that was asked for, and why a judge gave no more marks."""
    from llama3_scratch.evaluation.instructions import on_instructions, on_samples
    from llama3_scratch.evaluation.judge import Judge
    from llama3_scratch.evaluation.multiple_choice import on_choices
    from llama3_scratch.evaluation.perplexity import on_text

    name, failed = choice.name, None
    found: dict[str, Any] = {"model": name}
    if options.text is not None:
        cut = {"tokens": options.tokens, "window": options.window, "stride": options.stride}
        found |= on_text(options.text, checkpoint, reference, reference_name=options.against or "", **cut)
    if options.choices is not None:
        found["choices"] = on_choices(options.choices, checkpoint, limit=options.limit)
    models = {name: checkpoint} | ({options.against: reference} if reference is not None else {})
    if options.samples is not None:
        found |= on_samples(options.samples, models, max_tokens=options.max_tokens)
    if options.instructions is not None:
        judge = Judge(options.judge, options.judge_model, os.environ.get("OPENAI_API_KEY")) if options.judge else None
        how = {"max_tokens": options.max_tokens, "limit": options.limit, "judge": judge}
        found["instructions"], failed = on_instructions(options.instructions, models, **how)
    return found, failed


if __name__ == "__main__":
    raise SystemExit(main())
