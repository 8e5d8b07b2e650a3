"""The trace's flags, and the choice that they make. A flag's `dest` is the choice's field, as in `terminal.flags`."""

from __future__ import annotations

import argparse
from pathlib import Path

from llama3_scratch.compare.hf_layers import require_transformers
from llama3_scratch.errors import UsageError
from llama3_scratch.system import cli
from llama3_scratch.system.fields import takes, updated
from llama3_scratch.trace.choice import ROUNDING, TraceChoice


def add_trace_flags(parser: cli.Parser) -> None:
    """All of a TraceChoice, and --no-weights with its --length."""
    group = parser.add_argument_group("trace: every tensor of the model as its own lines of code make it")
    group.add_argument("--trace", action="store_true", help="print every step: layer 0 in full, a line for each other")
    group.add_argument("--trace-layers", type=_whole_numbers, metavar="N,…", help="the layers to print in full")
    group.add_argument("--trace-steps", type=_names, metavar="NAME,…", help="the tensors to print, as q_BTHK")
    group.add_argument(
        "--trace-tokens",
        type=cli.within(takes(TraceChoice, "trace_tokens")),
        default=TraceChoice.trace_tokens,
        metavar="N",
        help="trace the passes that make the first N tokens (%(default)s: the prompt's)",
    )
    group.add_argument("--trace-values", action="store_true", help="print the tensors' values too")
    group.add_argument(
        "--trace-cost",
        action="store_true",
        help="print what each step, function and layer took, beside this machine's limits",
    )
    group.add_argument(
        "--trace-out",
        type=Path,
        metavar="FILE",
        help="write the steps to FILE.jsonl, their tensors to FILE.safetensors, or a page for the browser to FILE.html "
        "(the prompt's pass, and with --trace-tokens the later ones to choose from; of a long prompt its first tokens "
        "and its last)",
    )
    group.add_argument(
        "--trace-compare",
        metavar="WITH",
        help="this run beside another, step by step, and where they part: hf (transformers), full (one pass without a "
        f"cache), {', '.join(ROUNDING)}, another model's PATH|NAME, or what --trace-out wrote to FILE.safetensors",
    )
    group.add_argument(
        "--trace-tolerance",
        type=cli.within(takes(TraceChoice, "trace_tolerance")),
        metavar="X",
        help="with --trace-compare: the mean |difference| in standard deviations that still counts as rounding ("
        + ", ".join(f"{value:g} in {dtype}" for dtype, value in ROUNDING.items())
        + "; of two dtypes, the coarser one's)",
    )
    group.add_argument("--lens", action="store_true", help="the likeliest tokens after each layer, at every position")
    group.add_argument("--attention", type=_pair, metavar="LAYER,HEAD", help="a head's scores and weights")
    group.add_argument(
        "--heads",
        action="store_true",
        help="of each layer the heads that look most at the first token, at itself and at the one before",
    )
    group.add_argument(
        "--rope-pair",
        type=cli.within(takes(TraceChoice, "rope_pair")),
        metavar="J",
        help="a pair's turn at each position",
    )

    group.add_argument(
        "--no-weights", action="store_true", help="shapes and costs alone, of any official size or described model"
    )
    group.add_argument("--length", type=cli.number(int, minimum=1), metavar="N", help="tokens, with --no-weights")


def trace_choice(options: argparse.Namespace) -> TraceChoice:
    """What the flags ask for. Raises UsageError for flags that don't go together, FileError for a file that couldn't
    be written, before anything is computed."""
    from llama3_scratch.trace.files import require_writable

    choice = updated(TraceChoice(), vars(options))
    if choice.prints and options.json and choice.trace_out is None:
        raise UsageError("--trace prints for people and --json for machines; with --json take --trace-out FILE.jsonl")
    if choice.views and options.json:
        raise UsageError("--lens, --attention, --heads and --rope-pair print for people; leave --json out")
    if not options.no_weights and options.length:
        raise UsageError("--length goes with --no-weights")
    if options.length and _any_prompt(options):
        raise UsageError("--length stands in the place of a prompt; give one of the two")
    if options.no_weights:
        _check_no_weights(choice, options)
    if choice.trace_compare:
        if options.json or options.no_weights:
            raise UsageError("--trace-compare prints numbers for people; leave --json and --no-weights out")
        if choice.trace_compare == "hf":
            require_transformers("--trace-compare hf")
    if choice.trace_out is not None:
        require_writable(choice.trace_out)
        if options.no_weights and not choice.writes(".jsonl"):
            raise UsageError(
                f"--trace-out {choice.trace_out}: it holds values, which --no-weights has none of; "
                "take --trace-out FILE.jsonl"
            )
    return choice


def _check_no_weights(choice: TraceChoice, options: argparse.Namespace) -> None:
    if choice.views or choice.trace_values or options.json or choice.trace_tokens != 1:
        raise UsageError(
            "--no-weights has shapes and costs only: no values, no views, no further tokens, no JSON object"
        )
    if options.rope_scale_factor is not None:
        raise UsageError("--rope-scale-factor changes numbers, --no-weights has only shapes; leave one of them out")
    idle = {
        "--logprobs": options.logprobs is not None,
        "--device": options.device != "cpu",
        "--adapter": options.adapters,
        "--speculate": options.speculate,
        "--prompt-cache": options.prompt_cache,
        "--sliding": options.sliding,
    }
    if flag := next((flag for flag, given in idle.items() if given), None):
        raise UsageError(f"{flag} is for a model that runs, --no-weights runs none; leave one of them out")


def _any_prompt(options: argparse.Namespace) -> bool:
    given = (options.prompt, options.prompt_file, options.prompts_file)
    return bool(options.prompts) or any(one is not None for one in given)


def _whole_numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = (-1,)
    if min(numbers) < 0:
        raise argparse.ArgumentTypeError(f"expected whole numbers with commas between them, got {text!r}")
    return numbers


def _pair(text: str) -> tuple[int, int]:
    numbers = _whole_numbers(text)
    if len(numbers) != 2:
        raise argparse.ArgumentTypeError(f"expected LAYER,HEAD, got {text!r}")
    return numbers[0], numbers[1]


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name for name in text.split(",") if name)
    if not names:
        raise argparse.ArgumentTypeError(f"expected names of tensors with commas between them, got {text!r}")
    return names
