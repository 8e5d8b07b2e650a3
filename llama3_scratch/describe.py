"""Say what a checkpoint is, from its headers alone: layout, sizes, RoPE, tokenizer, and the memory that it takes."""

from __future__ import annotations

import argparse
import logging

from llama3_scratch.checkpoint.description import describe
from llama3_scratch.checkpoint.description_table import as_json, rows
from llama3_scratch.errors import UsageError
from llama3_scratch.system import cli, stdio

log = logging.getLogger("llama3_scratch")


def make_parser() -> cli.Parser:
    parser = cli.Parser("describe", __doc__ or "")
    parser.add_argument("model", metavar="PATH_OR_NAME", help="a folder, a .gguf or .bin file, or a name; see download")
    parser.add_argument(
        "--context",
        type=cli.number(int, minimum=1),
        metavar="N",
        help="tokens to plan memory for (the model's)",
    )
    parser.add_argument("--batch", type=cli.number(int, minimum=1), default=1, metavar="N", help="prompts at once")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    return parser


@cli.verb(make_parser)
def main(options: argparse.Namespace) -> int:
    found = describe(options.model)
    most = found.config.max_seq_len
    context = options.context or most
    if context > most:
        raise UsageError(f"--context {context}: the model was made for at most {most} tokens")
    memory = found.plan(context, options.batch)
    if options.json:
        stdio.print_json(as_json(found, memory, context, options.batch), indent=2)
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(overflow="fold")
    for row in rows(found, memory, context, options.batch):
        table.add_row(*row)
    Console(markup=False, highlight=False).print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
