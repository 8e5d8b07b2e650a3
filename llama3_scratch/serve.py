"""Answer OpenAI's clients over HTTP, many at once, and show a page to talk with."""

from __future__ import annotations

import argparse
from pathlib import Path

from llama3_scratch.errors import FileError
from llama3_scratch.serving.choices import ServeChoice
from llama3_scratch.system import cli
from llama3_scratch.system.fields import takes, updated
from llama3_scratch.terminal import flags


def _adapter(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise argparse.ArgumentTypeError(f"expected NAME=DIR, got {text!r}")
    return name, Path(folder)


def make_parser() -> cli.Parser:
    parser = cli.Parser("serve", "Answer OpenAI's clients over HTTP, many at once, and show a page to talk with.")
    group = parser.add_argument_group("server")
    group.add_argument(
        "--host", default=ServeChoice.host, help="address to listen at; 0.0.0.0: all of this machine's (%(default)s)"
    )

    def add(name: str, metavar: str, help: str) -> None:
        number = cli.within(takes(ServeChoice, name))
        default = getattr(ServeChoice, name)
        group.add_argument(f"--{name.replace('_', '-')}", type=number, default=default, metavar=metavar, help=help)

    add("port", "N", "0: a free one (%(default)s)")
    group.add_argument(
        "--api-key",
        dest="api_keys",
        action="append",
        default=[],
        metavar="KEY",
        help="answer only whoever names it, as a bearer token or as X-Api-Key; repeatable",
    )
    group.add_argument(
        "--allow-origin",
        dest="allow_origins",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="let web pages of http://HOST:PORT call, besides the server's own; *: of any; repeatable",
    )
    add("max_concurrent", "N", "answers that are generated at once (%(default)s)")
    add("queue", "N", "answers that may wait for their turn; beyond them: 503 (%(default)s)")
    add("pool_gb", "X", "memory for keys and values; what --max-concurrent can need, half of what is free at most")
    add("max_seconds", "X", "end an answer that takes longer, as one that is too long (%(default)g)")
    add("drain_seconds", "X", "on SIGTERM, wait so long for answers under way (%(default)g)")
    group.add_argument("--model-name", metavar="NAME", help="what clients call the model; its folder's or file's name")
    group.add_argument(
        "--adapter",
        dest="adapters",
        type=_adapter,
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="a LoRA or DoRA adapter as PEFT writes it, which answers whoever asks for model NAME; repeatable",
    )
    flags.add_model_flags(parser, adapters=False)
    flags.add_cache_flags(parser)
    return parser


@cli.verb(make_parser)
def main(options: argparse.Namespace) -> int:
    choice = updated(ServeChoice(), {**vars(options), "adapters": dict(options.adapters)})
    try:
        from llama3_scratch.serving.run import serve
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn", "h11", "llguidance"):
            raise
        raise FileError(f'{error.name} isn\'t installed; pip install "llama3_scratch[serve]"') from error
    options.adapters = ()
    return serve(
        choice,
        model=flags.model_choice(options),
        cache=flags.cache_choice(options),
        date=flags.prompt_choice(options).date,
    )


if __name__ == "__main__":
    raise SystemExit(main())
