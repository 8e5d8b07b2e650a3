"""Chats ↔ token ids, message by message: what a user types can't become a control token.

A message is a dict, as JSON has it: `role` (system, user, assistant or tool) and `content`; an assistant's may have
`tool_calls`, each `{"name": …, "arguments": {…}}`, and `stop_reason` "end_of_message" where it waits for a tool.
The layout is Meta's `ChatFormat` or, for `chat_format` "chatml", SmolLM2's template.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from llama3_scratch.errors import UsageError
from llama3_scratch.tokenizer import Tokenizer

Message = Mapping[str, Any]

ROLES = ("system", "user", "assistant", "tool")
STOP_REASONS = ("end_of_turn", "end_of_message", "out_of_tokens")
TOOL_FORMATS = ("json", "function_tag", "python_list")
# Meta's built-in tools have a text of their own in whatever format: a query each, or the code itself.
QUERY_TOOLS = ("brave_search", "wolfram_alpha", "photogen")
CODE_TOOL = "code_interpreter"
_MAY_FOLLOW = {
    None: ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}


def encode_dialog(
    messages: Sequence[Message], tokenizer: Tokenizer, *, tool_format: str = "json", date: str | None = None
) -> list[int]:
    """Ids of the prompt that asks for the assistant's next message.

    `date` ("26 Jul 2024") lays a Llama 3 chat out as Hugging Face's 3.1 template does: a system message that begins
    with the knowledge cutoff and today's date, every content stripped. Without it, as Meta does: nothing is added.
    """
    check_order(messages)
    if tokenizer.chat_format is None:
        raise UsageError("this tokenizer has no chat format, so its model completes text; take an instruct model")
    if tokenizer.chat_format == "chatml":
        if date is not None:
            raise UsageError("a date goes into Llama 3's system message; this model chats in ChatML, leave it out")
        if messages[0]["role"] != "system" and tokenizer.system_prompt is not None:
            messages = [{"role": "system", "content": tokenizer.system_prompt}, *messages]
        return [*(id for message in messages for id in encode_message(message, tokenizer)), *open_answer(tokenizer)]
    if date is not None:
        messages = _dated(messages, date)
    return [
        tokenizer.special("<|begin_of_text|>"),
        *(id for message in messages for id in encode_message(message, tokenizer, tool_format=tool_format)),
        *open_answer(tokenizer),
    ]


def open_answer(tokenizer: Tokenizer) -> list[int]:
    """Ids behind which the assistant's next message is written."""
    if tokenizer.chat_format == "chatml":
        return [tokenizer.special("<|im_start|>"), *_text("assistant\n", tokenizer)]
    return _header("assistant", tokenizer)


def encode_answer(message: Message, tokenizer: Tokenizer) -> list[int]:
    """Ids of an assistant's message as it would write them: from behind its header to the token that ends it."""
    if tokenizer.chat_format == "chatml":
        return [*_text(_parts(message)[1], tokenizer), tokenizer.special("<|im_end|>")]
    return encode_message(message, tokenizer)[len(open_answer(tokenizer)) :]


def encode_message(message: Message, tokenizer: Tokenizer, *, tool_format: str = "json") -> list[int]:
    """Ids of one message, from its header to the token that ends it."""
    role, content, calls = _parts(message)
    if tokenizer.chat_format == "chatml":
        if calls:
            raise UsageError("ChatML has no tool calls here; write them into the message's content")
        body = _text(f"{role}\n{content}", tokenizer)
        end = [tokenizer.special("<|im_end|>"), *_text("\n", tokenizer)]
        return [tokenizer.special("<|im_start|>"), *body, *end]
    waits = role == "assistant" and message.get("stop_reason") == "end_of_message"
    return [
        *_header("ipython" if role == "tool" else role, tokenizer),
        *([tokenizer.special("<|python_tag|>")] if calls and calls[0][0] == CODE_TOOL else []),
        *_text(content, tokenizer),
        *(id for name, arguments in calls for id in _text(tool_text(name, arguments, tool_format), tokenizer)),
        tokenizer.special("<|eom_id|>" if waits else "<|eot_id|>"),
    ]


def tool_text(name: str, arguments: dict[str, Any], tool_format: str = "json") -> str:
    """How an assistant writes a tool call (Meta's `ToolUtils.encode_tool_call`, its unescaped quotes included)."""
    if tool_format not in TOOL_FORMATS:
        raise UsageError(f"the tool format must be one of {', '.join(TOOL_FORMATS)}, got {tool_format!r}")
    if name in QUERY_TOOLS or name == CODE_TOOL:
        key = "code" if name == CODE_TOOL else "query"
        if not isinstance(arguments.get(key), str):
            raise UsageError(f"a call of {name} must have {key}, a string, among its arguments, got {arguments!r}")
        return arguments["code"] if name == CODE_TOOL else f'{name}.call(query="{arguments["query"]}")'
    try:
        if tool_format == "json":
            return json.dumps({"type": "function", "name": name, "parameters": arguments})
        if tool_format == "function_tag":
            return f"<function={name}>{json.dumps(arguments)}</function>"
    except (TypeError, ValueError) as error:
        raise UsageError(f"the arguments of tool call {name} must be JSON: {error}") from error
    return f"[{name}({', '.join(f'{key}={_python(value)}' for key, value in arguments.items())})]"


