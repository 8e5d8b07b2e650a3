"""Answers by a schema and calls that are forced: whatever the model would rather say, what comes follows."""

from __future__ import annotations

import json
import time
from typing import Literal

import openai
import pydantic
import pytest

from llama3_scratch.inference import grammar
from tests.serving.http_client import Client

CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": CITY}}
TIME = {
    "type": "function",
    "function": {"name": "get_time", "parameters": {"type": "object", "additionalProperties": False}},
}


def by_schema(schema: object, name: str = "answer") -> dict:
    return {"type": "json_schema", "json_schema": {"name": name, "schema": schema, "strict": True}}


def choices(client: Client, **fields) -> list[dict]:
    got = client.chat("hi", temperature=1.5, top_p=1, seed=3, n=4, **fields)
    assert got.status == 200, got.body
    return got.json["choices"]


def test_answers_follow_a_schema_whatever_the_model_would_say(client):
    """The weights are random: without the grammar the text is noise."""
    for choice in choices(client, response_format=by_schema(CITY)):
        answer = json.loads(choice["message"]["content"])
        assert choice["finish_reason"] == "stop" and answer["city"] in ("Oslo", "Rome") and 1 <= answer["days"] <= 9


def test_any_object_is_an_object(client):
    for choice in choices(client, response_format={"type": "json_object"}, max_tokens=300):
        if choice["finish_reason"] == "stop":
            assert isinstance(json.loads(choice["message"]["content"]), dict)
        else:
            assert choice["message"]["content"].startswith("{")


def test_a_limit_may_cut_json_and_says_so(client):
    for choice in choices(client, response_format=by_schema(CITY), max_tokens=4):
        assert choice["finish_reason"] == "length" and '{"city": '.startswith(choice["message"]["content"])


def test_streamed_json_is_whole_too(client):
    body = {"messages": [{"role": "user", "content": "hi"}], "response_format": by_schema(CITY), "temperature": 1}
    frames = client.frames("/v1/chat/completions", body)
    text = "".join(frame["choices"][0]["delta"].get("content") or "" for frame in frames[:-1])
    assert json.loads(text)["city"] in ("Oslo", "Rome")


class Trip(pydantic.BaseModel):
    class Stop(pydantic.BaseModel):
        city: Literal["Oslo", "Rome"]
        nights: Literal[1, 2, 3] | None

    first: Stop
    second: Stop
    paid: bool


def test_openai_parses_into_pydantic_models(client):
    with openai.OpenAI(base_url=client.server.address, api_key="none") as api:
        got = api.chat.completions.parse(
            model="tiny", messages=[{"role": "user", "content": "hi"}], response_format=Trip, seed=1
        )
    assert isinstance(got.choices[0].message.parsed, Trip)


@pytest.mark.parametrize("several", [True, False])
def test_a_required_call_is_made(client, several):
    asked = {"tools": [WEATHER, TIME], "tool_choice": "required", "parallel_tool_calls": several}
    seen = set()
    for choice in choices(client, **asked, max_tokens=400):
        if choice["finish_reason"] == "length":
            assert several, "calls without end"
            continue
        calls = choice["message"]["tool_calls"]
        assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
        assert several or len(calls) == 1
        for call in calls:
            seen.add(call["function"]["name"])
            arguments = json.loads(call["function"]["arguments"])
            assert arguments == {} if call["function"]["name"] == "get_time" else set(arguments) == {"city", "days"}
    assert seen <= {"get_weather", "get_time"} and (seen or several)


def test_a_named_call_is_made(client):
    named = {"type": "function", "function": {"name": "get_weather"}}
    for choice in choices(client, tools=[TIME, WEATHER], tool_choice=named, parallel_tool_calls=False):
        (call,) = choice["message"]["tool_calls"]
        assert call["function"]["name"] == "get_weather"


def test_a_tools_definitions_are_its_own(client):
    """As pydantic writes them: what it refers to stands within its parameters."""
    parameters = {
        "type": "object",
        "$defs": {"City": {"enum": ["Oslo"]}},
        "properties": {"city": {"$ref": "#/$defs/City"}},
        "required": ["city"],
        "additionalProperties": False,
    }
    tool = {"type": "function", "function": {"name": "go", "parameters": parameters}}
    for choice in choices(
        client, tools=[TIME, tool], tool_choice={"type": "function", "function": {"name": "go"}}, max_tokens=400
    ):
        for call in choice["message"].get("tool_calls", []):
            assert json.loads(call["function"]["arguments"]) == {"city": "Oslo"}


def test_a_schema_beside_tools_is_followed(client):
    for choice in choices(client, tools=[TIME], response_format=by_schema(CITY)):
        assert json.loads(choice["message"]["content"])["days"]


HOSTILE = {
    "remote": {"$ref": "http://example.com/schema"},
    "file": {"properties": {"a": {"$ref": "file:///etc/passwd"}}},
    "itself": {"$ref": "#"},
    "itself within": {"allOf": [{"$ref": "#"}]},
    "nothing": {"enum": []},
    "type": {"type": "potato"},
    "unknown keyword": {"type": "string", "unevaluatedItems": False},
    "look-ahead": {"type": "string", "pattern": "(?=a)b"},
    "number": {"type": "integer", "minimum": 10**400},
    "large": {"enum": ["x" * 70_000]},
}


