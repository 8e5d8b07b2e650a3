"""Options of `bench`: those of servers, and which go with what is measured."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from llama3_scratch.errors import UsageError
from llama3_scratch.system import cli


def several(one: Callable[[str], Any]) -> Callable[[str], list]:
    """An argparse `type`: values between commas, each once."""
    return lambda text: list(dict.fromkeys(one(part.strip()) for part in text.split(",")))


def add_serve_flags(parser: cli.Parser) -> None:
    parser.add_argument("--serve", action="store_true", help="measure `serve` with --users at once instead")
    parser.add_argument(
        "--users", type=several(cli.number(int, minimum=1)), default=[1, 4, 8, 16], metavar="N,…", help="(1,4,8,16)"
    )
    parser.add_argument("--llama-server", metavar="FILE", help="llama.cpp's server, which the same script builds")


def check_mode(options: argparse.Namespace, defaults: Mapping[str, Any]) -> None:
    """Raise UsageError for an option that isn't for what is measured."""
    always, load = {"models", "repeats", "json", "quiet", "debug"}, {"serve", "users", "llama_server"}
    shared = {"forms", "threads", "against"}
    mode, what, taken = "bench", "tokens", defaults.keys() - load - {"startup"}
    if options.startup:
        mode, what, taken = "--startup", "whole commands", {"startup"}
    elif options.serve:
        mode, what, taken = "--serve", "servers", load | shared
    for name in sorted(defaults.keys() - always - taken):
        if getattr(options, name) != defaults[name]:
            raise UsageError(f"{mode} measures {what}; --{name.replace('_', '-')} isn't for it")
