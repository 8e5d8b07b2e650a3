"""Tool calls in an answer as it comes: a text that may still become calls is held back, any other goes out at once.

An answer is calls where all of it is, in any of the forms that `tool_calls` reads, and every name is one of the tools';
else it is content to the last character, however it began. A grammar reads it character by character, so that
the pieces in which it comes make no difference and no character is looked at twice.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Callable, Collection, Generator, Sequence
from typing import Any

from llama3_scratch.text.tool_calls import CODE_TOOL, QUERY_TOOLS, parse_tool_calls

PYTHON_TAG = "<|python_tag|>"  # a token of its own, which a detokenizer says by this name
# A part of the grammar is sent characters and gives the one behind what it read; _NotCallsError where that's no calls.
Part = Generator[None, str, str]
_CLOSES = {"{": "}", "[": "]", "(": ")"}
_IN_JSON = frozenset(" \t\r\n,:+-.0123456789truefalsenullNaNInfinity")  # outside its texts and brackets


class ToolCallStream:
    """An answer's text as it comes, and in the end the tool calls that it is.

    `names` are those of the tools that may be called. What `feed` and `finish` give out, one after the other, is the
    answer's content: all of its text, or nothing where it is calls.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = frozenset(names)
        self._held: list[str] = []
        self._content = False
        self._grammar = _answer(self._names)
        next(self._grammar)

    def feed(self, piece: str) -> str:
        """Take the answer's next piece; what of its content is certain now."""
        if self._content:
            return piece
        self._held.append(piece)
        try:
            for character in piece:
                self._grammar.send(character)
        except StopIteration:
            self._content = True
            return self._taken()
        return ""

    def finish(self) -> tuple[str, list[dict[str, Any]]]:
        """The rest of the content and the calls in OpenAI's shape, when no piece follows: of the two one is empty.

        A call is `{"id": "call_…", "type": "function", "function": {"name", "arguments"}}`, the latter JSON in a text.
        """
        text = self._taken()
        calls = [] if self._content else read_calls(text, self._names)
        self._content = True
        return ("", [as_openai(call) for call in calls]) if calls else (text, [])

    def _taken(self) -> str:
        text = "".join(self._held)
        self._held.clear()
        return text


def read_calls(text: str, names: Collection[str]) -> list[dict[str, Any]]:
    """The calls, `{"name", "arguments"}`, of an answer that is nothing but calls of these tools; else none."""
    bare = text.strip()
    tagged = bare.startswith(PYTHON_TAG)
    bare = bare.removeprefix(PYTHON_TAG)
    calls = parse_tool_calls(bare)
    if tagged and not calls:
        calls = [{"name": CODE_TOOL, "arguments": {"code": bare}}]
    return calls if all(call["name"] in names for call in calls) else []


def as_openai(call: dict[str, Any]) -> dict[str, Any]:
    """A call `{"name", "arguments"}` as OpenAI's API has it, with an id of its own."""
    arguments = json.dumps(call["arguments"], ensure_ascii=False)
    function = {"name": call["name"], "arguments": arguments}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


class _NotCallsError(Exception):
    """The characters can't be tool calls, whatever follows."""


def _answer(names: frozenset[str]) -> Generator[None, str, None]:
    """The grammar of an answer: it ends where that can't be calls any more."""
    forms: dict[str, Callable[[str, frozenset[str]], Part]] = {
        "{": _json_calls,
        "[": _list,
        "<function=": _function_tags,
        "<tool_call>": _tool_call_tags,
        **{f'{name}.call(query="': _anything for name in QUERY_TOOLS if name in names},
    }
    with contextlib.suppress(_NotCallsError):
        c = yield from _space((yield))
        begins, c = yield from _one_of(c, [PYTHON_TAG, *forms])
        if begins == PYTHON_TAG:
            if CODE_TOOL in names:
                yield from _anything(c, names)
            c = yield from _space(c)
            begins, c = yield from _one_of(c, list(forms))
        yield from forms[begins](c, names)


