"""Measure how fast and small a model runs here: tokens/s, load time, memory, beside others and the machine's limits."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from pathlib import Path

from llama3_scratch.benchmark.environment import about
from llama3_scratch.benchmark.flags import add_serve_flags, check_mode, several
from llama3_scratch.benchmark.measure import BenchChoice, measured, subjects_of
from llama3_scratch.benchmark.peers import PEERS
from llama3_scratch.benchmark.report import draw, markdown, require_matplotlib, startup_markdown
from llama3_scratch.benchmark.served import ServeBench, served_markdown
from llama3_scratch.benchmark.startup import startup
from llama3_scratch.config import OFFICIAL
from llama3_scratch.errors import UsageError
from llama3_scratch.system import cli, stdio
from llama3_scratch.system.fields import updated
from llama3_scratch.terminal.flags import add_device_flags

log = logging.getLogger("llama3_scratch")


def make_parser() -> cli.Parser:
    parser = cli.Parser("bench", __doc__ or "")
    parser.add_argument("models", nargs="*", metavar="MODEL", help="folders, .gguf files or names; the default model")
    parser.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="NAME",
        help=f"random weights of an official shape: {', '.join(OFFICIAL)}; repeatable",
    )
    count, size = cli.number(int, minimum=1), cli.number(int, minimum=0)
    parser.add_argument(
        "--forms",
        "--quantize",  # as `generate` has it
        type=several(str),
        metavar="F,…",
        help="of the weights: f32, bf16, f16, int8, int4, int4-sym, nf4, int8-row; as `generate` runs them",
    )
    add_device_flags(parser)
    parser.add_argument(
        "--kv", type=several(count), default=[None], metavar="BITS,…", help="of the cache: 32, 16, 8, 4; as --dtype"
    )
    parser.add_argument("--batch", type=several(count), default=[1], metavar="N,…", help="prompts at once (1)")
    parser.add_argument("--pp", type=size, default=512, metavar="N", help="tokens of a prompt, 0: none (%(default)s)")
    parser.add_argument("--tg", type=size, default=128, metavar="N", help="new tokens, 0: none (%(default)s)")
    parser.add_argument(
        "--contexts", type=several(size), default=[0], metavar="N,…", help="tokens before the new ones (0)"
    )
    parser.add_argument("-r", "--repeats", type=count, default=5, metavar="N", help="runs of each (%(default)s)")
    parser.add_argument("--threads", type=count, metavar="N", help="torch's own number unless given")
    parser.add_argument(
        "--against", type=several(str), default=[], metavar="PEER,…", help=f"also measure {', '.join(PEERS)}"
    )
    parser.add_argument(
        "--llama-bench",
        metavar="FILE",
        help="with --against llama.cpp: its own program in the place of the wheel, which is built for AVX2; "
        "scripts/native_llama_bench.sh builds it for this processor",
    )
    parser.add_argument(
        "--startup", action="store_true", help="measure `generate --max-tokens 1` from start to end instead"
    )
    add_serve_flags(parser)
    parser.add_argument("--json", action="store_true", help="print all samples as JSON, in the place of the table")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="tokens/s by context and by batch")
    return parser


@cli.verb(make_parser)
def main(options: argparse.Namespace) -> int:
    command = shlex.join(["python", "-m", "llama3_scratch.bench", *sys.argv[1:]])
    check_mode(options, vars(make_parser().parse_args([])))
    settings = {name: tuple(value) if isinstance(value, list) else value for name, value in vars(options).items()}
    if options.serve:
        found = updated(ServeBench(), settings).measure(command)
        stdio.print_json(found) if options.json else print(served_markdown(found))
        return 0
    choice = updated(BenchChoice(), settings)
    if options.plot:
        if not options.tg:
            raise UsageError("--plot draws new tokens per second, and --tg 0 asks for none")
        require_matplotlib(options.plot)
    if options.startup:
        found = startup(subjects_of(choice), choice.repeats) | about(command, choice.repeats)
    else:
        found = measured(subjects_of(choice), choice, command)
    if options.plot:
        draw(found, options.plot)
    stdio.print_json(found) if options.json else print((startup_markdown if options.startup else markdown)(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
