"""What a client of OpenAI's API sends, as messages and tools of ours; what is wrong is named as its errors name it."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama3_scratch.errors import UsageError
from llama3_scratch.text.dialog import encode_dialog
from llama3_scratch.text.openai_messages import MAX_DEPTH, RequestError, dialog_of, tool_names, tools_of
from tests import tiny
from tests.reference import llama3
from tests.text.templates import TEMPLATES, TOOLS, chat, read


def user(content: Any = "hi", **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def assistant(*calls: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": list(calls), **more}


def call(arguments: Any = '{"x": 1}', **more: Any) -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": arguments}, **more}


def nested(depth: int) -> Any:
    value: Any = {}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


def test_messages_as_clients_send_them():
    """What openai-python's own answers look like when they are sent back, and texts in parts."""
    sent = [
        {"role": "developer", "content": "Be brief.", "name": "boss"},
        user([{"type": "text", "text": "one"}, {"type": "text", "text": "two", "cache_control": {}}], name="Bob"),
        assistant(call(), refusal=None, audio=None, annotations=[], function_call=None),
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "2"}]},
        {"role": "assistant", "content": "Two.", "tool_calls": None, "refusal": None},
        {"role": "system", "content": ""},
        user("", tool_calls=[]),
        user(),
    ]
    kept = json.dumps(sent)
    dialog = dialog_of(sent)
    assert dialog == [
        {"role": "system", "content": "Be brief."},
        user("one\ntwo"),
        assistant(call()),
        {"role": "tool", "content": "2", "tool_call_id": "call_1"},
        {"role": "assistant", "content": "Two."},
        {"role": "system", "content": ""},
        user(""),
        user(),
    ]
    assert json.dumps(sent) == kept
    for tokenizer in (llama3(), tiny.tokenizer("chatml")):
        assert tokenizer.decode(encode_dialog(dialog, tokenizer)).count("Two.") == 1


def test_arguments_are_a_text_of_json_or_an_object(tmp_path):
    as_text, as_object = (dialog_of([user(), assistant(call(each)), user()]) for each in ('{"x": 1}', {"x": 1}))
    for tokenizer in (llama3(), tiny.tokenizer("chatml")):
        assert encode_dialog(as_text, tokenizer) == encode_dialog(as_object, tokenizer)
    shown = read(tmp_path, "{{ messages[1].tool_calls[0].function.arguments }}<|end|>")
    assert shown.decode(encode_dialog(as_text, shown)) == '{"x": 1}<|end|>'
    for none in ("", None, []):
        assert dialog_of([user(), assistant(call(none)), user()])[1]["tool_calls"]


