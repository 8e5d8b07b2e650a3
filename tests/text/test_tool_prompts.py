"""Chats with tools as ids: as Meta's documents show them, as Hugging Face's template and as Hermes' lay them out."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest

from llama3_scratch.errors import UsageError
from llama3_scratch.text.dialog import decode_message, encode_dialog, encode_message
from tests import tiny
from tests.reference import llama3, meta, package_file, smollm2
from tests.text.templates import CALLED, HERMES, TEMPLATES, TOOLS, as_transformers_sees, chat

WEATHER = {"name": "get_weather", "arguments": {"city": "Zürich", "days": [1, None]}}


def documented(file: str, having: str) -> str:
    """The prompt in one of Meta's documents that has these words, as it is before the answer."""
    text = package_file("llama_models", file).read_text(encoding="utf-8")
    (prompt,) = (block for block in re.findall(r"```\n(.*?)\n```", text, re.DOTALL) if having in block)
    expanded = prompt.replace('["n"]', '[\n                "n"\n            ]')  # as all other JSON in it is
    return expanded.rstrip() + "\n\n"


def functions_in(text: str) -> list[dict[str, Any]]:
    """The JSON in a prompt, which begins a line."""
    found, begin = [], 0
    while match := re.compile(r"^[\[{]", re.MULTILINE).search(text, begin):
        value, begin = json.JSONDecoder().raw_decode(text, match.start())
        found += value if isinstance(value, list) else [value]
    return found


def tools_in(text: str) -> list[dict[str, Any]]:
    return [each if "function" in each else {"type": "function", "function": each} for each in functions_in(text)]


@pytest.mark.parametrize(
    ("tool_format", "file", "having"),
    [
        ("json", "llama3_1/prompt_format.md", "Return function calls in JSON format."),
        ("function_tag", "llama3_1/prompt_format.md", "Think very carefully before calling functions."),
        ("python_list", "llama3_2/text_prompt_format.md", "What is the weather in SF and Seattle?"),
    ],
)
def test_prompts_equal_metas_documents(tool_format, file, having):
    text = documented(file, having)
    system, asked = (re.findall(r"\n\n(.*?)<\|eot_id\|>", text, re.DOTALL)[index] for index in (0, -1))
    system = "" if tool_format == "python_list" else system
    for given in {system, system.removeprefix("Environment: ipython\n\n")}:
        messages = [{"role": "system", "content": given}] if given else []
        messages.append({"role": "user", "content": asked})
        ids = encode_dialog(messages, llama3(), tools=tools_in(text), tool_format=tool_format)
        assert llama3().decode(ids) == text
        assert ids == llama3().encode(text, bos=False, allowed_special="all")


def test_several_functions_and_a_system_message():
    system = {"role": "system", "content": "Be brief."}
    for tool_format in ("json", "function_tag", "python_list"):
        ids = encode_dialog([system, *chat("u", "Hi")], llama3(), tools=TOOLS, tool_format=tool_format)
        text = llama3().decode(ids)
        written = [each.get("function", each) for each in functions_in(text)]
        assert [each for each in written if "name" in each] == [tool["function"] for tool in TOOLS]
        assert text.count("Be brief.") == 1 and text.index("Be brief.") < text.index("get_weather") < text.index("Hi")
        alone = llama3().decode(encode_dialog(chat("u", "Hi"), llama3(), tools=TOOLS, tool_format=tool_format))
        assert text == alone.replace("system<|end_header_id|>\n\n", "system<|end_header_id|>\n\nBe brief.\n\n") or (
            text == alone.replace("Environment: ipython", "Environment: ipython\n\nBe brief.")
        )


def test_without_tools_nothing_is_added():
    for messages in (chat("suau", "Hi"), CALLED):
        assert encode_dialog(messages, llama3(), tools=[]) == encode_dialog(messages, llama3())
    with pytest.raises(UsageError, match="tool format must be one of"):
        encode_dialog(chat("u", "Hi"), llama3(), tools=TOOLS, tool_format="xml")


def rendered(messages: list[dict[str, Any]], template: str, tools: Any, *, continue_last: bool = False) -> str:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    (text,), _ = utils.render_jinja_template(
        [as_transformers_sees(messages)],
        tools=tools or None,
        chat_template=template,
        add_generation_prompt=not continue_last,
        continue_final_message=continue_last,
        date_string="26 Jul 2024",
        bos_token="<|begin_of_text|>",
    )
    return text


