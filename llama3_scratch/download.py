"""Fetch weights by name: an official Meta name, a Hugging Face repo id owner/name, or the default smollm2-135m."""

from __future__ import annotations

import argparse
import logging

from llama3_scratch.checkpoint.fetch import download
from llama3_scratch.checkpoint.names import FETCHED, canonical, weights_dir
from llama3_scratch.system import cli

log = logging.getLogger("llama3_scratch")


def make_parser() -> cli.Parser:
    parser = cli.Parser("download", __doc__ or "")
    parser.add_argument(
        "name", metavar="NAME", help=f"{', '.join(FETCHED)} (llama3… also with -instruct), or owner/name"
    )
    return parser


@cli.verb(make_parser)
def main(options: argparse.Namespace) -> int:
    name = canonical(options.name)
    if (weights_dir() / name).is_dir():
        log.info("%s is there already; delete its folder to fetch it again", name)
    print(download(name))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