@pytest.mark.parametrize("name", [pytest.param(name, id=f"F165-{name}") for name in HOSTILE])
def test_a_schema_that_cannot_be_followed_is_refused_before_anything_is_answered(client, name):
    began = time.monotonic()
    for stream in (False, True):
        got = client.chat("hi", response_format=by_schema(HOSTILE[name]), stream=stream)
        assert got.status == 400 and got.error["param"] == "response_format"
    if name != "large":  # its prompt is too long already
        tool = {"type": "function", "function": {"name": "f", "parameters": HOSTILE[name]}}
        got = client.chat("hi", tools=[tool], tool_choice="required")
        assert got.status == 400 and got.error["param"] == "tools"
    assert time.monotonic() - began < 3


HARD = {
    "nested repeats": {"type": "string", "pattern": "^(a+)+$"},
    "many repeats": {"type": "string", "pattern": "^(a{1,1000}){1,1000}$"},
    "ambiguous": {"type": "string", "pattern": "^(([a-z])+.)+[A-Z]([a-z])+$"},
    "a long list": {"type": "array", "minItems": 100_000, "items": {"type": "integer"}},
    "a long text": {"type": "string", "minLength": 10_000, "maxLength": 10**9},
    "many alternatives": {
        "anyOf": [{"properties": {f"{i}{j}": {"type": "string"} for j in range(30)}} for i in range(30)]
    },
}


@pytest.mark.parametrize("name", [pytest.param(name, id=f"F166-{name}") for name in HARD])
def test_a_hard_pattern_takes_no_long_time_and_others_are_served(client, name):
    began = time.monotonic()
    got = client.chat("hi", response_format=by_schema(HARD[name]), max_tokens=40)
    assert got.status in (200, 400, 500)
    assert client.get("/health").status == 200
    assert time.monotonic() - began < 5


def test_an_answer_whose_grammar_fails_midway_is_an_error_and_no_text(client, monkeypatch):
    real = grammar.Grammar.constrain

    def fails(self, sampler):
        inner, drawn = real(self, sampler), []

        def sample(logits_V, seen):
            drawn.append(1)
            if len(drawn) > 3:
                raise grammar.GrammarError("the answer can't go on by its grammar: too complex")
            return inner(logits_V, seen)

        return sample

    monkeypatch.setattr(grammar.Grammar, "constrain", fails)
    got = client.chat("hi", response_format=by_schema(CITY))
    assert got.status == 500 and "too complex" in got.error["message"]


def test_ending_cannot_be_ignored_where_the_schema_ends(client):
    got = client.chat("hi", response_format={"type": "json_object"}, ignore_eos=True)
    assert got.status == 400 and got.error["param"] == "ignore_eos"


@pytest.mark.parametrize(
    ("biases", "param"),
    [
        pytest.param({"272": 1}, "logit_bias", id="F164-above"),
        pytest.param({"-1": 1}, "logit_bias", id="F164-below"),
        pytest.param({"a": 1}, "logit_bias", id="F164-text"),
        pytest.param({"5": 101}, "logit_bias.5", id="F164-much"),
        pytest.param({str(id): 1 for id in range(1025)}, "logit_bias", id="F164-many"),
        pytest.param([1], "logit_bias", id="F164-list"),
    ],
)
def test_a_bias_that_cannot_be_used_is_refused(client, biases, param):
    got = client.chat("hi", logit_bias=biases)
    assert got.status == 400 and got.error["param"] == param


def test_a_bias_makes_a_token_certain_or_impossible(client):
    def text(**fields):
        return client.chat("hi", max_tokens=6, temperature=1, seed=1, ignore_eos=True, **fields).json["choices"][0]

    assert text(logit_bias={"97": 100})["message"]["content"] == "aaaaaa"
    assert "a" not in text(logit_bias={"97": 100, "98": 100}, stop=["a"])["message"]["content"]
    greedy = client.chat("hi", max_tokens=1, ignore_eos=True, logprobs=True).json["choices"][0]["logprobs"]["content"]
    (token,) = greedy[0]["bytes"][:1]
    other = client.chat("hi", max_tokens=1, ignore_eos=True, logprobs=True, logit_bias={str(token): -100})
    assert other.json["choices"][0]["logprobs"]["content"][0]["bytes"] != greedy[0]["bytes"]


def test_penalties_count_what_the_answer_has_said(client):
    def tokens(**fields):
        body = {
            "messages": [{"role": "user", "content": "aaaa"}],
            "temperature": 0,
            "max_tokens": 40,
            "ignore_eos": True,
        }
        got = client.post("/v1/chat/completions", {**body, "logprobs": True, "logit_bias": {"97": 30}, **fields})
        return [one["bytes"] for one in got.json["choices"][0]["logprobs"]["content"]]

    assert tokens() == [[97]] * 40
    frequency = tokens(frequency_penalty=2)
    assert frequency[0] == [97], "the prompt doesn't count"
    assert tokens(presence_penalty=2) == [[97]] * 40, "once, and 30 are more"
    assert frequency != [[97]] * 40
    for name in ("presence_penalty", "frequency_penalty"):
        assert client.chat("hi", **{name: 2.1}).error["param"] == name
