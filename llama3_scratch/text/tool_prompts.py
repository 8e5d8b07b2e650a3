"""What a prompt says of tools: in Meta's words for Llama 3.1 and 3.2, in those of Hugging Face's template for them, or
in Hermes' for ChatML.

Each function lays a chat out as plain messages, with the functions' descriptions in the place where its model was
taught to find them; a tool is as OpenAI has it, `{"type": "function", "function": {"name", "description",
"parameters"}}`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from llama3_scratch.errors import UsageError
from llama3_scratch.text.tool_calls import TOOL_FORMATS, hermes_text, name_and_arguments, template_text

Message = Mapping[str, Any]
Tool = Mapping[str, Any]

# Llama 3.1's, by prompt_format.md of the package llama-models.
_ENVIRONMENT = "Environment: ipython"
_JSON = """Answer the user's question by making use of the following functions if needed.
If none of the function can be used, please say so.
Here is a list of functions in JSON format:
{functions}

Return function calls in JSON format."""
_FUNCTION_TAG = """You have access to the following functions:

{functions}

Think very carefully before calling functions.
If you choose to call a function ONLY reply in the following format with no prefix or suffix:

<function=example_function_name>{{"example_name": "example_value"}}</function>

Reminder:
- If looking for real time information use relevant functions before falling back to brave_search
- Function calls MUST follow the specified format, start with <function= and end with </function>
- Required parameters MUST be specified
- Only call one function at a time
- Put the entire function call reply on one line"""
# Llama 3.2's, by text_prompt_format.md.
_PYTHON_LIST = """You are an expert in composing functions. You are given a question and a set of possible functions.
Based on the question, you will need to make one or more function/tool calls to achieve the purpose.
If none of the function can be used, point it out. If the given question lacks the parameters required by the function,
also point it out. You should only return the function call in tools call sections.

If you decide to invoke any of the function(s), you MUST put it in the format of \
[func_name1(params_name1=params_value1, params_name2=params_value2...), func_name2(params)]
You SHOULD NOT include any other text in the response.

Here is a list of functions in JSON format that you can invoke.

{functions}"""
# The chat template that the Hugging Face folders of both have.
_HUGGING_FACE = (
    "Given the following functions, please respond with a JSON for a function call with its proper arguments that best "
    "answers the given prompt.\n\n"
    'Respond in the format {{"name": function name, "parameters": dictionary of argument name and its value}}.'
    "Do not use variables.\n\n{functions}\n\n"
)
# Qwen 2.5's template has the same words.
_HERMES = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{functions}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


def meta_messages(messages: Sequence[Message], tools: Sequence[Tool], tool_format: str) -> Sequence[Message]:
    """The chat as Meta's documents show it: for json and function_tag (3.1) a system message that begins with the
    environment and a user's message of its own with the functions, for python_list (3.2) a system message with both."""
    if tool_format not in TOOL_FORMATS:
        raise UsageError(f"the tool format must be one of {', '.join(TOOL_FORMATS)}, got {tool_format!r}")
    if not tools:
        return messages
    system, rest = _split_system(messages)
    if tool_format == "python_list":
        functions = _json([tool["function"] for tool in tools], indent=4)
        return [_system(system, _PYTHON_LIST.format(functions=functions)), *rest]
    if tool_format == "json":
        text = _JSON.format(functions="\n".join(_json(tool, indent=4) for tool in tools))
    else:
        text = _FUNCTION_TAG.format(functions="\n\n".join(map(_use_the_function, tools)))
    begins = system.startswith("Environment:")
    return [_system(system) if begins else _system(_ENVIRONMENT, system), {"role": "user", "content": text}, *rest]


def _use_the_function(tool: Tool) -> str:
    function = tool["function"]
    return f"Use the function '{function['name']}' to '{function.get('description', '')}':\n{_json(function)}"


def hugging_face_messages(messages: Sequence[Message], tools: Sequence[Tool], date: str) -> list[Message]:
    """The chat as the chat template of Hugging Face's Llama 3.1 and 3.2 lays it out on that date ("26 Jul 2024").

    It strips every content, shows a call alone and not what is said beside it, and a tool's result as JSON. Where the
    chat doesn't begin with the user's message, the functions have one of their own.
    """
    system, rest = _split_system(messages)
    laid_out = [_as_hugging_face(message) for message in rest]
    environment = f"{_ENVIRONMENT}\n" if tools else ""
    if tools:
        text = _HUGGING_FACE.format(functions="\n\n".join(_json(tool, indent=4) for tool in tools))
        if laid_out and laid_out[0]["role"] == "user":
            laid_out[0] = {**laid_out[0], "content": text + laid_out[0]["content"]}
        else:
            laid_out.insert(0, {"role": "user", "content": text.strip()})
    dates = f"Cutting Knowledge Date: December 2023\nToday Date: {date}\n\n"
    return [{"role": "system", "content": environment + dates + system.strip()}, *laid_out]


def _as_hugging_face(message: Message) -> Message:
    role, content = message["role"], message.get("content") or ""
    if calls := message.get("tool_calls"):
        content = "".join(template_text(*name_and_arguments(call)) for call in calls)
    else:
        content = _json(content) if role == "tool" else content.strip()
    return {"role": role, "content": content}


def hermes_messages(messages: Sequence[Message], tools: Sequence[Tool], default: str | None) -> Sequence[Message]:
    """The chat with the functions in its system message, calls as <tool_call> and their results as <tool_response>.

    `default` is what the system message says where the chat has none. A chat without tools and calls stays as it is.
    """
    called = any(message.get("tool_calls") for message in messages)
    if tools:
        system, rest = _split_system(messages)
        if messages[0]["role"] != "system":
            system = default or ""
        text = _HERMES.format(functions="\n".join(map(_json, tools)))
        messages = [_system(system, text), *rest]
    return [_as_hermes(message) for message in messages] if tools or called else messages


def _as_hermes(message: Message) -> Message:
    content = message.get("content") or ""
    if message["role"] == "tool":
        return {"role": "tool", "content": f"<tool_response>\n{content}\n</tool_response>"}
    return {"role": message["role"], "content": hermes_content(content, message.get("tool_calls") or [])}


def hermes_content(content: str, calls: Sequence[Any]) -> str:
    """What an assistant's message says in ChatML: its content, and a <tool_call> for each call."""
    return "\n".join([*([content] if content else []), *(hermes_text(*name_and_arguments(call)) for call in calls)])


def _split_system(messages: Sequence[Message]) -> tuple[str, Sequence[Message]]:
    """The text of the system message that a chat begins with, and the other messages."""
    if messages and messages[0]["role"] == "system":
        return messages[0]["content"], messages[1:]
    return "", messages


def _system(*texts: str) -> Message:
    return {"role": "system", "content": "\n\n".join(text for text in texts if text)}


def _json(value: Any, indent: int | None = None) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, indent=indent)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"a tool must be JSON: {error}") from error
