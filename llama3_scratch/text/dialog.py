"""Chats ↔ token ids, message by message: what a user types can't become a control token.

A message is a dict, as JSON has it: `role` (system, user, assistant or tool) and `content`; an assistant's may have
`tool_calls`, each `{"name": …, "arguments": {…}}` or as OpenAI has it, and `stop_reason` "end_of_message" where it
waits for a tool. The layout is Meta's `ChatFormat` or, for `chat_format` "chatml", SmolLM2's template; for "template"
it's what the model's own template makes (`chat_template`). What a client of OpenAI's API sends becomes such messages in
`openai_messages`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama3_scratch.errors import UsageError
from llama3_scratch.text.chat_template import encode_chat, render
from llama3_scratch.text.detokenizer import text_of
from llama3_scratch.text.tokenizer import Tokenizer
from llama3_scratch.text.tool_calls import CODE_TOOL, function_of, name_and_arguments, parse_tool_calls, tool_text
from llama3_scratch.text.tool_prompts import (
    Message,
    Tool,
    hermes_content,
    hermes_messages,
    hugging_face_messages,
    meta_messages,
)

ROLES = ("system", "user", "assistant", "tool")
STOP_REASONS = ("end_of_turn", "end_of_message", "out_of_tokens")


def encode_dialog(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    *,
    tools: Sequence[Tool] = (),
    tool_format: str = "json",
    date: str | None = None,
    continue_last: bool = False,
) -> list[int]:
    """Ids of the prompt that asks for the assistant's next message.

    `tools`, each `{"type": "function", "function": {"name", "description", "parameters"}}`, are what it may call.
    `tool_format` is which of Meta's formats for calls is in use. `date` ("26 Jul 2024") is today's for a template that
    asks; it lays a Llama 3 chat without one out as Hugging Face's 3.1 template does: a system message that begins with
    the knowledge cutoff and today's date, every content stripped. Without it, as Meta does: nothing is added.
    `continue_last`: the last message is the beginning of the assistant's, which goes on from there.
    """
    check_order(messages, continue_last=continue_last)
    if tokenizer.chat_format == "template":
        assert tokenizer.chat_template
        if tool_format != "json":
            raise UsageError(f"the tool format {tool_format} goes with Meta's chat format; a chat template has its own")
        return encode_chat(
            [_plain(message) for message in messages],
            tokenizer.chat_template,
            tokenizer,
            tools=tools,
            add_generation_prompt=not continue_last,
            continue_last=continue_last,
            date=date,
        )
    opening, messages = _opening(messages, tokenizer, date, tools, tool_format)
    ids = opening
    for message in messages[:-1] if continue_last else messages:
        ids += encode_message(message, tokenizer, tool_format=tool_format)
    begun = messages[-1]["content"] if continue_last else ""
    return ids + _open_answer(tokenizer, begun)


def encode_conversation(
    messages: Sequence[Message], tokenizer: Tokenizer, *, date: str | None = None
) -> tuple[list[int], list[bool]]:
    """Ids of a chat to learn from, and of each whether the assistant writes it: all of an answer behind its header,
    with the token that ends it. `date` is as of `encode_dialog`.

    Raises UsageError for a chat without an answer, and where a template doesn't say where answers begin and end.
    """
    check_messages(messages)
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        raise UsageError("the chat has no message of the assistant, so there is nothing to learn")
    if tokenizer.chat_format == "template":
        return _templated_conversation([_plain(message) for message in messages], answers, tokenizer, date)
    opening, messages = _opening(messages, tokenizer, date)
    parts = [(opening, False)]
    for message in messages:
        ids = encode_message(message, tokenizer)
        if message["role"] != "assistant":
            parts.append((ids, False))
            continue
        header = _open_answer(tokenizer)
        if tokenizer.chat_format == "chatml":  # the line end behind an answer isn't the assistant's to write
            body = [*_text(message["content"], tokenizer), tokenizer.special("<|im_end|>")]
            parts += [(header, False), (body, True), (ids[-1:], False)]
        else:
            parts += [(header, False), (ids[len(header) :], True)]
    if tokenizer.chat_format == "chatml" and messages[-1]["role"] == "assistant":
        parts.pop()
    return [id for ids, _ in parts for id in ids], [written for ids, written in parts for _ in ids]


def _templated_conversation(
    messages: list[Message], answers: list[int], tokenizer: Tokenizer, date: str | None
) -> tuple[list[int], list[bool]]:
    """As `encode_conversation`: an answer is what the template writes from a prompt's end to the next stop token."""
    assert tokenizer.chat_template
    if answers[0] == 0:
        raise UsageError("the chat begins with an answer, expected a message before it, which the template opens with")
    chats: list[tuple[Sequence[Message], bool]] = [(messages[:index], True) for index in answers]
    *prompts, whole = render([*chats, (messages, False)], tokenizer.chat_template, tokenizer, date=date)
    parts, done = [], 0
    for number, (index, prompt) in enumerate(zip(answers, prompts, strict=True)):
        begin = len(prompt.text)
        if not whole.text.startswith(prompt.text) or begin < done:
            raise UsageError(
                f"the model's chat template lays the chat before message {index} out otherwise once that answer is "
                "there, so what the assistant writes can't be told; take the chat format llama3 or chatml"
            )
        end = whole.find(tokenizer.stop_tokens, tokenizer, begin)
        if end < 0 or any(len(later.text) < end for later in prompts[number + 1 :]):
            raise UsageError(
                f"the model's chat template ends message {index} with none of its stop tokens, so a model that learns "
                "such answers would never stop; take the chat format llama3 or chatml"
            )
        parts += [(whole[done:begin].ids(tokenizer), False), (whole[begin:end].ids(tokenizer), True)]
        done = end
    if len(messages) > answers[-1] + 1:
        parts.append((whole[done:].ids(tokenizer), False))
    return [id for ids, _ in parts for id in ids], [written for ids, written in parts for _ in ids]


