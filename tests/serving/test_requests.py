"""What a request may hold: each fault is a 400 that names the field, at once, and the server goes on."""

from __future__ import annotations

import json
import re
import time

import pytest

HI = [{"role": "user", "content": "hi"}]
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def refused(client, fields, param, path="/v1/chat/completions"):
    began = time.monotonic()
    got = client.post(path, fields)
    assert got.status == 400, got.body
    error = got.error
    assert error["type"] == "invalid_request_error" and error["param"] == param, error
    assert not re.search(r"\b(None|True|False|dict|nan)\b", error["message"]), "no Python in it"
    assert time.monotonic() - began < 1
    return error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        pytest.param({"messages": None}, "messages", id="F155-absent"),
        pytest.param({"messages": "hi"}, "messages", id="F155-a-text"),
        pytest.param({"messages": []}, "messages", id="F156"),
        pytest.param({"messages": ["hi"]}, "messages[0]", id="F157-no-object"),
        pytest.param({"messages": [{"content": "hi"}]}, "messages[0].role", id="F158-no-role"),
        pytest.param({"messages": [{"role": "pirate", "content": "arr"}]}, "messages[0].role", id="F158"),
        pytest.param({"messages": [{"role": ["user"], "content": "arr"}]}, "messages[0].role", id="F158-list"),
        pytest.param({"n": 1_000_000}, "n", id="F159"),
        pytest.param({"n": 0}, "n", id="F159-none"),
        pytest.param({"max_tokens": 1_000_000_000}, "max_tokens", id="F160-huge"),
        pytest.param({"max_tokens": -1}, "max_tokens", id="F160-negative"),
        pytest.param({"max_tokens": 0}, "max_tokens", id="F160-none"),
        pytest.param({"max_tokens": 1.5}, "max_tokens", id="F160-fraction"),
        pytest.param({"max_tokens": "10"}, "max_tokens", id="F160-text"),
        pytest.param({"max_tokens": True}, "max_tokens", id="F160-true"),
        pytest.param({"max_completion_tokens": "10"}, "max_completion_tokens", id="F160-newer-name"),
        pytest.param({"temperature": "hot"}, "temperature", id="F161-text"),
        pytest.param({"temperature": 1e9}, "temperature", id="F161-huge"),
        pytest.param({"temperature": -0.1}, "temperature", id="F161-negative"),
        pytest.param({"top_p": 1.1}, "top_p", id="F161-top-p"),
        pytest.param({"min_p": -1}, "min_p", id="F161-min-p"),
        pytest.param({"top_k": 1.5}, "top_k", id="F161-top-k"),
        pytest.param({"repeat_penalty": 0}, "repeat_penalty", id="F161-repeat-penalty"),
        pytest.param({"seed": 2**64}, "seed", id="F161-seed"),
        pytest.param({"logprobs": True, "top_logprobs": 1000}, "top_logprobs", id="F162"),
        pytest.param({"top_logprobs": 2}, "top_logprobs", id="F162-without-logprobs"),
        pytest.param({"logprobs": 5}, "logprobs", id="F162-a-number"),
        pytest.param({"stop": ["x"] * 100_000}, "stop", id="F163"),
        pytest.param({"stop": "x" * 257}, "stop", id="F163-long"),
        pytest.param({"stop": ""}, "stop", id="F163-empty"),
        pytest.param({"stop": {"a": 1}}, "stop", id="F163-object"),
        pytest.param({"stream": "yes"}, "stream", id="stream"),
        pytest.param({"stream_options": {"include_usage": True}}, "stream_options", id="options-without-stream"),
        pytest.param({"stream": True, "stream_options": []}, "stream_options", id="options-that-are-a-list"),
        pytest.param({"model": 5}, "model", id="model"),
        pytest.param({"tools": {}}, "tools", id="tools"),
        pytest.param({"tools": [TOOL] * 2}, "tools[1].function.name", id="tools-twice"),
        pytest.param({"tools": [{"type": "function"}]}, "tools[0].function", id="tools-without-function"),
        pytest.param({"tool_choice": "required"}, "tool_choice", id="choice-without-tools"),
        pytest.param({"tools": [TOOL], "tool_choice": "maybe"}, "tool_choice", id="choice"),
        pytest.param(
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
            "tool_choice",
            id="choice-of-no-tool",
        ),
        pytest.param(
            {"messages": [{"role": "user", "content": "", "tool_calls": [CALL]}]}, "messages[0].tool_calls", id="calls"
        ),
        pytest.param({"response_format": "json"}, "response_format", id="format"),
        pytest.param({"response_format": {"type": "yaml"}}, "response_format.type", id="format-type"),
        pytest.param({"response_format": {"type": "json_schema"}}, "response_format.json_schema", id="no-schema"),
        pytest.param(
            {"response_format": {"type": "json_schema", "json_schema": {"schema": "x"}}},
            "response_format.json_schema.schema",
            id="schema-that-is-a-text",
        ),
    ],
)
def test_a_field_that_cannot_be_used_is_named(client, fields, param):
    refused(client, {"messages": HI, **fields}, param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [99999]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": ["a"] * 50, "n": 4}, "n"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "best_of": 3}, "best_of"),
        ({"prompt": "a", "logprobs": 21}, "logprobs"),
        ({"prompt": "a", "logprobs": True}, "logprobs"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
    ],
)
def test_a_completions_field_that_cannot_be_used_is_named(stories, fields, param):
    refused(stories, fields, param, "/v1/completions")


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="F153-empty"),
        pytest.param(b"hello", id="F153-text"),
        pytest.param(b"[]", id="F153-list"),
        pytest.param(b'{"messages": [', id="F153-cut"),
        pytest.param(b'{"a": 1,}', id="F153-comma"),
        pytest.param(b'{"temperature": NaN}', id="F161-nan"),
        pytest.param(b'{"temperature": -Infinity}', id="F161-infinity"),
        pytest.param(b'{"temperature": 1e999}', id="F161-overflow"),
        pytest.param(b'{"a": "\xff"}', id="F153-no-utf-8"),
        pytest.param(b'{"a": 1, "a": 2}', id="F153-a-key-twice"),
        pytest.param(b'{"a":' * 100_000, id="F153-deep"),
        pytest.param(b'{"a":' * 65 + b"1" + b"}" * 65, id="F153-65-levels"),
        pytest.param(b'{"n": ' + b"9" * 5000 + b"}", id="F153-digits"),
    ],
)
def test_a_body_that_is_no_json_object_is_refused(client, body):
    got = client.post("/v1/chat/completions", body)
    assert got.status == 400 and got.error["type"] == "invalid_request_error"
    assert client.get("/health").status == 200


