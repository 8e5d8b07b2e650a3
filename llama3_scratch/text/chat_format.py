"""Which chat format a model has: llama3 or chatml where that gives the same ids as its template, else the template."""

from __future__ import annotations

import itertools
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.text.chat_template import Rendered, render, shows_tools
from llama3_scratch.text.dialog import encode_conversation, encode_dialog
from llama3_scratch.text.hf_added_tokens import NAMED_TOKENS
from llama3_scratch.text.tokenizer import ChatTemplate, Tokenizer

log = logging.getLogger("llama3_scratch")

_CHATS = [("llama3", "<|start_header_id|>", "<|eot_id|>"), ("chatml", "<|im_start|>", "<|im_end|>")]
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}
# Limits of a template that is tried: a number in its code, which may count messages or characters, and every chat tried
# has more of them or fewer; and the texts in its code, which are tried as messages.
_MAX_NUMBER, _MAX_TEXTS = 2, 64


def read_template(folder: Path, settings: dict[str, Any], beside: dict[str, Any]) -> ChatTemplate | None:
    """The chat template of a Hugging Face folder, from where transformers takes it.

    `settings` is tokenizer_config.json, `beside` chat_template.json. Of several templates it's the one named default.
    """
    variables = {}
    for name in NAMED_TOKENS:
        token = settings.get(name)
        if isinstance(text := token.get("content") if isinstance(token, dict) else token, str):
            variables[name] = text
    given = settings.get("chat_template") or beside.get("chat_template")
    if isinstance(given, list):
        given = {str(each.get("name")): each.get("template") for each in given if isinstance(each, dict)}
    files = {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    if (path := folder / "chat_template.jinja").is_file():
        files["default"] = path
    if files:
        given = {name: _text(path) for name, path in files.items()}
    if isinstance(given, dict):
        if given and not isinstance(given.get("default"), str):
            names = ", ".join(map(str, given))
            log.warning("%s: of its chat templates (%s) none is the default, so none is taken", folder, names)
        given = given.get("default")
    return ChatTemplate(given, variables) if isinstance(given, str) else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FileError(f"{path}: byte {error.start} isn't UTF-8, expected a chat template") from error


def chat_settings(
    template: str | None, special_tokens: dict[str, int], stop_tokens: Sequence[int] = ()
) -> tuple[str | None, str | None]:
    """(chat_format, system_prompt) of the format that this template may be, or whose turns end in a stop token."""
    for chat_format, opens, closes in _CHATS:
        if opens in special_tokens and closes in special_tokens:
            if template is None and special_tokens[closes] in stop_tokens:
                return chat_format, None
            if template is not None and opens in template:
                default = re.search(r"<\|im_start\|>system(?:\n|\\n)([^{}+]{1,4000}?)<\|im_end\|>", template)
                return chat_format, default and re.sub(r"\\(.)", lambda c: "\n" if c[1] == "n" else c[1], default[1])
    return None, None


def adopt_template(tokenizer: Tokenizer, template: ChatTemplate | None) -> None:
    """Give the tokenizer its model's template. Its chat format stays where that gives the same ids on every chat tried,
    else chats are laid out by the template; what it ends an answer with becomes a stop token."""
    # llama3 written as a template is llama3 again, though transformers then merges the line ends behind a header with
    # those that a content begins with.
    if template is None or template.source == format_template(tokenizer):
        return
    tokenizer.chat_template = template
    if not _gives_the_same_ids(tokenizer, template):
        tokenizer.set_chat_format("template")
        tokenizer.system_prompt = None
        end = _turn_end(tokenizer, template)
        if end is not None and end not in tokenizer.stop_tokens:
            tokenizer.stop_tokens.append(end)


def _chat(roles: str, *contents: str) -> list[dict[str, Any]]:
    """A chat of these roles by their first letters; the contents in turn."""
    named = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return [{"role": named[role], "content": contents[index % len(contents)]} for index, role in enumerate(roles)]


def _gives_the_same_ids(tokenizer: Tokenizer, template: ChatTemplate) -> bool:
    if tokenizer.chat_format is None or shows_tools(template):
        return False
    quoted, numbers = _constants(template.source)
    if len(quoted) > _MAX_TEXTS or max(numbers, default=0) > _MAX_NUMBER:
        return False
    asked = [
        _chat(roles, "Hi", "One two", "x")
        for roles in ("u", "su", "uau", "suauauauauau", "uu", "au", "usu", "uat", "s")
    ]
    asked += [_chat(roles, "\n\n hi\n ", " a", "b\n\n") for roles in ("su", "uau", "suauau")]
    asked += [_chat("suau", "", "x", "", "y"), _chat("u", " ".join(tokenizer.special_tokens))]
    for word in sorted(quoted):
        asked += [_chat("suau", word), _chat("uau", word, f"x{word}y"), _chat("suau", f"x{word}y", word)]
    if "name" in quoted or re.search(r"\.\s*name\b", template.source):
        asked.append([{**message, "name": "x"} for message in _chat("suau", "Hi")])
    if "tool_calls" in template.source:
        calls = [{"name": "f", "arguments": {"x": "y"}}]
        asked.append([*_chat("u", "Hi"), {"role": "assistant", "tool_calls": calls}, *_chat("t", "Hi")])
    answered = [_chat(roles, " a\n", "Hi") for roles in ("uau", "suau", "uauau")]
    try:
        rendered = render(
            [*((chat, True) for chat in asked), *((chat, False) for chat in answered)], template, tokenizer
        )
        return _same_ids(asked, answered, rendered, tokenizer)
    except (UsageError, FileError):  # what the template or the format refuses, or a byte that the vocabulary lacks
        return False


def _constants(source: str) -> tuple[set[str], set[int]]:
    """The texts and whole numbers in a template's own code: one that treats some chat in a special way names them."""
    texts, numbers = set(), set()
    for code in re.findall(r"\{[{%](.*?)[%}]\}", source, re.DOTALL):
        for found in re.finditer(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"|(?<![\w.])(\d+)", code, re.DOTALL):
            if found[3]:
                numbers.add(int(found[3][:9]))
            elif text := found[1] or found[2]:
                texts.add(re.sub(r"\\(.)", lambda escape: _ESCAPES.get(escape[1], escape[1]), text, flags=re.DOTALL))
    return texts, numbers


def _same_ids(asked: list[Any], answered: list[Any], rendered: list[Rendered], tokenizer: Tokenizer) -> bool:
    prompts = (encode_dialog(chat, tokenizer) for chat in asked)
    whole = (encode_conversation(chat, tokenizer)[0] for chat in answered)
    return all(ids == text.ids(tokenizer) for ids, text in zip(itertools.chain(prompts, whole), rendered, strict=True))


def _turn_end(tokenizer: Tokenizer, template: ChatTemplate) -> int | None:
    """The control token that the template ends an answer with, if it does."""
    answer = "xyzzy"
    try:
        (text,) = render([(_chat("ua", "Hi", answer), False)], template, tokenizer)
        begin = text.text.rfind(answer)
        behind = text[begin + len(answer) :].ids(tokenizer) if begin >= 0 else []
    except (UsageError, FileError):
        return None
    return next((id for id in behind if id in tokenizer.special_tokens.values()), None)


def written_template(tokenizer: Tokenizer) -> dict[str, str | None]:
    """What tokenizer_config.json says of a model's chats: its own template and the tokens that this knows by name, else
    a template that lays a chat out as its format does."""
    if tokenizer.chat_template is None:
        return {"chat_template": format_template(tokenizer)}
    there = tokenizer.chat_template.variables
    return {"chat_template": tokenizer.chat_template.source, **{name: there.get(name) for name in NAMED_TOKENS}}


def format_template(tokenizer: Tokenizer) -> str | None:
    """The Jinja template that lays a chat out as `dialog.encode_dialog` does in the format llama3 or chatml."""
    if tokenizer.chat_format == "llama3":
        return (
            r"{{ bos_token }}{% for message in messages %}"
            r"{{ '<|start_header_id|>' + ('ipython' if message.role == 'tool' else message.role) }}"
            r"{{ '<|end_header_id|>\n\n' + message.content + '<|eot_id|>' }}{% endfor %}"
            r"{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
        )
    if tokenizer.chat_format == "chatml":
        default = json.dumps(f"<|im_start|>system\n{tokenizer.system_prompt}<|im_end|>\n", ensure_ascii=False)
        return (
            ("{% if messages[0].role != 'system' %}{{ " + default + " }}{% endif %}" if tokenizer.system_prompt else "")
            + r"{% for message in messages %}{{ '<|im_start|>' + message.role }}"
            r"{{ '\n' + message.content + '<|im_end|>\n' }}{% endfor %}"
            r"{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
        )
    return None