def _opening(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    date: str | None,
    tools: Sequence[Tool] = (),
    tool_format: str = "json",
) -> tuple[list[int], Sequence[Message]]:
    """What comes before the first message: ids, and the messages with the system prompt that none of them replaces and
    all that is said of tools."""
    if tokenizer.chat_format is None:
        raise UsageError("this tokenizer has no chat format, so its model completes text; take an instruct model")
    if tokenizer.chat_format == "llama3":
        opening = [tokenizer.special("<|begin_of_text|>")]
        if date is None:
            return opening, meta_messages(messages, tools, tool_format)
        if tool_format != "json":
            raise UsageError(f"the tool format {tool_format} goes without a date, which brings a format of its own")
        return opening, hugging_face_messages(messages, tools, date)
    if date is not None:
        raise UsageError("a date goes into Llama 3's system message; this model chats in ChatML, leave it out")
    if tool_format != "json":
        raise UsageError(f"the tool format {tool_format} goes with Meta's chat format; ChatML has its own")
    messages = hermes_messages(messages, tools, tokenizer.system_prompt)
    if messages[0]["role"] != "system" and tokenizer.system_prompt is not None:
        messages = [{"role": "system", "content": tokenizer.system_prompt}, *messages]
    return [], messages


def _open_answer(tokenizer: Tokenizer, begun: str = "") -> list[int]:
    """Ids behind which the assistant's next message is written, of which a beginning may be there."""
    if tokenizer.chat_format == "chatml":
        return [tokenizer.special("<|im_start|>"), *_text(f"assistant\n{begun}", tokenizer)]
    return [*_header("assistant", tokenizer), *_text(begun, tokenizer)]


def encode_message(message: Message, tokenizer: Tokenizer, *, tool_format: str = "json") -> list[int]:
    """Ids of one message as the chat format llama3 or chatml lays it out, from its header to the token that ends it."""
    role, content, calls = _parts(message)
    if tokenizer.chat_format == "template":
        raise UsageError("a chat template lays out whole chats, not one message; take encode_dialog")
    if tokenizer.chat_format == "chatml":
        body = _text(f"{role}\n{hermes_content(content, message.get('tool_calls') or [])}", tokenizer)
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


