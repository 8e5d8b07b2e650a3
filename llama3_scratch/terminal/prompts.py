"""What `generate` is asked: prompts of the command line, stdin and files, checked before a model is loaded."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama3_scratch.checkpoint.names import DEFAULT
from llama3_scratch.data import documents
from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.inference.choices import ModelChoice, PromptChoice
from llama3_scratch.inference.loading import describe_model
from llama3_scratch.system.files import decode

STDIN = "-"
_REMEDY = "`errors=replace` puts � in its place"


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


def read_prompts(
    given: Sequence[str] = (), *, file: Path | None = None, lines: Path | None = None, errors: str = "strict"
) -> list[Prompt]:
    """Every prompt: those `given`, of which "-" is stdin, all of `file`, and each line of `lines`.

    Raises UsageError or FileError for one that is no text, and where there is none; `errors` as bytes.decode has it.
    """
    if not given and file is None and lines is None:
        raise UsageError("no prompt; give one, or - to read it from stdin, `prompt_file=FILE` or `prompts_file=FILE`")
    found = []
    for number, text in enumerate(given, start=1):
        if text == STDIN:
            found.append(Prompt(_decoded(sys.stdin.buffer.read(), "stdin", errors), "stdin"))
        else:
            source = "the prompt" if len(given) == 1 else f"prompt {number}"
            found.append(Prompt(_typed(text, source, errors), source))
    if file is not None:
        source = f"`prompt_file` {file}"
        try:
            data = file.read_bytes()
        except OSError as error:
            raise UsageError(f"{source}: {error.strerror}") from error
        found.append(Prompt(_decoded(data, source, errors), source))
    if lines is not None:
        several = list(_each_line(lines, errors))
        if not several:
            raise FileError(f"{lines}: holds no prompt, expected one on each line")
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
        yield from (
            Prompt(_asked(row, f"{path}:{number}"), f"{path}:{number}") for number, row in documents.rows(path, errors)
        )
        return
    stdin = str(path) == STDIN
    read = documents.numbered(sys.stdin.buffer, "stdin", errors) if stdin else documents.lines(path, errors)
    for number, line in read:
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


def refuse_empty(prompts: Sequence[Prompt], model: ModelChoice, choice: PromptChoice) -> None:
    """Raise UsageError for an empty prompt to a model that chats. A base model begins by itself."""
    empty = next((prompt for prompt in prompts if not prompt.asked), None)
    if empty is None or choice.without_chat_format:
        return
    if model.model not in (None, DEFAULT) and not model.chat_format:
        tokenizer = describe_model(model).tokenizer
        if tokenizer is None or tokenizer.chat_format is None:
            return
    raise UsageError(f"{empty.source} is empty; say something, or take `raw=True` to let the model begin by itself")