def decode_message(ids: Sequence[int], tokenizer: Tokenizer) -> dict[str, Any]:
    """The message that an assistant's ids mean: its text, or the tool calls in any of the four formats.

    `stop_reason` is Meta's: "end_of_turn", "end_of_message" (it waits for a tool) or "out_of_tokens".
    """
    special = tokenizer.special_tokens
    body = list(ids)
    reason = "out_of_tokens"
    if body and body[-1] in tokenizer.stop_tokens:
        reason = "end_of_message" if body.pop() == special.get("<|eom_id|>") else "end_of_turn"
    tagged = bool(body) and body[0] == special.get("<|python_tag|>")
    text = tokenizer.decode(body[1:] if tagged else body)
    calls = parse_tool_calls(text) if tokenizer.chat_format == "llama3" else []
    if tagged and not calls:
        calls = [{"name": CODE_TOOL, "arguments": {"code": text}}]
    message: dict[str, Any] = {"role": "assistant", "content": "" if calls else text, "stop_reason": reason}
    return message | ({"tool_calls": calls} if calls else {})


def parse_tool_calls(text: str) -> list[dict[str, Any]]:
    """The tool calls that an answer consists of; none where it is anything but calls."""
    text = text.strip()
    for parse in (_parse_function_tags, _parse_json, _parse_python_list, _parse_query):
        calls = parse(text)
        if calls:
            return [{"name": name, "arguments": arguments} for name, arguments in calls]
    return []


def check_order(messages: Sequence[Message]) -> None:
    """Raise UsageError unless the messages are a chat whose next message is the assistant's."""
    if not messages:
        raise UsageError("the chat is empty, expected at least a message of the user")
    before = None
    for index, message in enumerate(messages):
        role, content, _ = _parts(message)
        if role not in _MAY_FOLLOW[before]:
            place = f"after {before}" if before else "first"
            raise UsageError(f"message {index} is of role {role}, expected {' or '.join(_MAY_FOLLOW[before])} {place}")
        before = role
    if before not in ("user", "tool"):
        raise UsageError(f"the last message is of role {before}, expected user or tool, to which the assistant answers")
    if before == "user" and not content:
        raise UsageError("the user's message is empty, expected a prompt; say something")


def _parts(message: Message) -> tuple[str, str, list[tuple[str, dict[str, Any]]]]:
    """(role, content, tool calls) of a message that is well formed, else UsageError."""
    unknown = set(message) - {"role", "content", "tool_calls", "stop_reason"}
    if unknown or "role" not in message:
        what = f"unknown key {min(unknown)!r}" if unknown else "no role"
        raise UsageError(f"a message has {what}; expected role and content, or tool_calls and stop_reason")
    role, content, calls = message["role"], message.get("content"), message.get("tool_calls") or []
    if role not in ROLES:
        raise UsageError(f"a message's role must be one of {', '.join(ROLES)}, got {role!r}")
    if calls and role != "assistant":
        raise UsageError(f"a message of role {role} has tool_calls, expected them from the assistant alone")
    if not isinstance(content, str) and not (content is None and calls):
        raise UsageError(f"the content of a message must be a string, got {content!r}")
    if message.get("stop_reason") not in (None, *STOP_REASONS):
        raise UsageError(f"stop_reason must be one of {', '.join(STOP_REASONS)}, got {message['stop_reason']!r}")
    named = []
    for call in calls:
        if not isinstance(call, Mapping) or not isinstance(call.get("name"), str):
            raise UsageError(f'a tool call must be {{"name": …, "arguments": {{…}}}}, got {call!r}')
        arguments = call.get("arguments", {})
        if not isinstance(arguments, dict):
            raise UsageError(f"the arguments of tool call {call['name']} must be an object, got {arguments!r}")
        named.append((call["name"], arguments))
    return role, content or "", named


def _dated(messages: Sequence[Message], date: str) -> list[Message]:
    block = f"Cutting Knowledge Date: December 2023\nToday Date: {date}\n\n"
    system = messages[0]["content"].strip() if messages[0]["role"] == "system" else ""
    rest = messages[1:] if messages[0]["role"] == "system" else messages
    stripped = [{**message, "content": (message.get("content") or "").strip()} for message in rest]
    return [{"role": "system", "content": block + system}, *stripped]


def _header(role: str, tokenizer: Tokenizer) -> list[int]:
    start, end = tokenizer.special("<|start_header_id|>"), tokenizer.special("<|end_header_id|>")
    return [start, *_text(role, tokenizer), end, *_text("\n\n", tokenizer)]


def _text(text: str, tokenizer: Tokenizer) -> list[int]:
    return tokenizer.encode(text, bos=False, eos=False)


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


def _parse_function_tags(text: str) -> list[tuple[str, Any]]:
    calls = []
    while text:
        opened = re.match(r"<function=([^<>{}]+)>\s*", text)
        if not opened:
            return []
        value, rest = _json_head(text[opened.end() :])
        if not isinstance(value, dict):
            return []
        calls.append((opened[1], value))
        text = rest.removeprefix("</function>").lstrip()
    return calls


def _parse_json(text: str) -> list[tuple[str, Any]]:
    calls = []
    while text:
        value, text = _json_head(text)
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            return []
        arguments = value.get("parameters", value.get("arguments"))
        if not isinstance(arguments, dict):
            return []
        calls.append((value["name"], arguments))
        text = text.removeprefix(";").lstrip()  # several calls come one after the other
    return calls


def _json_head(text: str) -> tuple[Any, str]:
    """The JSON value that a text begins with, and the rest; (None, text) where there is none."""
    try:
        value, end = json.JSONDecoder().raw_decode(text)
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
