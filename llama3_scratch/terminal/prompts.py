"""What `generate` is asked: prompts of the command line, stdin and files, checked before a model is loaded."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama3_scratch.checkpoint.names import DEFAULT, resolve
from llama3_scratch.data.documents import lines, numbered, rows
from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.system import cli
from llama3_scratch.system.files import decode

if TYPE_CHECKING:
    from llama3_scratch.text.tokenizer import Tokenizer

STDIN = "-"
_REMEDY = "--errors replace puts � in its place"


@dataclass(frozen=True)
class Prompt:
    """A text, or a chat's messages so far; `source` names it in errors."""

    asked: str | list[dict[str, Any]]
    source: str

    @property
    def text(self) -> str:
        """What a person reads of it: the text, or a line with its role for each message."""
        if isinstance(self.asked, str):
            return self.asked
        return "\n".join(f"{message['role']}: {message.get('content') or ''}" for message in self.asked)

    def as_json(self) -> dict[str, Any]:
        return {"prompt" if isinstance(self.asked, str) else "messages": self.asked}


def add_prompt_options(parser: cli.Parser) -> None:
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="the prompt; - reads it from stdin")
    parser.add_argument(
        "--prompt", dest="prompts", action="append", default=[], metavar="PROMPT", help="one more prompt; repeatable"
    )
    parser.add_argument("--prompt-file", type=Path, metavar="FILE", help="one more prompt: all of FILE")
    parser.add_argument(
        "--prompts-file",
        type=Path,
        metavar="FILE",
        help='a prompt on each line; in FILE.jsonl each line is {"prompt": TEXT} or {"messages": […]}. Blank lines are '
        "passed over; - reads lines of text from stdin",
    )
    parser.add_argument(
        "--batch",
        type=cli.number(int, least=1),
        metavar="N",
        help="prompts at once (16; all of them where a trace is asked for, or with --no-weights)",
    )
    parser.add_argument(
        "--errors", choices=("strict", "replace"), default="strict", help="what to do with bytes that aren't UTF-8"
    )
    parser.add_argument("--system", type=cli.text, metavar="TEXT", help="the system message of a chat")
    parser.add_argument("--raw", action="store_true", help="complete the prompt as it stands, whatever the model")
    parser.add_argument(
        "--raw-special", action="store_true", help="like --raw, and names of special tokens are those tokens"
    )


def read_prompts(options: argparse.Namespace) -> list[Prompt]:
    """Every prompt that was given, in the order of the options above.

    Raises UsageError or FileError for one that is no text, and where there is none.
    """
    given = [*([options.prompt] if options.prompt is not None else []), *options.prompts]
    if not given and options.prompt_file is None and options.prompts_file is None:
        raise UsageError(
            "no prompt; give one, or - to read it from stdin, --prompt-file FILE or --prompts-file FILE (see --help)"
        )
    found = []
    for number, text in enumerate(given, start=1):
        if text == STDIN:
            found.append(Prompt(_decoded(sys.stdin.buffer.read(), "stdin", options.errors), "stdin"))
        else:
            source = "the prompt" if len(given) == 1 else f"prompt {number}"
            found.append(Prompt(_typed(text, source, options.errors), source))
    if options.prompt_file is not None:
        source = f"--prompt-file {options.prompt_file}"
        try:
            data = options.prompt_file.read_bytes()
        except OSError as error:
            raise UsageError(f"{source}: {error.strerror}") from error
        found.append(Prompt(_decoded(data, source, options.errors), source))
    if options.prompts_file is not None:
        several = list(_each_line(options.prompts_file, options.errors))
        if not several:
            raise FileError(f"{options.prompts_file}: holds no prompt, expected one on each line")
        found += several
    return found


def _typed(text: str, source: str, errors: str) -> str:
    """An argument, of which Python hands over what it couldn't decode as surrogates."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", errors)
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise UsageError(f"{source}: byte {error.start} isn't UTF-8; {_REMEDY}") from error


def _decoded(data: bytes, source: str, errors: str) -> str:
    try:
        return decode(data, errors)
    except ValueError as error:
        remedy = f"; {_REMEDY}" if isinstance(error.__cause__, UnicodeError) else ""
        raise UsageError(f"{source}: {error}{remedy}") from error


def _each_line(path: Path, errors: str) -> Iterator[Prompt]:
    if path.suffix == ".jsonl":
        yield from (Prompt(_asked(row, f"{path}:{number}"), f"{path}:{number}") for number, row in rows(path, errors))
        return
    stdin = str(path) == STDIN
    for number, line in numbered(sys.stdin.buffer, "stdin", errors) if stdin else lines(path, errors):
        if line.strip():
            yield Prompt(line, f"{'stdin' if stdin else path}:{number}")


def _asked(row: dict[str, Any], source: str) -> str | list[dict[str, Any]]:
    text, messages = row.get("prompt"), row.get("messages")
    if isinstance(text, str) and messages is None:
        return text
    if (
        text is None
        and isinstance(messages, list)
        and messages
        and all(isinstance(message, dict) and isinstance(message.get("role"), str) for message in messages)
    ):
        return messages
    raise FileError(f'{source}: expected a text under "prompt", or a list of messages with roles under "messages"')


def refuse_empty(prompts: list[Prompt], options: argparse.Namespace) -> None:
    """Raise UsageError for an empty prompt to a model that chats. A base model begins by itself."""
    empty = next((prompt for prompt in prompts if not prompt.asked), None)
    if empty is None or options.raw or options.raw_special:
        return
    if options.model not in (None, DEFAULT) and not options.chat_format:
        from llama3_scratch.checkpoint.description import describe

        tokenizer = describe(resolve(options.model)).tokenizer
        if tokenizer is None or tokenizer.chat_format is None:
            return
    raise UsageError(f"{empty.source} is empty; say something, or take --raw to let the model begin by itself")


def encode_prompt(asked: str | list[dict[str, Any]], tokenizer: Tokenizer, options: argparse.Namespace) -> list[int]:
    """The prompt's tokens: a user's message where the model chats, else the text itself."""
    from llama3_scratch.text.dialog import encode_dialog

    if options.raw or options.raw_special or tokenizer.chat_format is None:
        if options.system is not None:
            raise UsageError("--system goes with a chat, not with a base model or --raw")
        if not isinstance(asked, str):
            raise UsageError("messages go with a chat, not with a base model or --raw; give the text under prompt")
        special = set(tokenizer.special_tokens) if options.raw_special else set()
        ids = tokenizer.encode(asked, bos=tokenizer.add_bos, eos=False, allowed_special=special)
        if not ids and tokenizer.bos_id is not None:
            ids = [tokenizer.bos_id]
        return ids
    messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
    if options.system is not None and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": options.system}, *messages]
    return encode_dialog(messages, tokenizer, date=options.date)
