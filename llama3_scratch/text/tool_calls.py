"""Tool calls: how an assistant writes them, in Meta's formats and in Hermes', and how they are read back out of its
text."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

from llama3_scratch.errors import UsageError

TOOL_FORMATS = ("json", "function_tag", "python_list")
# Meta's built-in tools have a text of their own in whatever format: a query each, or the code itself.
QUERY_TOOLS = ("brave_search", "wolfram_alpha", "photogen")
CODE_TOOL = "code_interpreter"


def tool_text(name: str, arguments: dict[str, Any], tool_format: str = "json") -> str:
    """How an assistant writes a tool call (Meta's `ToolUtils.encode_tool_call`, its unescaped quotes included)."""
    if tool_format not in TOOL_FORMATS:
        raise UsageError(f"the tool format must be one of {', '.join(TOOL_FORMATS)}, got {tool_format!r}")
    if name in QUERY_TOOLS or name == CODE_TOOL:
        key = "code" if name == CODE_TOOL else "query"
        if not isinstance(arguments.get(key), str):
            raise UsageError(f"a call of {name} must have {key}, a string, among its arguments, got {arguments!r}")
        return arguments["code"] if name == CODE_TOOL else f'{name}.call(query="{arguments["query"]}")'
    if tool_format == "json":
        return _json(name, {"type": "function", "name": name, "parameters": arguments}, ensure_ascii=True)
    if tool_format == "function_tag":
        return f"<function={name}>{_json(name, arguments, ensure_ascii=True)}</function>"
    return f"[{name}({', '.join(f'{key}={_python(value)}' for key, value in arguments.items())})]"


def template_text(name: str, arguments: dict[str, Any]) -> str:
    """How the chat template of Hugging Face's Llama 3.1 and 3.2 writes a tool call."""
    return _json(name, {"name": name, "parameters": arguments})


def hermes_text(name: str, arguments: dict[str, Any]) -> str:
    """How an assistant that chats in ChatML writes a tool call, as Hermes and Qwen do."""
    return f"<tool_call>\n{_json(name, {'name': name, 'arguments': arguments})}\n</tool_call>"


def _json(name: str, value: dict[str, Any], *, ensure_ascii: bool = False) -> str:
    try:
        return json.dumps(value, ensure_ascii=ensure_ascii)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"the arguments of tool call {name} must be JSON: {error}") from error


def parse_tool_calls(text: str, *, tags_only: bool = False) -> list[dict[str, Any]]:
    """The tool calls that an answer consists of; none where it is anything but calls. `tags_only`: no other form counts
    than the <tool_call> with which ChatML has them."""
    text = text.strip()
    parses = (_parse_tool_call_tags, _parse_function_tags, _parse_json, _parse_python_list, _parse_query)
    for parse in parses[:1] if tags_only else parses:
        calls = parse(text)
        if calls:
            return [{"name": name, "arguments": arguments} for name, arguments in calls]
    return []


def name_and_arguments(call: Any) -> tuple[str, dict[str, Any]]:
    """(name, arguments) of a message's tool call, ours or OpenAI's."""
    called = function_of(call)
    if called is None:
        raise UsageError(f'a tool call must be {{"name": …, "arguments": {{…}}}}, got {call!r}')
    arguments = _arguments(called.get("arguments"))
    if arguments is None:
        raise UsageError(f"the arguments of tool call {called['name']} must be an object, got {called['arguments']!r}")
    return called["name"], arguments


def function_of(call: Any) -> Mapping[str, Any] | None:
    """The part of a tool call that has name and arguments: itself, or in OpenAI's shape what is under `function`."""
    if isinstance(call, Mapping) and isinstance(call.get("function"), Mapping):
        call = call["function"]
    return call if isinstance(call, Mapping) and isinstance(call.get("name"), str) else None


def _arguments(value: Any) -> dict[str, Any] | None:
    """A tool call's arguments as an object: null, nothing and an empty list are none, OpenAI has JSON in a string."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except (ValueError, RecursionError):
            return None
    return {} if value is None or value == [] else value if isinstance(value, dict) else None


def _python(value: Any) -> str:
    """An argument in the python_list format."""
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list):
        return f"[{', '.join(map(_python, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}={_python(item)}' for key, item in value.items())}}}"
    if value is None or isinstance(value, int | float):
        return str(value)
    raise UsageError(f"a tool call's argument must be JSON, got {value!r}")


def _parse_tool_call_tags(text: str) -> list[tuple[str, Any]]:
    calls = []
    while text:
        opened = re.match(r"<tool_call>\s*", text)
        if not opened:
            return []
        value, rest = _json_head(text[opened.end() :])
        call = _call(value)
        if call is None:
            return []
        calls.append(call)
        text = rest.removeprefix("</tool_call>").lstrip()
    return calls


def _parse_function_tags(text: str) -> list[tuple[str, Any]]:
    calls = []
    while text:
        opened = re.match(r"<function=([^<>{}]+)>\s*", text)
        if not opened:
            return []
        value, rest = _json_head(text[opened.end() :])
        arguments = _arguments(value)
        if arguments is None or (value is None and not rest.startswith("</function>")):
            return []
        calls.append((opened[1], arguments))
        text = rest.removeprefix("</function>").lstrip()
    return calls


def _parse_json(text: str) -> list[tuple[str, Any]]:
    calls = []
    while text:
        value, text = _json_head(text)
        for each in value if isinstance(value, list) else [value]:
            call = _call(each)
            if call is None:
                return []
            calls.append(call)
        text = text.removeprefix(";").lstrip()  # several calls come one after the other, or in a list
    return calls


def _call(value: Any) -> tuple[str, dict[str, Any]] | None:
    """(name, arguments) of a tool call that is an object of JSON; None where it is no call."""
    called = function_of(value)
    if called is None or not (_says_call(value) or _says_call(called)):
        return None
    given = (called.get(key) for key in ("parameters", "arguments"))
    arguments = _arguments(next((each for each in given if each is not None), None))
    return None if arguments is None else (called["name"], arguments)


def _says_call(value: Mapping[str, Any]) -> bool:
    """Whether an object with a name is a tool call: any other JSON may have a name too."""
    return value.get("type") == "function" or "parameters" in value or "arguments" in value


def _json_head(text: str) -> tuple[Any, str]:
    """The JSON value that a text begins with, and the rest; (None, text) where there is none.

    A line end inside a string, which models write and JSON forbids, is taken for what it is.
    """
    try:
        value, end = json.JSONDecoder(strict=False).raw_decode(text)
    except (ValueError, RecursionError):
        return None, text
    return value, text[end:].lstrip()


def _parse_python_list(text: str) -> list[tuple[str, Any]]:
    if not (text.startswith("[") and text.endswith("]")):
        return []
    try:
        calls = ast.parse(text, mode="eval").body
        if not isinstance(calls, ast.List):
            return []
        parsed = []
        for call in calls.elts:
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
                return []
            arguments = {item.arg: ast.literal_eval(item.value) for item in call.keywords}
            if None in arguments:  # f(**x)
                return []
            parsed.append((call.func.id, arguments))
        return parsed
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return []


def _parse_query(text: str) -> list[tuple[str, Any]]:
    found = re.fullmatch(r'(\w+)\.call\(query="(.*)"\)', text, re.DOTALL)
    return [(found[1], {"query": found[2]})] if found else []
