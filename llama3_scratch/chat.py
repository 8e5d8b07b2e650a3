"""Talk with an instruct model: a prompt that remembers the conversation."""

from __future__ import annotations

import argparse

from llama3_scratch.inference.choices import CHAT_SAMPLING
from llama3_scratch.system import cli
from llama3_scratch.terminal import flags
from llama3_scratch.terminal.repl import HELP, talk


def make_parser() -> cli.Parser:
    parser = cli.Parser(
        "chat", "Talk with an instruct model.", epilog=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_system_flag(parser)
    parser.add_argument(
        "--no-history",
        action="store_true",
        help="don't keep what is typed on a terminal; else it's in $XDG_STATE_HOME/llama3_scratch/chat_history "
        "(~/.local/state), for the arrow keys of later sessions",
    )
    flags.add_model_flags(parser)
    flags.add_cache_flags(parser)
    flags.add_prompt_cache_flag(parser, "the conversation, as its system message, if it's there, and write what is new")
    flags.add_sliding_flags(
        parser.add_argument_group("a full context", "Without these, the oldest messages are forgotten in it.")
    )
    flags.add_sampling_flags(parser, CHAT_SAMPLING)
    return parser


@cli.verb(make_parser)
def main(options: argparse.Namespace) -> int:
    return talk(
        model=flags.model_choice(options),
        cache=flags.cache_choice(options),
        drafts=flags.draft_choice(options),
        prompt=flags.prompt_choice(options),
        sampling=flags.sampling_choice(options),
        prompt_cache=options.prompt_cache,
        keep_history=not options.no_history,
        report=lambda error: cli.report(error, debug=options.debug, parser=make_parser()),
    )


if __name__ == "__main__":
    raise SystemExit(main())
