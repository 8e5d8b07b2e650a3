"""A model's own chat template, rendered as transformers renders it, in a process that can be stopped.

A template is a program in Jinja out of a model's files. It sees the messages with a mark inside every control token
that somebody typed; what it renders is then cut at the control tokens that it wrote itself, and the marks go.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.text.added_tokens import SPACE
from llama3_scratch.text.tokenizer import ChatTemplate, Tokenizer

Chat = Sequence[Mapping[str, Any]]

MAX_BYTES, MAX_SECONDS, MAX_CHARACTERS = 64_000, 1.0, 1_000_000  # of a template, a rendering, and what it adds
# The processor's seconds are counted where the system can: a busy machine is no fault of the template's.
_DEADLINE = 10 * MAX_SECONDS if hasattr(signal, "setitimer") else MAX_SECONDS
_START_SECONDS = 30.0  # for Python and jinja2 to start
_REMEDY = "take the chat format llama3 or chatml, which needs none"


def encode_chat(
    messages: Chat,
    template: ChatTemplate,
    tokenizer: Tokenizer,
    *,
    add_generation_prompt: bool = True,
    date: str | None = None,
) -> list[int]:
    """Ids of a chat as the template lays it out; BOS is only what the template writes.

    `date` ("26 Jul 2024") is its `date_string`, and today for its `strftime_now`. UsageError in the template's own
    words where it takes no such chat, FileError where it isn't Jinja or goes beyond a limit.
    """
    (text,) = render([(messages, add_generation_prompt)], template, tokenizer, date=date)
    return text.ids(tokenizer)


@dataclass(frozen=True)
class Rendered:
    """A rendered chat, in which every control token that a message held has the mark inside."""

    text: str
    mark: str

    def ids(self, tokenizer: Tokenizer) -> list[int]:
        """Control tokens that the template wrote as such, all else as text."""
        ids: list[int] = []
        done = 0
        for begin, end, id in [*self._control(tokenizer), (len(self.text), len(self.text), None)]:
            ids += tokenizer.encode(_unmarked(self.text[done:begin], self.mark), bos=False, eos=False)
            ids += [] if id is None else [id]
            done = end
        return ids

    def find(self, ids: Collection[int], tokenizer: Tokenizer, start: int) -> int:
        """Where the first of these control tokens that the template wrote ends, from `start` on; -1 where none is."""
        ends = (end for begin, end, id in self._control(tokenizer) if begin >= start and id in ids)
        return next(ends, -1)

    def _control(self, tokenizer: Tokenizer) -> Iterator[tuple[int, int, int]]:
        """(begin, end, id) of each control token that the template wrote."""
        for found in _pattern(tokenizer.special_tokens, self.mark, tokenizer.token_flags).finditer(self.text):
            assert found.lastindex
            yield found.start(), found.end(), tokenizer.special_tokens[found[found.lastindex]]

    def __getitem__(self, part: slice) -> Rendered:
        return Rendered(self.text[part], self.mark)


def render(
    chats: Sequence[tuple[Chat, bool]], template: ChatTemplate, tokenizer: Tokenizer, *, date: str | None = None
) -> list[Rendered]:
    """Several chats, each with whether the assistant's next message is opened; errors as of `encode_chat`."""
    if date is not None and "date_string" not in template.source and "strftime_now" not in template.source:
        raise UsageError("a date goes into a chat template that asks for one; this model's doesn't, leave it out")
    if (size := len(template.source.encode("utf-8", "replace"))) > MAX_BYTES:
        raise FileError(f"the model's chat template has {size} bytes, at most {MAX_BYTES} are rendered; {_REMEDY}")
    mark = _unused(" ".join([template.source, *(text for messages, _ in chats for text in _texts(messages))]))
    # Whatever the case, since a template may change it.
    typed = re.compile("|".join(map(re.escape, _longest_first(tokenizer.special_tokens))) or "(?!)", re.IGNORECASE)
    request = {
        "template": template.source,
        "variables": dict(template.variables),
        "date": _marked(date, mark, typed),
        "seconds": MAX_SECONDS,
        "limit": MAX_CHARACTERS + max(sum(map(len, _texts(messages))) for messages, _ in chats),
        "chats": [
            {"messages": [_seen(message, mark, typed) for message in messages], "add_generation_prompt": opened}
            for messages, opened in chats
        ],
    }
    return [Rendered(_text_of(answer), mark) for answer in _WORKER.ask(request)]


def _text_of(answer: dict[str, str]) -> str:
    match answer:
        case {"text": text}:
            return text
        case {"raised": words}:
            raise UsageError(f"the model's chat template doesn't take this chat: {_words(words)}")
        case {"failed": words}:
            raise UsageError(
                f"the model's chat template fails on this chat: {_words(words)}; change the messages, or {_REMEDY}"
            )
        case {"limit": "memory"}:
            raise FileError(f"the model's chat template takes more memory than the 512 MB it may; {_REMEDY}")
        case {"limit": _}:
            raise FileError(
                f"the model's chat template makes more than {MAX_CHARACTERS} characters beyond the messages'; {_REMEDY}"
            )
        case {"syntax": words}:
            raise FileError(f"the model's chat template isn't valid Jinja: {_words(words)}; {_REMEDY}")
    words = _words(answer.get("refused", "nothing"))
    raise FileError(f"the model's chat template reaches for what it may not have: {words}; {_REMEDY}")


def _words(text: str) -> str:
    """A template's own words, fit for one line of a terminal."""
    return "".join(c for c in " ".join(text.split())[:300] if c.isprintable()) or "without saying why"


