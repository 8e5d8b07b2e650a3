"""The chat's loop: read a message or a command, do it, print what comes of it. Whatever fails, the chat goes on."""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
import time
from collections.abc import Callable, Generator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.inference.choices import (
    MAX_TOKENS,
    CacheChoice,
    DraftChoice,
    ModelChoice,
    PromptChoice,
    SamplingChoice,
    random_seed,
)
from llama3_scratch.inference.conversation import Conversation
from llama3_scratch.inference.loading import open_model
from llama3_scratch.inference.prompt_cache_file import PromptCacheFile, check_path
from llama3_scratch.system import cli
from llama3_scratch.system.fields import Number, meant, takes
from llama3_scratch.system.files import read_json
from llama3_scratch.terminal.line_editor import LineEditor, PlainInput, line_editor
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


def _report(error: Exception) -> int:
    return cli.report(error, debug=False)


# All but the one that speaks of tokens by their ids, which nobody knows by heart.
SETTINGS = tuple(field.name for field in fields(SamplingChoice) if field.name != "logit_bias")


def talk(
    *,
    model: ModelChoice,
    cache: CacheChoice,
    drafts: DraftChoice,
    prompt: PromptChoice,
    sampling: SamplingChoice,
    prompt_cache: Path | None = None,
    keep_history: bool = True,
    report: Callable[[Exception], object] = _report,
) -> int:
    """Open the model and talk with it on the terminal, or with lines of stdin; the exit code."""
    if prompt_cache is not None:
        if cache.sliding:
            raise UsageError("`prompt_cache` keeps the beginning of a text, `sliding` forgets it; leave one out")
        check_path(prompt_cache)
    typed = line_editor(keep_history=keep_history)
    with typed.unseen():
        started = time.perf_counter()
        checkpoint, dtype = open_model(model, chats=True)
        conversation = Conversation(
            checkpoint,
            dtype,
            prompt=prompt,
            sampling=sampling,
            cache=cache,
            drafts=drafts,
            reading=model,
            load_s=time.perf_counter() - started,
        )
        file = PromptCacheFile(prompt_cache, checkpoint, dtype) if prompt_cache is not None else None
        if file is not None:
            conversation.begin_with(file)
        log.info("%s, loaded in %.1f s. /help lists the commands.", checkpoint.path.name, conversation.timings.load_s)
        code = Repl(conversation, typed, seeded=sampling.seed != -1, report=report).run()
        if file is not None:
            conversation.keep(file)
        return code


class Repl:
    """A conversation and where its messages come from."""

    def __init__(
        self,
        conversation: Conversation,
        typed: PlainInput | LineEditor,
        *,
        seeded: bool,
        report: Callable[[Exception], object] = _report,
    ) -> None:
        """`seeded`: whether a person fixed the seed; `report` tells an error."""
        self.conversation = conversation
        self._typed, self._seeded, self._report = typed, seeded, report
        self.commands: dict[str, Callable[[str], bool | None]] = {
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
                self._report(error)

    def _do(self, text: str) -> bool | None:
        """Say the message or do the command; true where it says to leave."""
        if not text.strip():
            return None
        if text.startswith("//") or not text.startswith("/"):
            self._print(self.conversation.reply(text[1:] if text.startswith("/") else text))
            return None
        name, *argument = text[1:].split(maxsplit=1) or [""]
        if name not in self.commands:
            close = difflib.get_close_matches(name, self.commands, n=1)
            meant = f"did you mean /{close[0]}?" if close else "/help lists them."
            raise UsageError(f"no command /{name}; {meant} A message that begins with a slash is typed with two")
        return self.commands[name](argument[0].strip() if argument else "")

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
            log.info("(cut: max_tokens is %d)", self.conversation.sampling.at_most)
        elif self.conversation.ended == "context":
            log.info("(cut: the context is full)")
        elif self.conversation.ended and not self.conversation.messages[-1]["content"]:
            log.info("(an empty answer; /retry asks again)")

    def _retry(self, argument: str) -> None:
        sampling = self.conversation.sampling
        if sampling.temperature == 0 or self._seeded:
            why = "with temperature 0" if sampling.temperature == 0 else f"with the seed {sampling.seed}"
            log.info("(%s the answer to the same question is the same; /set changes it)", why)
        else:
            self.conversation.sampling = replace(sampling, seed=random_seed())
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
            raise UsageError(f"no setting {name}; {meant(name, SETTINGS)}")
        if value:
            self._change(name, value[0].strip())
        for key in SETTINGS:
            if name in ("", key):
                print(_shown(key, getattr(self.conversation.sampling, key)))

    def _change(self, name: str, value: str) -> None:
        try:
            self.conversation.sampling = replace(self.conversation.sampling, **{name: _read(name, value)}).seeded()
        except UsageError as error:
            raise UsageError(f"/set {str(error).replace('`', '')}") from error
        if name == "seed":
            self._seeded = _read(name, value) != -1

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


def _read(name: str, value: str) -> Any:
    """What was typed as a sampling's setting has it; text where it's none, which is refused there."""
    if name == "stop":  # one text, which may hold blanks; "none" for nothing
        return () if value == "none" else (value,)
    bounds: Number = takes(SamplingChoice, name)
    try:
        return bounds.kind(value)
    except ValueError:
        return value


def _shown(name: str, value: Any) -> str:
    if name == "stop":
        return f"stop {' '.join(map(repr, value)) or 'none'}  (a text before which answers end, or none)"
    return f"{name} {MAX_TOKENS if value is None else value}  ({takes(SamplingChoice, name)})"


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
