"""The chat's loop: read a message or a command, do it, print what comes of it. Whatever fails, the chat goes on."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import logging
import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.inference.conversation import Conversation
from llama3_scratch.inference.options import add_sampling_options, random_seed
from llama3_scratch.system import cli
from llama3_scratch.system.files import read_json
from llama3_scratch.terminal.line_editor import LineEditor, PlainInput
from llama3_scratch.terminal.word_wrap import WrappedOutput

log = logging.getLogger("llama3_scratch")

HELP = """\
/help                 this list
/retry                answer again, by another seed unless you fixed one
/edit [TEXT]          change the last message, or say TEXT in its place
/clear                forget the conversation
/system [TEXT]        start anew under this system message, or under none
/set [NAME [VALUE]]   change how answers are sampled; without VALUE, show it
/save FILE            write the conversation as JSON
/load FILE            go on with a saved conversation
/stats                tokens, speed and memory of the last answer
/exit                 leave (or Ctrl-D, or Ctrl-C twice)
//TEXT                say a message that begins with a slash
Ctrl-C stops an answer. Enter sends a message; Alt-Enter begins a new line in
it, and so does Enter behind a \\ or between two lines of three quotes. What is
pasted at once is one message."""

SETTINGS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repeat_penalty",
    "repeat_last_n",
    "seed",
    "max_tokens",
    "stop",
)


class Repl:
    """A conversation and where its messages come from."""

    def __init__(
        self, conversation: Conversation, typed: PlainInput | LineEditor, *, seeded: bool, debug: bool
    ) -> None:
        self.conversation, self.options = conversation, conversation.options
        self._typed, self._seeded, self._debug = typed, seeded, debug
        parser = cli.Parser("chat", "")
        add_sampling_options(parser, temperature=0, top_p=1)
        self._types: dict[str, Any] = {action.dest: action.type for action in parser._actions}
        self._commands: dict[str, Callable[[str], bool | None]] = {
            "help": self._help,
            "retry": self._retry,
            "edit": self._edit,
            "clear": self._clear,
            "system": self._system,
            "set": self._set,
            "save": self._save,
            "load": self._load,
            "stats": self._stats,
            "exit": lambda argument: True,
            "quit": lambda argument: True,
        }

    def run(self) -> int:
        """Until the input ends, /exit or Ctrl-C twice at an empty prompt; the exit code."""
        interrupted = False
        while True:
            try:
                text = self._typed.read()
            except EOFError:
                return 0
            except KeyboardInterrupt:
                if interrupted:
                    return 130
                interrupted = True
                log.info("(Ctrl-C once more leaves)")
                continue
            except UnicodeDecodeError as error:
                raise UsageError(f"stdin: byte {error.start} of what was typed isn't UTF-8") from error
            interrupted = False
            try:
                if self._do(text):
                    return 0
            except KeyboardInterrupt:
                print()
            except BrokenPipeError:
                raise
            except Exception as error:  # whatever fails, the conversation is kept
                cli.report(error, debug=self._debug)

    def _do(self, text: str) -> bool | None:
        """Say the message or do the command; true where it says to leave."""
        if not text.strip():
            return None
        if text.startswith("//") or not text.startswith("/"):
            self._print(self.conversation.reply(text[1:] if text.startswith("/") else text))
            return None
        name, *argument = text[1:].split(maxsplit=1) or [""]
        if name not in self._commands:
            close = difflib.get_close_matches(name, self._commands, n=1)
            meant = f"did you mean /{close[0]}?" if close else "/help lists them."
            raise UsageError(f"no command /{name}; {meant} A message that begins with a slash is typed with two")
        return self._commands[name](argument[0].strip() if argument else "")

    def _help(self, argument: str) -> None:
        page = WrappedOutput()
        page.write(HELP)
        page.finish()

    def _print(self, answer: Generator[str, None, None]) -> None:
        """Print the answer as it comes. Ctrl-C ends it, wherever it strikes."""
        page = WrappedOutput()
        with contextlib.suppress(KeyboardInterrupt), contextlib.closing(answer) as pieces:
            for piece in pieces:
                page.write(piece)
        page.finish()
        if self.conversation.ended == "max_tokens":
            log.info("(cut: max_tokens is %d)", self.options.max_tokens)
        elif self.conversation.ended == "context":
            log.info("(cut: the context is full)")
        elif self.conversation.ended and not self.conversation.messages[-1]["content"]:
            log.info("(an empty answer; /retry asks again)")

    def _retry(self, argument: str) -> None:
        if self.options.temperature == 0 or self._seeded:
            why = "with temperature 0" if self.options.temperature == 0 else f"with the seed {self.options.seed}"
            log.info("(%s the answer to the same question is the same; /set changes it)", why)
        else:
            self.options.seed = random_seed()
        self._print(self.conversation.retry())

    def _edit(self, argument: str) -> None:
        last = self.conversation.last
        if last is None:
            raise UsageError("there is no message yet; type one")
        if not argument:
            if not self._typed.edits:
                raise UsageError("/edit wants the TEXT that is to stand in place of the last message")
            with contextlib.suppress(EOFError, KeyboardInterrupt):
                argument = self._typed.read(last)
        if argument.strip():
            self._print(self.conversation.retry(argument))

    def _clear(self, argument: str) -> None:
        self.conversation.clear()
        log.info("The conversation is forgotten.")

    def _system(self, argument: str) -> None:
        self.conversation.set_system(argument)
        log.info("A new conversation, %s.", "with this system message" if argument else "without a system message")

    def _set(self, argument: str) -> None:
        name, *value = argument.replace("=", " ", 1).split(maxsplit=1) or [""]
        name = name.replace("-", "_")
        if name and name not in SETTINGS:
            raise UsageError(f"no setting {name}; {cli.meant(name, SETTINGS)}")
        if value:
            self._change(name, value[0].strip())
        for key in SETTINGS:
            if name in ("", key):
                shown = getattr(self.options, key)
                if key == "stop":
                    print(f"{key} {' '.join(map(repr, shown)) or 'none'}  (a text before which answers end, or none)")
                else:
                    print(f"{key} {shown}  ({self._types[key].__doc__})")

    def _change(self, name: str, value: str) -> None:
        if name == "stop":  # one text, which may hold blanks; "none" for nothing
            self.options.stop = [] if value == "none" else [value]
            return
        try:
            setattr(self.options, name, self._types[name](value))
        except argparse.ArgumentTypeError as error:
            raise UsageError(f"/set {name}: {error}") from error
        if name == "seed":
            self._seeded = self.options.seed != -1
            if not self._seeded:
                self.options.seed = random_seed()

    def _save(self, argument: str) -> None:
        path = _path("save", argument)
        if path.is_file() and not _holds_messages(path):
            raise UsageError(f"/save: {path} is there and holds no conversation; take another name")
        self.conversation.save(path)
        print(f"{len(self.conversation.messages)} messages written to {path}")

    def _load(self, argument: str) -> None:
        path = _path("load", argument)
        self.conversation.load(path)
        messages = self.conversation.messages
        waits = ", the last of which /retry answers" if messages and messages[-1]["role"] != "assistant" else ""
        print(f"{len(messages)} messages read from {path}{waits}")

    def _stats(self, argument: str) -> None:
        print(f"{self.conversation.timings} · {self.conversation.n_cached} tokens in the cache")


def _path(command: str, argument: str) -> Path:
    if not argument:
        raise UsageError(f"/{command} wants a file name")
    if "\0" in argument:
        raise UsageError(f"/{command} {argument!r}: no file's name holds a null character")
    try:
        # In the bytes of file names, whatever the locale takes them for.
        return Path(os.fsdecode(argument.encode("utf-8", "surrogateescape"))).expanduser()
    except RuntimeError as error:
        raise UsageError(f"/{command} {argument}: there is no such home folder") from error


def _holds_messages(path: Path) -> bool:
    try:
        return "messages" in read_json(path, "a saved conversation")
    except FileError:
        return False
