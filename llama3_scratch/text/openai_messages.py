"""What a client of OpenAI's API sends, `messages` and `tools`, → the messages and tools of `dialog`.

Whatever is harmless and unknown here (`name` of a user, `refusal`, `audio`, `cache_control` …) is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from llama3_scratch.errors import UsageError
from llama3_scratch.text.tool_calls import function_of, name_and_arguments
from llama3_scratch.text.tool_prompts import Message, Tool

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
MAX_DEPTH = 64  # of the JSON in arguments and parameters, which is written out again and again


class RequestError(UsageError):
    """A field of a request can't be used; `param` names it as OpenAI's errors do, `messages[3].content`."""

    def __init__(self, param: str, wrong: str) -> None:
        super().__init__(f"{param} {wrong}")
        self.param = param


def dialog_of(messages: Any) -> list[Message]:
    """The messages of a chat; RequestError names the field that is none.

    Content is a text or a list of text parts, which are joined by line ends; beside tool calls it may be null. A
    developer is a system. Roles come in any order; the last message may be the assistant's, to be continued.
    """
    if not isinstance(messages, list):
        raise RequestError("messages", f"must be a list of messages, got {_shown(messages)}")
    if not messages:
        raise RequestError("messages", "is empty, expected at least a message of the user")
    dialog = [_message(message, f"messages[{index}]") for index, message in enumerate(messages)]
    if dialog[-1]["role"] == "user" and not dialog[-1]["content"]:
        raise RequestError(f"messages[{len(dialog) - 1}].content", "is empty, expected a prompt; say something")
    return dialog


def tools_of(tools: Any) -> list[Tool]:
    """The functions that a model may call, of which name, description and parameters stay; none for null."""
    if tools is None:
        return []
    if not isinstance(tools, list):
        raise RequestError("tools", f"must be a list of tools, got {_shown(tools)}")
    found: dict[str, Tool] = {}
    for index, tool in enumerate(tools):
        function = _function(tool, f"tools[{index}]")
        if function["name"] in found:
            raise RequestError(f"tools[{index}].function.name", f"is {function['name']!r} a second time")
        found[function["name"]] = {"type": "function", "function": function}
    return list(found.values())


def tool_names(tools: list[Tool]) -> frozenset[str]:
    """The names under which the tools may be called."""
    return frozenset(tool["function"]["name"] for tool in tools)


def _message(message: Any, place: str) -> Message:
    if not isinstance(message, Mapping):
        raise RequestError(place, f"must be an object with role and content, got {_shown(message)}")
    if "role" not in message:
        raise RequestError(f"{place}.role", f"is missing, expected one of {', '.join(_ROLES)}")
    role = _ROLES.get(message["role"]) if isinstance(message["role"], str) else None
    if role is None:
        raise RequestError(f"{place}.role", f"must be one of {', '.join(_ROLES)}, got {_shown(message['role'])}")
    calls = _calls(message.get("tool_calls"), role, f"{place}.tool_calls")
    said: dict[str, Any] = {"role": role}
    if message.get("content") is None and calls:
        said["content"] = None
    else:
        said["content"] = _content(message.get("content"), role, f"{place}.content")
    if calls:
        said["tool_calls"] = calls
    if role == "tool":
        for key in ("tool_call_id", "name"):  # a template may show them
            if (value := message.get(key)) is not None:
                said[key] = _text(value, f"{place}.{key}")
    return said


def _content(content: Any, role: str, place: str) -> str:
    if isinstance(content, str):
        return _text(content, place)
    if not isinstance(content, list) or not content:
        without = ", or null beside tool_calls" if role == "assistant" else ""
        raise RequestError(place, f"must be a text or a list of text parts{without}, got {_shown(content)}")
    texts = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if not isinstance(part, Mapping) or kind != "text":
            got = f"one of type {_shown(kind)}" if isinstance(part, Mapping) else _shown(part)
            raise RequestError(f"{place}[{index}]", f"must be a part of type text, which alone is read here, got {got}")
        texts.append(_text(part.get("text"), f"{place}[{index}].text"))
    return "\n".join(texts)


def _calls(calls: Any, role: str, place: str) -> list[dict[str, Any]]:
    if calls is None or calls == []:
        return []
    if role != "assistant":
        raise RequestError(place, f"goes with a message of the assistant, this one's role is {role}")
    if not isinstance(calls, list):
        raise RequestError(place, f"must be a list of tool calls, got {_shown(calls)}")
    return [_one_call(call, f"{place}[{index}]") for index, call in enumerate(calls)]


def _one_call(call: Any, place: str) -> dict[str, Any]:
    called = function_of(call)
    if called is None:
        raise RequestError(f"{place}.function", f"must have a name and arguments, got {_shown(call)}")
    try:
        name, arguments = name_and_arguments(call)
    except UsageError as error:
        where, got = f"{place}.function.arguments", _shown(called["arguments"])
        raise RequestError(where, f"must be an object, or a text that is one in JSON, got {got}") from error
    _check_depth(arguments, f"{place}.function.arguments")
    given = called.get("arguments")
    # A text stays one: templates get what transformers would hand on.
    function = {
        "name": _text(name, f"{place}.function.name"),
        "arguments": given if isinstance(given, str) else arguments,
    }
    return {**({"id": _text(call["id"], f"{place}.id")} if call.get("id") is not None else {}),
            "type": "function", "function": function}  # fmt: skip


def _function(tool: Any, place: str) -> dict[str, Any]:
    if not isinstance(tool, Mapping):
        raise RequestError(place, f'must be {{"type": "function", "function": {{…}}}}, got {_shown(tool)}')
    if tool.get("type") != "function":
        raise RequestError(f"{place}.type", f"must be function, got {_shown(tool.get('type'))}")
    function = tool.get("function")
    if not isinstance(function, Mapping):
        raise RequestError(f"{place}.function", f"must be an object with a name, got {_shown(function)}")
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        wanted = "must be 1 to 64 letters, digits, underscores and dashes"
        raise RequestError(f"{place}.function.name", f"{wanted}, got {_shown(name)}")
    if function.get("description") is not None:
        _text(function["description"], f"{place}.function.description")
    if function.get("parameters") is not None:
        if not isinstance(function["parameters"], Mapping):
            got = _shown(function["parameters"])
            raise RequestError(f"{place}.function.parameters", f"must be a JSON schema, an object, got {got}")
        _check_depth(function["parameters"], f"{place}.function.parameters")
    known = ("name", "description", "parameters")  # in the order in which they come: a template shows it
    return {key: value for key, value in function.items() if key in known and value is not None}


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise RequestError(place, f"must be a text, got {_shown(value)}")
    return value


def _check_depth(value: Any, place: str) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise RequestError(place, f"has objects and lists more than {MAX_DEPTH} deep; write them flatter")
        level = [child for each in level for child in _children(each)]


def _children(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def _shown(value: Any) -> str:
    """A value as JSON would name it, at most a few words of it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return f'"{value[:40]}…"' if len(value) > 40 else f'"{value}"'
    if isinstance(value, int | float):
        return str(value)[:40]
    empty = "an empty " if not value else "an " if isinstance(value, Mapping) else "a "
    return empty + ("object" if isinstance(value, Mapping) else "list")
