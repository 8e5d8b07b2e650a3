"""Talk with an instruct model: a prompt that remembers the conversation."""

from __future__ import annotations

import argparse
import logging
import time

from llama3_scratch.errors import UsageError
from llama3_scratch.inference.conversation import Conversation
from llama3_scratch.inference.options import (
    add_cache_options,
    add_model_options,
    add_sampling_options,
    add_sliding_options,
    check_sampling,
    check_sliding,
    open_model,
)
from llama3_scratch.system import cli
from llama3_scratch.terminal.line_editor import line_editor
from llama3_scratch.terminal.repl import HELP, Repl

log = logging.getLogger("llama3_scratch")


def _parser() -> cli.Parser:
    parser = cli.Parser(
        "chat", "Talk with an instruct model.", epilog=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--system", type=cli.text, metavar="TEXT", help="the system message")
    parser.add_argument(
        "--no-history",
        action="store_true",
        help="don't keep what is typed on a terminal; else it's in $XDG_STATE_HOME/llama3_scratch/chat_history "
        "(~/.local/state), for the arrow keys of later sessions",
    )
    add_model_options(parser)
    add_cache_options(parser)
    add_sliding_options(
        parser.add_argument_group("a full context", "Without these, the oldest messages are forgotten in it.")
    )
    add_sampling_options(parser, temperature=0.6, top_p=0.9)
    return parser


@cli.verb(_parser)
def main(options: argparse.Namespace) -> int:
    seeded = options.seed != -1
    check_sampling(options)
    check_sliding(options)
    if options.speculate and options.sliding:
        raise UsageError("--speculate goes without --sliding")
    typed = line_editor(keep_history=not options.no_history)
    with typed.unseen():
        started = time.perf_counter()
        checkpoint, dtype = open_model(options, chats=True)
        conversation = Conversation(checkpoint, dtype, options, load_s=time.perf_counter() - started)
        log.info("%s, loaded in %.1f s. /help lists the commands.", checkpoint.path.name, conversation.timings.load_s)
        return Repl(conversation, typed, seeded=seeded, debug=options.debug).run()


if __name__ == "__main__":
    raise SystemExit(main())
