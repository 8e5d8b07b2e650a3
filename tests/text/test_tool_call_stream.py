"""Tool calls out of an answer as it comes: however it is cut into pieces, and nothing of a call among the content."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama3_scratch.text.detokenizer import Detokenizer
from llama3_scratch.text.tool_call_stream import ToolCallStream, as_openai, read_calls
from llama3_scratch.text.tool_calls import hermes_text, template_text, tool_text
from tests.reference import llama3

NAMES = {"f", "get_weather", "brave_search"}


def streamed(pieces: list[str], names: set[str] = NAMES) -> tuple[list[str], str, list[tuple[str, Any]]]:
    """(content after each piece, content in the end, calls as name and arguments)."""
    stream = ToolCallStream(names)
    seen, content = [], ""
    for piece in pieces:
        content += stream.feed(piece)
        seen.append(content)
    rest, calls = stream.finish()
    for call in calls:
        assert re.fullmatch("call_[0-9a-f]{24}", call["id"]) and call["type"] == "function"
    found = [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls]
    assert not (found and content + rest)
    assert len({call["id"] for call in calls}) == len(calls)
    return seen, content + rest, found


@pytest.mark.parametrize(
    ("answer", "calls"),
    [
        ('{"name": "f", "parameters": {"x": "{\\"}"}}', [("f", {"x": '{"}'})]),
        ('\n {"type": "function", "name": "f", "parameters": null}\n', [("f", {})]),
        (
            '{"name": "f", "parameters": {}}; {"name": "get_weather", "arguments": {"a": [1, {}]}}',
            [("f", {}), ("get_weather", {"a": [1, {}]})],
        ),
        ('{"name": "f", "parameters": {}}\n{"name": "f", "parameters": {}}', [("f", {}), ("f", {})]),
        ('[{"name": "f", "parameters": {}}, {"name": "f", "parameters": {"x": 1}}]', [("f", {}), ("f", {"x": 1})]),
        ('{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}', [("f", {})]),
        ('{"name": "f", "parameters": {"code": "a\nb"}}', [("f", {"code": "a\nb"})]),
        ('<function=f>{"x": {"name": "any"}}</function>', [("f", {"x": {"name": "any"}})]),
        (
            "<function=f>{}</function><function=get_weather>null</function>\n<function=f></function>",
            [("f", {}), ("get_weather", {}), ("f", {})],
        ),
        ('<function=f>{"x": 1}', [("f", {"x": 1})]),
        (
            '[f(x="a]b", y=\'"\', z=[(1, 2)]), get_weather()]',
            [("f", {"x": "a]b", "y": '"', "z": [[1, 2]]}), ("get_weather", {})],
        ),
        ('<tool_call>\n{"name": "f", "arguments": {"é": "日本"}}\n</tool_call>', [("f", {"é": "日本"})]),
        ('<tool_call>{"name": "f", "arguments": {}}</tool_call>\n<tool_call>{"name": "f"', []),
        (
            '<tool_call>{"name": "f", "arguments": {}}</tool_call> <tool_call>{"name": "f", "arguments": {}}',
            [("f", {}), ("f", {})],
        ),
        ('brave_search.call(query="a")', [("brave_search", {"query": "a"})]),
        ('<|python_tag|>brave_search.call(query="a \\"b\\"")', [("brave_search", {"query": 'a \\"b\\"'})]),
        ('<|python_tag|>{"name": "f", "parameters": {}}', [("f", {})]),
        ("<|python_tag|> [f(x=1)]", [("f", {"x": 1})]),
    ],
)
def test_calls_of_every_form(answer, calls):
    seen, content, found = streamed(list(answer))
    assert found == calls
    assert content == ("" if calls else answer)
    assert set(seen) == {""}, "nothing goes out before it is certain"
    assert streamed([answer]) == ([""], content, found)


@pytest.mark.parametrize(
    ("answer", "certain"),
    [
        ("Hello", "H"),
        ("  Hi", "  H"),
        ("{ x } is a set", "{ x"),
        ("{1, 2}", "{1"),
        ('{"name": "Bob", "age": 3}', '{"name": "Bob",'),
        ('{"name": "f", "parameters": {}} is how', '{"name": "f", "parameters": {}} i'),
        ('{"a": undefined}', '{"a": und'),
        ('{"a": 1]', '{"a": 1]'),
        ("[1, 2]", "[1"),
        ("[f] is a list", "[f]"),
        ("[get_time()]", "[get_t"),
        ("[f(x=1)](a link)", "[f(x=1)]("),
        ("[f(x=1}", "[f(x=1}"),
        ('[{"name": "f", "parameters": {}}, 1]', '[{"name": "f", "parameters": {}}, 1'),
        ("<b>bold</b>", "<b"),
        ("<functional>", "<functiona"),
        ("<function=g>{}", "<function=g>"),
        ("<function=f>x", "<function=f>x"),
        ("<function=f>{}</function> so", "<function=f>{}</function> s"),
        ("<tool_call>f()", "<tool_call>f"),
        ('<tool_call>{"name": "g", "arguments": {}}</tool_call>', '<tool_call>{"name": "g",'),
        ("<|python_tag|>print(1)", "<|python_tag|>p"),
        ("brave souls", "brave "),
        ('wolfram_alpha.call(query="1")', "w"),
        ("```json", "`"),
    ],
)
def test_what_can_be_no_call_goes_out_at_once(answer, certain):
    seen, content, calls = streamed(list(answer))
    assert (content, calls) == (answer, [])
    assert next((text for text in seen if text), None) == certain
    assert seen[-1] == answer


@pytest.mark.parametrize(
    "answer",
    [
        '{"a": 1}',
        '{"name": "f"',
        '{"name": "f"}',
        "[",
        "[]",
        "{}",
        "<",
        "",
        " \n",
        "<function=f>",
        '{"name": "f", "parameters": [1]}',
        "[f(x=g())]",
        "<|python_tag|>",
        '{"function": {"name": "g", "parameters": {}}}',
        '[f(x="a]',
    ],
)
def test_what_only_began_like_a_call_is_content_in_the_end(answer):
    seen, content, calls = streamed(list(answer))
    assert (content, calls) == (answer, []) and not any(seen)


def test_code_is_a_call_where_there_is_an_interpreter():
    answer = "<|python_tag|>print(1)\n"
    assert streamed(list(answer), {"code_interpreter"})[1:] == ("", [("code_interpreter", {"code": "print(1)"})])
    assert streamed(list(answer), {"f"})[1:] == (answer, [])
    assert streamed(["print(1)"], {"code_interpreter"})[1:] == ("print(1)", [])


def test_without_tools_all_is_content():
    for answer in ('{"name": "f", "parameters": {}}', "[f()]", "<function=f>{}</function>"):
        assert streamed([answer], set())[1:] == (answer, [])


def test_the_tokens_of_an_answer():
    """<|python_tag|> is a token that a detokenizer says by name, <|eom_id|> one that ends the answer without a text."""
    tokenizer = llama3()
    tokens = [
        tokenizer.special("<|python_tag|>"),
        *tokenizer.encode('{"name": "f", "parameters": {"é": 1}}', bos=False),
    ]
    answer, stream, shown, said = Detokenizer(tokenizer, tokenizer.stop_tokens), ToolCallStream(NAMES), 0, ""
    assert tokenizer.special("<|eom_id|>") in tokenizer.stop_tokens
    for token in (*tokens, tokenizer.special("<|eom_id|>")):
        answer.take(token)
        said += stream.feed(answer.text[shown:])
        shown = len(answer.text)
    rest, calls = stream.finish()
    assert said + rest == "" and json.loads(calls[0]["function"]["arguments"]) == {"é": 1}


# Any text, any pieces

FRAGMENTS = st.sampled_from(
    [
        *(
            '{"name": "f", "parameters": {}}',
            '{"name": "f", "parameters": ',
            '{"x": "a b"}',
            "{",
            "}",
            '"',
            "\\",
            ":",
            ",",
        ),
        *("[", "]", "f(", "get_weather(", "x=1", ")", "'", "; ", "\n", " ", "null", "name", '"name": "g"', "text", "é"),
        *(
            "<function=f>",
            "</function>",
            "<tool_call>",
            "</tool_call>",
            "<|python_tag|>",
            '.call(query="',
            "brave_search",
        ),
    ]
)
ANSWERS = st.lists(FRAGMENTS | st.text(max_size=3), max_size=10).map("".join)


@given(ANSWERS, st.data())
@settings(max_examples=400, deadline=None)
def test_pieces_make_no_difference(answer, data):
    each, content, calls = streamed(list(answer))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=5)))
    pieces = [answer[a:b] for a, b in zip([0, *cuts], [*cuts, len(answer)], strict=True)]
    seen, *same = streamed(pieces)
    assert same == [content, calls]
    assert seen == [each[end - 1] if end else "" for end in [*cuts, len(answer)]]
    assert content == ("" if calls else answer)
    assert all(answer.startswith(text) for text in each)


@given(ANSWERS)
@settings(max_examples=400, deadline=None)
def test_calls_are_those_of_the_whole_text(answer):
    """What the grammar holds back and what is read in the end agree."""
    _, content, calls = streamed(list(answer))
    assert [(call["name"], call["arguments"]) for call in read_calls(answer, NAMES)] == calls or content == answer
    assert all(name in NAMES for name, _ in calls)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
ARGUMENTS = st.dictionaries(st.text(max_size=6) | st.sampled_from(["name", "function"]), VALUES, max_size=4)


@given(st.lists(st.tuples(st.sampled_from(["f", "get_weather"]), ARGUMENTS), min_size=1, max_size=3), st.integers(0, 3))
@settings(max_examples=300, deadline=None)
def test_calls_that_are_written_are_read_and_never_shown(calls, form):
    write = [tool_text, lambda *call: tool_text(*call, "function_tag"), template_text, hermes_text][form]
    for between in ("", "\n", "; ") if form in (0, 2) else ("", "\n"):
        for before in ("", "<|python_tag|>", "\n"):
            answer = before + between.join(write(*call) for call in calls)
            seen, content, found = streamed(list(answer))
            assert (content, found) == ("", calls) and set(seen) == {""}


def test_a_long_call_is_read_once():
    answer = json.dumps({"name": "f", "parameters": {"text": "a\n" * 100_000}})
    begun = time.perf_counter()
    _, content, calls = streamed([answer[at : at + 4] for at in range(0, len(answer), 4)])
    assert (content, len(calls)) == ("", 1)
    assert streamed(list("[" * 5000))[1] == "[" * 5000
    assert streamed(['{"a":' * 50_000])[1] == '{"a":' * 50_000
    assert time.perf_counter() - begun < 10


def test_openais_shape():
    call = as_openai({"name": "f", "arguments": {"é": [1, None]}})
    assert call | {"id": ""} == {
        "id": "",
        "type": "function",
        "function": {"name": "f", "arguments": '{"é": [1, null]}'},
    }