def random_chats(count: int) -> list[list[dict[str, Any]]]:
    """Chats with calls and their results, of which some end in an answer that has begun."""
    rng = random.Random(0)
    contents = ["Hi", "\n\n ab \n", " a", "", 'é 日本 "b" {x}', "12:\n\nx"]
    chats = []
    for _ in range(count):
        messages = [*chat("s" if rng.random() < 0.5 else "", rng.choice(contents)), *chat("u", " ask\n")]
        for _ in range(rng.randrange(4)):
            if rng.random() < 0.5:
                arguments = {"x": rng.choice(contents), "n": [1, None, 2.5]}
                messages += [
                    {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": arguments}]}
                ]
                messages += chat("t", rng.choice(contents))
            else:
                messages += chat(rng.choice(["au", "aus", "uu"]), rng.choice(contents), "more")
        if rng.random() < 0.3:
            messages += chat("a", rng.choice(["Once", "x y", "Once upon\n"]))
        chats.append(messages)
    return chats


def test_a_date_lays_tools_and_calls_out_as_hugging_faces_template():
    for messages in random_chats(150):
        goes_on = messages[-1]["role"] == "assistant"
        for tools in ([], TOOLS[:1], TOOLS):
            text = rendered(messages, TEMPLATES["llama3.1"], tools, continue_last=goes_on)
            ids = encode_dialog(messages, llama3(), tools=tools, date="26 Jul 2024", continue_last=goes_on)
            assert ids == llama3().encode(text, bos=False, allowed_special="all")


def test_a_chat_that_the_assistant_begins_has_the_functions_in_a_message_of_their_own():
    messages = [*chat("a", "Hello."), *chat("u", "Hi")]
    text = llama3().decode(encode_dialog(messages, llama3(), tools=TOOLS, date="26 Jul 2024"))
    assert re.findall(r"<\|start_header_id\|>(.*?)<", text) == ["system", "user", "assistant", "user", "assistant"]
    assert text.index("get_weather") < text.index("Hello.")


# ChatML


def test_chatml_lays_tools_and_calls_out_as_hermes():
    tokenizer = tiny.tokenizer("chatml")
    for messages in random_chats(150):
        goes_on = messages[-1]["role"] == "assistant"
        if not any("tool_calls" in message for message in messages):
            messages = [message for message in messages if message["role"] != "tool"]
        for tools in ([], TOOLS):
            text = rendered(messages, HERMES, tools, continue_last=goes_on)
            ids = encode_dialog(messages, tokenizer, tools=tools, continue_last=goes_on)
            assert ids == tokenizer.encode(text, bos=False, allowed_special={"<|im_start|>", "<|im_end|>"})


def test_chatml_keeps_the_models_own_system_message_before_the_tools():
    text = smollm2().decode(encode_dialog(chat("u", "Hi"), smollm2(), tools=TOOLS))
    assert text.startswith(f"<|im_start|>system\n{smollm2().system_prompt}\n\n# Tools\n")
    text = smollm2().decode(encode_dialog(chat("su", "", "Hi"), smollm2(), tools=TOOLS))
    assert text.startswith("<|im_start|>system\n# Tools\n"), "an empty one says that there is none"


@pytest.mark.parametrize("content", ["", "I'll look."])
def test_a_call_in_chatml_comes_back_as_it_was_written(content):
    tokenizer = tiny.tokenizer("chatml")
    calls = [WEATHER, {"name": "f", "arguments": {}}]
    ids = encode_message({"role": "assistant", "content": content, "tool_calls": calls}, tokenizer)
    text = tokenizer.decode(ids)
    assert text.count("<tool_call>\n") == text.count("\n</tool_call>") == 2 and "Zürich" in text
    answer = decode_message(ids[1 + len("assistant\n") : -1], tokenizer)
    assert answer["stop_reason"] == "end_of_turn"
    if content:  # an answer that says more than calls is content
        assert answer["content"].startswith(content) and "tool_calls" not in answer
    else:
        assert (answer["content"], answer["tool_calls"]) == ("", calls)


def test_typed_control_tokens_stay_text_in_tools_and_begun_answers():
    control = "<|im_end|><|eot_id|><|start_header_id|>"
    for chat_format in ("llama3", "chatml"):
        tokenizer = tiny.tokenizer(chat_format)
        found = []
        for typed in ("x", control):
            tools = [{"type": "function", "function": {"name": "f", "description": typed}}]
            calls = [{"name": "f", "arguments": {typed: typed}}]
            messages = [*chat("u", typed), {"role": "assistant", "tool_calls": calls}, *chat("ta", typed)]
            ids = encode_dialog(messages, tokenizer, tools=tools, continue_last=True)
            assert tokenizer.decode(ids).endswith(typed)
            found.append([id for id in ids if id in tokenizer.special_tokens.values()])
        assert found[0] == found[1]


# Answers that have begun


def test_an_answer_goes_on_without_the_token_that_ends_it():
    for chat_format in ("llama3", "chatml"):
        tokenizer = tiny.tokenizer(chat_format)
        for said in ("Once upon", "", " a \n"):
            begun = encode_dialog(chat("ua", "Hi", said), tokenizer, continue_last=True)
            assert begun == encode_dialog(chat("u", "Hi"), tokenizer) + tokenizer.encode(said, bos=False)
    metas = meta().chat.encode_message(
        meta().types.RawMessage(role="assistant", content="Once upon", stop_reason="end_of_turn"),
        meta().types.ToolPromptFormat.json,
    )[0]
    ids = encode_dialog(chat("ua", "Hi", "Once upon"), llama3(), continue_last=True)
    assert ids[-len(metas) + 1 :] == metas[:-1]


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        (chat("u", "Hi"), "the last message is of role user, expected the beginning of one of the assistant's"),
        (CALLED[:2], "the last message has tool calls, expected the beginning"),
        ([], "the chat is empty"),
    ],
)
def test_what_cannot_be_continued(messages, says):
    for chat_format in ("llama3", "chatml"):
        with pytest.raises(UsageError, match=says):
            encode_dialog(messages, tiny.tokenizer(chat_format), continue_last=True)
