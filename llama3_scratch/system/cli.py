"""What every verb's command line shares: how options are refused, where messages go, which code it ends with.

Text goes to stdout, everything else to stderr. No torch here: `--help` and usage errors answer at once.

The library's errors and warnings name a setting as a caller from Python gives it, in backquotes: `max_seq_len`,
`allow_extra=True`. Here they are said as the verb's own flags: --max-seq-len, --allow-extra (`in_flags`).
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import functools
import logging
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from llama3_scratch.errors import FileError, Llama3Error, ResourceError, UsageError
from llama3_scratch.system import stdio
from llama3_scratch.system.fields import Number
from llama3_scratch.system.writing import DISK_FULL

log = logging.getLogger("llama3_scratch")

Group = argparse._ActionsContainer  # a parser or a group of its flags, which argparse has no public name for


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UsageError, suggests the flag that was meant, and knows --debug and --quiet."""

    def __init__(self, verb: str, description: str, **kwargs: Any) -> None:
        super().__init__(prog=f"python -m llama3_scratch.{verb}", description=description, allow_abbrev=False, **kwargs)
        self.add_argument("--quiet", action="store_true", help="print nothing on stderr but errors")
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see --help)")

    def parse_args(self, args=None, namespace=None):
        known, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            given = unknown[0].split("=")[0]
            begun = [flag for flag in flags if given.startswith("--") and len(given) > 3 and flag.startswith(given)]
            close = begun or difflib.get_close_matches(given, flags, n=1)
            self.error(f"unknown argument {unknown[0]}" + (f"; did you mean {close[0]}?" if close else ""))
        return known


def script(name: str, doc: str | None) -> Parser:
    """The parser of scripts/{name}.py, whose --help shows the script's docstring as it stands, examples included."""
    parser = Parser(name, doc or "", formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.prog = f"python scripts/{name}.py"
    return parser


def number(kind: type, **bounds: float) -> Callable[[str], Any]:
    """An argparse `type`: a finite int or float within bounds, minimum=, above=, maximum=; its message says which."""
    return within(Number(kind, **bounds))


def within(bounds: Number) -> Callable[[str], Any]:
    """An argparse `type`: what a choice's field of numbers takes."""

    def convert(text: str) -> Any:
        try:
            value = bounds.kind(text)
        except ValueError:
            value = None
        if not bounds.admits(value):
            raise argparse.ArgumentTypeError(f"expected {bounds}, got {text!r}")
        return value

    convert.__doc__ = str(bounds)
    return convert


def text(given: str) -> str:
    """An argparse `type`: text, in UTF-8 where the locale's encoding didn't know its bytes."""
    try:
        return given.encode("utf-8", "surrogateescape").decode()
    except UnicodeError:
        raise argparse.ArgumentTypeError(f"expected text in UTF-8, got {given!r}") from None


_SETTING = re.compile(r"`(\w+)(?:=([^`]*))?`")  # `max_seq_len`, `dtype=float32`


def in_flags(message: str, parser: argparse.ArgumentParser | None) -> str:
    """The message with each setting in backquotes as the parser's flag, where it has one: `max_seq_len` is
    --max-seq-len, `allow_extra=True` is --allow-extra, `dtype=float32` is --dtype float32."""
    if parser is None:
        return message
    actions = {action.dest: action for action in parser._actions}

    def flag(found: re.Match[str]) -> str:
        name, value = found.groups()
        if (action := actions.get(name)) is None:
            return found[0]
        long = [option for option in action.option_strings if option.startswith("--")]
        said = long[0] if long else str(action.metavar or name)
        return f"{said} {value}" if value and action.nargs != 0 else said

    return _SETTING.sub(flag, message)


class _Sentence(logging.Formatter):
    def __init__(self, parser: argparse.ArgumentParser | None = None) -> None:
        super().__init__()
        self._parser = parser

    def format(self, record: logging.LogRecord) -> str:
        message = in_flags(record.getMessage(), self._parser)
        return message if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {message}"


@contextlib.contextmanager
def _messages_on_stderr(quiet: bool, parser: argparse.ArgumentParser) -> Iterator[None]:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Sentence(parser))
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.ERROR if quiet else logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def verb(make_parser: Callable[[], Parser]) -> Callable[[Callable[[argparse.Namespace], int]], Callable[..., int]]:
    """Turn `run(options) -> exit code` into `main(argv) -> exit code`, with errors as one sentence on stderr."""

    def decorate(run: Callable[[argparse.Namespace], int]) -> Callable[..., int]:
        @functools.wraps(run)
        def main(argv: Sequence[str] | None = None) -> int:
            stdio.prepare()
            arguments = list(sys.argv[1:] if argv is None else argv)
            parser: Parser | None = None
            try:
                parser = make_parser()
                options = parser.parse_args(arguments)
                with _messages_on_stderr(options.quiet, parser):
                    code = run(options)
                sys.stdout.flush()
                return code
            except SystemExit as done:  # argparse's --help
                return int(done.code or 0)
            except KeyboardInterrupt:
                return 130
            except BrokenPipeError:
                return 141  # whoever read us (| head) has seen enough
            except Exception as error:
                return report(error, debug="--debug" in arguments, parser=parser)
            finally:
                stdio.settle()

        return main

    return decorate


def ended_by(signal: int) -> int:
    """The exit code of what a signal ended in good order, 0 where none did: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + signal if signal else 0


def report(error: Exception, *, debug: bool, parser: argparse.ArgumentParser | None = None) -> int:
    """Print the error as one sentence, in the parser's flags, and with a traceback where it's none of ours; its exit
    code."""
    known = as_ours(error)
    with contextlib.suppress(OSError):  # where stderr takes no more, the exit code still tells
        if debug or known is None:
            traceback.print_exception(error)
        print(f"error: {in_flags(str(known or error), parser)}", file=sys.stderr)
    return known.exit_code if known else 1


def as_ours(error: Exception) -> Llama3Error | None:
    """The error as one of ours where a person could have caused it, else None."""
    if isinstance(error, Llama3Error):
        return error
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error) or "out of memory" in str(error).lower():
        return ResourceError("out of memory; lower `max_seq_len`, take fewer prompts at once, or a smaller model")
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return ResourceError(f"the disk is full: {error.filename or error.strerror}")
    if isinstance(error, OSError) and error.filename is not None:
        return FileError(f"{error.filename}: {error.strerror}")
    return None