def test_a_body_may_begin_with_a_mark_and_be_64_levels_deep(client, says):
    says("ok")
    deep: object = 1
    for _ in range(63):
        deep = {"a": deep}
    body = json.dumps({"messages": HI, "metadata": deep}).encode()
    assert client.post("/v1/chat/completions", b"\xef\xbb\xbf" + body).status == 200


def test_null_is_as_absent(client, says):
    says("ok")
    names = (
        "n",
        "stop",
        "seed",
        "temperature",
        "max_tokens",
        "stream",
        "stream_options",
        "logprobs",
        "tools",
        "tool_choice",
    )
    assert client.post("/v1/chat/completions", {"messages": HI, **dict.fromkeys(names)}).status == 200


def test_limits_that_are_reached_are_taken(client, says):
    says("ok", "ok", "ok", "ok")
    most = {"n": 4, "top_logprobs": 20, "logprobs": True, "stop": ["x" * 256] * 16, "temperature": 2, "top_p": 0}
    assert client.chat("hi", **most, top_k=-1, seed=-(2**63), max_tokens=2**20).status == 200


def test_a_message_says_what_was_wanted_and_what_was_found(client):
    message = refused(client, {"messages": HI, "temperature": "hot"}, "temperature")
    assert message == 'temperature: expected a number at least 0 and at most 2, got "hot"'
    assert len(refused(client, {"messages": HI, "seed": "x" * 10_000}, "seed")) < 300