def _anything(c: str, names: frozenset[str]) -> Part:
    while True:
        yield


def _json_calls(c: str, names: frozenset[str]) -> Part:
    """Calls as objects of JSON, one after the other, from behind the first one's brace."""
    while True:
        c = yield from _object(c, names)
        c = yield from _space(c)
        if c == ";":
            c = yield from _space((yield))
        if c != "{":
            raise _NotCallsError
        c = yield


def _list(c: str, names: frozenset[str]) -> Part:
    """A list, from behind its bracket, of calls in JSON or in Python."""
    c = yield from _space(c)
    while c != "]":
        if c == "{":
            c = yield from _object((yield), names)
        else:
            _, c = yield from _one_of(c, [f"{name}(" for name in names])
            c = yield from _arguments(c)
        c = yield from _space(c)
        if c == ",":
            c = yield from _space((yield))
        elif c != "]":
            raise _NotCallsError
    yield from _space((yield))
    raise _NotCallsError


def _function_tags(c: str, names: frozenset[str]) -> Part:
    """Calls as <function=name>{…}</function>, from behind the first equals sign."""
    while True:
        _, c = yield from _one_of(c, [f"{name}>" for name in names])
        c = yield from _space(c)
        if c == "{":
            c = yield from _object((yield), None)
        elif c == "n":
            _, c = yield from _one_of(c, ["null"])
        c = yield from _next_tag(c, "</function>", "<function=")


def _tool_call_tags(c: str, names: frozenset[str]) -> Part:
    """Calls as <tool_call>{…}</tool_call>, from behind the first tag."""
    while True:
        c = yield from _space(c)
        if c != "{":
            raise _NotCallsError
        c = yield from _object((yield), names)
        c = yield from _next_tag(c, "</tool_call>", "<tool_call>")


def _next_tag(c: str, close: str, opening: str) -> Part:
    """The end of a call, which models forget, and the beginning of the next."""
    c = yield from _space(c)
    tag, c = yield from _one_of(c, [close, opening])
    if tag == close:
        c = yield from _space(c)
        _, c = yield from _one_of(c, [opening])
    return c


def _object(c: str, names: frozenset[str] | None) -> Part:
    """An object of JSON from behind its brace; where its own `name` is a text, one of the names."""
    c = yield from _space(c)
    if c not in '"}':
        raise _NotCallsError
    closers, last, named = ["}"], "", False
    while closers:
        if c == '"':
            last, c = yield from _string(c)
            if named and len(closers) == 1 and names is not None and "\\" not in last and last not in names:
                raise _NotCallsError
            continue
        if c in "{[":
            closers.append(_CLOSES[c])
        elif c in "}]":
            if closers.pop() != c:
                raise _NotCallsError
        elif c not in _IN_JSON:
            raise _NotCallsError
        if len(closers) == 1 and c in ":,":
            named = c == ":" and last == "name"
        c = yield
    return c


def _arguments(c: str) -> Part:
    """A Python call's arguments from behind the parenthesis."""
    closers = [")"]
    while closers:
        if c in "\"'":
            _, c = yield from _string(c)
            continue
        if c in "{[(":
            closers.append(_CLOSES[c])
        elif c in ")]}" and closers.pop() != c:
            raise _NotCallsError
        c = yield
    return c


def _string(quote: str) -> Generator[None, str, tuple[str, str]]:
    """A text in quotes from its first one: what is inside, as it is written, and the character behind."""
    inside: list[str] = []
    while (c := (yield)) != quote:
        inside.append(c)
        if c == "\\":
            inside.append((yield))
    return "".join(inside), (yield)


def _one_of(c: str, literals: Sequence[str]) -> Generator[None, str, tuple[str, str]]:
    """One of these texts, and the character behind."""
    read = ""
    while True:
        read += c
        literals = [literal for literal in literals if literal.startswith(read)]
        if read in literals:
            return read, (yield)
        if not literals:
            raise _NotCallsError
        c = yield


def _space(c: str) -> Part:
    while c.isspace():
        c = yield
    return c