# Marks inside typed control tokens


def _pattern(names: Iterable[str], mark: str, flags: Mapping[str, Mapping[str, bool]]) -> re.Pattern[str]:
    """Any of these control tokens without a mark, the longest first, each in a group, with the spaces that it takes."""

    def spaces(name: str, flag: str) -> str:
        return f"[{SPACE}]*" if flags.get(name, {}).get(flag) else ""

    # A single character has its mark behind it.
    each = ((name, re.escape(name) + f"(?!{mark})" * (len(name) == 1)) for name in _longest_first(names))
    return re.compile("|".join(f"{spaces(n, 'lstrip')}({part}){spaces(n, 'rstrip')}" for n, part in each) or "(?!)")


def _longest_first(names: Iterable[str]) -> list[str]:
    return sorted(names, key=len, reverse=True)


def _unused(text: str) -> str:
    """A character for private use that isn't in the text, nor its escape in JSON and Python."""
    return next(mark for mark in map(chr, range(0xE000, 0xF900)) if mark not in text and _escape(mark) not in text)


def _escape(mark: str) -> str:
    return f"\\u{ord(mark):04x}"


def _unmarked(text: str, mark: str) -> str:
    return text.replace(mark, "").replace(_escape(mark), "")


def _texts(value: Any) -> Iterator[str]:
    """Every string in a value out of JSON, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from (*_texts(key), *_texts(item))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _marked(value: Any, mark: str, typed: re.Pattern[str]) -> Any:
    """A value out of JSON with a mark inside all that `typed` finds in its strings."""
    if isinstance(value, str):  # behind the first character, where trimming doesn't reach
        return typed.sub(lambda found: f"{found[0][0]}{mark}{found[0][1:]}", value)
    if isinstance(value, Mapping):
        return {_marked(key, mark, typed): _marked(item, mark, typed) for key, item in value.items()}
    return [_marked(item, mark, typed) for item in value] if isinstance(value, list | tuple) else value


def _seen(message: Mapping[str, Any], mark: str, typed: re.Pattern[str]) -> dict[str, Any]:
    """A message as the template sees it: tool calls in OpenAI's shape, what somebody typed with its marks."""
    seen: dict[str, Any] = {"role": message["role"]}
    for key in ("content", "name", "tool_call_id"):
        if message.get(key) is not None:
            seen[key] = _marked(message[key], mark, typed)
    if message.get("tool_calls"):
        seen["tool_calls"] = [
            {
                **({"id": _marked(call["id"], mark, typed)} if "id" in call else {}),
                "type": "function",
                "function": {key: _marked(call[key], mark, typed) for key in ("name", "arguments")},
            }
            for call in message["tool_calls"]
        ]
    return seen


# The process


class _Worker:
    """The process that renders, started when it is first needed and ended with this one."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._inherited: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def ask(self, request: dict[str, Any]) -> list[dict[str, str]]:
        """The answers to a request, of which each is as `chat_template_worker` says."""
        line = json.dumps(request).encode() + b"\n"
        with self._lock:
            process = self._running()
            found = self._said(process, line, _DEADLINE)
            if not found.endswith(b"\n"):
                self.stop()
                late = (-signal.SIGKILL, -signal.SIGPROF) if hasattr(signal, "SIGPROF") else (1,)
                what = f"takes more than {MAX_SECONDS:g} s" if process.returncode in late else "ends its process"
                raise FileError(f"the model's chat template {what}; {_REMEDY}")
            answers = json.loads(found)
            if any("limit" in answer for answer in answers):
                self.stop()  # what it took is given back
            return answers

    def _running(self) -> subprocess.Popen[bytes]:
        process = self._process
        if process is not None and process.poll() is None:
            return process
        command = [str(sys.executable), "-I", "-S", str(Path(__file__).with_name("chat_template_worker.py"))]
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )
        except OSError as error:
            raise FileError(f"{command[0]}: can't be started to render the chat template: {error}") from error
        self._process = process
        path = json.dumps([str(place) for place in sys.path if Path(place).is_absolute()]).encode() + b"\n"
        if self._said(process, path, _START_SECONDS) != b"{}\n":
            self.stop()
            raise FileError(
                f"jinja2, which renders the model's chat template, can't be imported; pip install jinja2, or {_REMEDY}"
            )
        return process

    def _said(self, process: subprocess.Popen[bytes], line: bytes, seconds: float) -> bytes:
        """The line with which the process answers; none where it ends before, as it does when the time is over."""
        assert process.stdin and process.stdout
        timer = threading.Timer(seconds, process.kill)
        timer.daemon = True
        timer.start()
        try:
            with contextlib.suppress(OSError):  # it is gone
                process.stdin.write(line)
                process.stdin.flush()
            return process.stdout.readline()
        except BaseException:
            self.stop()
            raise
        finally:
            timer.cancel()

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()  # one that ends by itself keeps its code
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe
                with contextlib.suppress(OSError):  # what wasn't read any more
                    pipe.close()

    def forked(self) -> None:
        """In a fork: leave the parent's process to it, and a lock that another thread of the parent's may have held."""
        # Kept: closing it would write out what the parent is about to, and can wait for a lock without end.
        self._inherited, self._process, self._lock = self._process or self._inherited, None, threading.Lock()
        if self._inherited is not None:
            for pipe in (self._inherited.stdin, self._inherited.stdout):
                with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("r+b", buffering=0) as nothing:
                    assert pipe
                    os.dup2(nothing.fileno(), pipe.fileno(), inheritable=False)


_WORKER = _Worker()
atexit.register(_WORKER.stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_WORKER.forked)