@pytest.mark.parametrize(
    ("messages", "param", "says"),
    [
        pytest.param(None, "messages", "must be a list of messages, got null", id="F155"),
        pytest.param("hi", "messages", 'must be a list of messages, got "hi"', id="F155-text"),
        pytest.param([], "messages", "is empty, expected at least a message of the user", id="F156"),
        pytest.param([user(), "hi"], "messages[1]", 'must be an object with role and content, got "hi"', id="text"),
        pytest.param([user(None)], "messages[0].content", "text parts, got null", id="F157-null"),
        pytest.param(
            [user(), {"role": "assistant"}, user()],
            "messages[1].content",
            "or null beside tool_calls, got null",
            id="F157-null-answer",
        ),
        pytest.param(
            [user(3)], "messages[0].content", "must be a text or a list of text parts, got 3", id="F157-number"
        ),
        pytest.param([user({"a": 1})], "messages[0].content", "got an object", id="F157-object"),
        pytest.param([user([])], "messages[0].content", "got an empty list", id="F157-no-parts"),
        pytest.param([user(), user("")], "messages[1].content", "is empty, expected a prompt", id="empty"),
        pytest.param(
            [user([{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}])],
            "messages[0].content[1]",
            'part of type text, which alone is read here, got one of type "image_url"',
            id="F157-image",
        ),
        pytest.param([user([{"text": "a"}])], "messages[0].content[0]", "got one of type null", id="F157-no-type"),
        pytest.param(
            [user(["a"])],
            "messages[0].content[0]",
            'must be a part of type text, which alone is read here, got "a"',
            id="F157-bare",
        ),
        pytest.param(
            [user([{"type": "text"}])], "messages[0].content[0].text", "must be a text, got null", id="F157-textless"
        ),
        pytest.param(
            [user(), {"role": "robot", "content": "x"}],
            "messages[1].role",
            'must be one of system, developer, user, assistant, tool, got "robot"',
            id="F158",
        ),
        pytest.param([{"role": ["user"], "content": "x"}], "messages[0].role", "got a list", id="F158-list"),
        pytest.param([{"content": "x"}], "messages[0].role", "is missing, expected one of", id="F158-none"),
        pytest.param(
            [user("x", tool_calls=[call()])], "messages[0].tool_calls", "this one's role is user", id="users-call"
        ),
        pytest.param(
            [user(), assistant() | {"tool_calls": {"a": 1}}], "messages[1].tool_calls", "got an object", id="calls"
        ),
        pytest.param(
            [user(), assistant(call(), {"id": "x"})],
            "messages[1].tool_calls[1].function",
            "must have a name",
            id="nameless",
        ),
        pytest.param(
            [user(), assistant(call("{broken"))],
            "messages[1].tool_calls[0].function.arguments",
            'must be an object, or a text that is one in JSON, got "{broken"',
            id="arguments",
        ),
        pytest.param(
            [user(), assistant(call("[1]"))], "messages[1].tool_calls[0].function.arguments", "[1]", id="list"
        ),
        pytest.param(
            [user(), assistant(call('{"a":' * 5000))],
            "messages[1].tool_calls[0].function.arguments",
            "must be an object",
            id="unclosed",
        ),
        pytest.param(
            [user(), assistant(call(json.dumps(nested(MAX_DEPTH + 1))))],
            "messages[1].tool_calls[0].function.arguments",
            "more than 64 deep",
            id="deep",
        ),
        pytest.param([user(), assistant(call(id=3))], "messages[1].tool_calls[0].id", "must be a text, got 3", id="id"),
        pytest.param(
            [user(), {"role": "tool", "content": "x", "tool_call_id": 1}],
            "messages[1].tool_call_id",
            "got 1",
            id="tool-id",
        ),
        pytest.param([user(True)], "messages[0].content", "got true", id="F157-boolean"),
    ],
)
def test_what_is_wrong_with_messages_is_named(messages, param, says):
    with pytest.raises(RequestError) as caught:
        dialog_of(messages)
    assert caught.value.param == param
    assert str(caught.value).startswith(f"{param} ") and says in str(caught.value) and len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("tools", "param", "says"),
    [
        ({}, "tools", "must be a list of tools, got an empty object"),
        (["f"], "tools[0]", 'got "f"'),
        ([{"type": "web_search"}], "tools[0].type", 'must be function, got "web_search"'),
        ([{"type": "function"}], "tools[0].function", "must be an object with a name, got null"),
        ([{"type": "function", "function": {"name": "a b"}}], "tools[0].function.name", "underscores and dashes"),
        ([{"type": "function", "function": {"name": "a" * 65}}], "tools[0].function.name", "1 to 64"),
        ([{"type": "function", "function": {"name": "f\n"}}], "tools[0].function.name", "1 to 64"),
        ([*TOOLS, TOOLS[0]], "tools[2].function.name", "is 'get_weather' a second time"),
        ([{"type": "function", "function": {"name": "f", "description": 1}}], "tools[0].function.description", "got 1"),
        (
            [{"type": "function", "function": {"name": "f", "parameters": [1]}}],
            "tools[0].function.parameters",
            "got a list",
        ),
        (
            [{"type": "function", "function": {"name": "f", "parameters": nested(99)}}],
            "tools[0].function.parameters",
            "64",
        ),
    ],
)
def test_what_is_wrong_with_tools_is_named(tools, param, says):
    with pytest.raises(RequestError) as caught:
        tools_of(tools)
    assert caught.value.param == param and says in str(caught.value)


def test_tools_as_clients_send_them():
    function = {"description": "d", "name": "f", "parameters": nested(MAX_DEPTH), "strict": True}
    tools = tools_of([{"type": "function", "function": function}, *TOOLS[:1]])
    assert list(tools[0]["function"]) == ["description", "name", "parameters"], "in their order"
    assert tools[1] == TOOLS[0] and tool_names(tools) == {"f", "get_weather"}
    assert tools_of(None) == tools_of([]) == []
    assert tools_of([{"type": "function", "function": {"name": "f", "description": None}}])[0]["function"] == {
        "name": "f"
    }
    for tokenizer in (llama3(), tiny.tokenizer("chatml")):
        assert '"name": "f"' in tokenizer.decode(encode_dialog(dialog_of([user()]), tokenizer, tools=tools))


@pytest.mark.parametrize("content", ["\ud800", "a\udfffb"])
def test_f180_a_lone_surrogate(content, tmp_path):
    for tokenizer in (llama3(), tiny.tokenizer("chatml"), read(tmp_path, TEMPLATES["phi"])):
        with pytest.raises(UsageError, match="lone surrogate"):
            encode_dialog(dialog_of([user(content)]), tokenizer)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["user", "text"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "tool_calls", "function", "name", "arguments", "id"]),
            inner,
        )
    ),
    max_leaves=12,
)


@given(
    JSON | st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "tool"]), "content": JSON}))
)
def test_whatever_is_sent_is_a_dialog_or_an_error_that_names_its_place(sent):
    for read_it in (dialog_of, tools_of):
        try:
            read_it(sent)
        except RequestError as error:
            assert error.param.startswith(("messages", "tools"))


def test_500_messages_take_as_long_as_500_single_ones(tmp_path):
    """Not quadratic: ten times the messages take less than thirty times as long, by whatever lays them out."""
    tokenizers = [llama3(), tiny.tokenizer("chatml"), read(tmp_path, TEMPLATES["llama3.1"])]
    for tokenizer in tokenizers:
        seconds = []
        for count in (50, 500):
            sent = chat("ua" * (count // 2) + "u", "What is it? " * 20)
            best = float("inf")
            for _ in range(3):
                begun = time.perf_counter()
                encode_dialog(dialog_of(sent), tokenizer)
                best = min(best, time.perf_counter() - begun)
            seconds.append(best)
        assert seconds[1] < 30 * seconds[0] and seconds[1] < 5