def decode_message(ids: Sequence[int], tokenizer: Tokenizer) -> dict[str, Any]:
    """The message that an assistant's ids mean: its text, or its tool calls in any of Meta's four formats or in
    Hermes', which is the one that ChatML has.

    `stop_reason` is Meta's: "end_of_turn", "end_of_message" (it waits for a tool) or "out_of_tokens".
    """
    special = tokenizer.special_tokens
    body = list(ids)
    reason = "out_of_tokens"
    if body and body[-1] in tokenizer.stop_tokens:
        reason = "end_of_message" if body.pop() == special.get("<|eom_id|>") else "end_of_turn"
    tagged = bool(body) and body[0] == special.get("<|python_tag|>")
    text = text_of(body[1:] if tagged else body, tokenizer)
    calls = parse_tool_calls(text, tags_only=tokenizer.chat_format == "chatml") if tokenizer.chat_format else []
    if tagged and not calls:
        calls = [{"name": CODE_TOOL, "arguments": {"code": text}}]
    message: dict[str, Any] = {"role": "assistant", "content": "" if calls else text, "stop_reason": reason}
    return message | ({"tool_calls": calls} if calls else {})


def check_order(messages: Sequence[Message], *, continue_last: bool = False) -> None:
    """Raise UsageError unless the messages are a chat that the assistant can answer, in whatever order they come; with
    `continue_last`, one whose last message it can go on with."""
    check_messages(messages)
    if continue_last:
        if messages[-1]["role"] != "assistant" or messages[-1].get("tool_calls"):
            what = "has tool calls" if messages[-1].get("tool_calls") else f"is of role {messages[-1]['role']}"
            raise UsageError(
                f"the last message {what}, expected the beginning of one of the assistant's, which is to be continued"
            )
        return
    if messages[-1]["role"] == "assistant":
        raise UsageError(
            "the last message is of role assistant, expected one to which the assistant answers; leave it out to have "
            "it written anew, or add the user's next"
        )
    if messages[-1]["role"] == "user" and not messages[-1]["content"]:
        raise UsageError("the user's message is empty, expected a prompt; say something")


def check_messages(messages: Sequence[Message]) -> None:
    """Raise UsageError unless there are messages, each of them well formed."""
    if not messages:
        raise UsageError("the chat is empty, expected at least a message of the user")
    for message in messages:
        _parts(message)


def _plain(message: Message) -> Message:
    """The message, checked, with its tool calls as `{"name", "arguments"}`.

    Arguments in a string stay so: some templates want JSON, some an object, and transformers hands on either.
    """
    _, _, calls = _parts(message)
    if not calls:
        return message
    named = []
    for call, (name, arguments) in zip(message["tool_calls"], calls, strict=True):
        given = (function_of(call) or {}).get("arguments")
        text = {"arguments": given} if isinstance(given, str) else {}
        named.append({**({"id": call["id"]} if "id" in call else {}), "name": name, "arguments": arguments, **text})
    return {**message, "tool_calls": named}


def _parts(message: Message) -> tuple[str, str, list[tuple[str, dict[str, Any]]]]:
    """(role, content, tool calls) of a message that is well formed, else UsageError."""
    known = {"role", "content", "tool_calls", "stop_reason"}
    if message.get("role") == "tool":
        known |= {"name", "tool_call_id"}  # as OpenAI has them; a template may show them
    if (unknown := set(message) - known) or "role" not in message:
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
    return role, content or "", [name_and_arguments(call) for call in calls]


def _header(role: str, tokenizer: Tokenizer) -> list[int]:
    start, end = tokenizer.special("<|start_header_id|>"), tokenizer.special("<|end_header_id|>")
    return [start, *_text(role, tokenizer), end, *_text("\n\n", tokenizer)]


def _text(text: str, tokenizer: Tokenizer) -> list[int]:
    return tokenizer.encode(text, bos=False, eos=False)
