"""Tool calls: an answer that is nothing but calls becomes calls, in bodies and in streams, and leaks no content."""

from __future__ import annotations

import json

import pytest

from llama3_scratch.inference.choices import ModelChoice
from llama3_scratch.serving.choices import ServeChoice
from llama3_scratch.serving.run import serving
from tests import tiny
from tests.serving.http_client import Client

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
TIME = {"type": "function", "function": {"name": "get_time"}}
ASK = {"messages": [{"role": "user", "content": "weather in Oslo?"}], "tools": [WEATHER, TIME]}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Osló"}}\n</tool_call>'


def streamed(client, body):
    frames = client.frames("/v1/chat/completions", body)
    return [frame["choices"][0] for frame in frames[:-1]]


def test_a_call_is_a_call(client, says):
    says(CALL)
    choice = client.post("/v1/chat/completions", ASK).json["choices"][0]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    assert call["type"] == "function" and call["id"].startswith("call_")
    assert call["function"]["name"] == "get_weather" and json.loads(call["function"]["arguments"]) == {"city": "Osló"}


def test_a_streamed_call_has_an_index_and_no_content(client, says):
    says(CALL + CALL.replace("get_weather", "get_time"))
    first, *calls, end = streamed(client, ASK)
    assert first["delta"] == {"role": "assistant", "content": None}
    deltas = [call["delta"]["tool_calls"][0] for call in calls]
    assert [delta["index"] for delta in deltas] == [0, 1]
    assert [delta["function"]["name"] for delta in deltas] == ["get_weather", "get_time"]
    assert all("content" not in call["delta"] for call in calls)
    assert end["delta"] == {} and end["finish_reason"] == "tool_calls"


def test_one_call_at_most_where_no_more_are_wanted(client, says):
    says(CALL + CALL)
    choice = client.post("/v1/chat/completions", {**ASK, "parallel_tool_calls": False}).json["choices"][0]
    assert len(choice["message"]["tool_calls"]) == 1


@pytest.mark.parametrize(
    "said",
    [
        "It's sunny.",
        "{not a call}",
        '{"name": "rm", "arguments": {}}',
        "<tool_cal",
        '<tool_call>{"name": "get_we',
        CALL + " and that's it",
        CALL.replace("get_weather", "launch_missiles"),
    ],
)
def test_whatever_is_no_call_of_these_tools_is_content_to_the_last_character(client, says, said):
    says(said, said)
    choice = client.post("/v1/chat/completions", ASK).json["choices"][0]
    assert choice["message"]["content"] == said and "tool_calls" not in choice["message"]
    chunks = streamed(client, ASK)
    assert "".join(chunk["delta"].get("content") or "" for chunk in chunks) == said
    assert chunks[-1]["finish_reason"] == "stop"


def test_a_text_that_can_be_no_call_streams_at_once(client, says):
    says("Sunny.")
    assert len([chunk for chunk in streamed(client, ASK) if chunk["delta"].get("content")]) == 6


def test_without_tools_or_with_none_wanted_a_call_is_text(client, says):
    says(CALL, CALL)
    for more in ({"tools": None}, {"tool_choice": "none"}):
        choice = client.post("/v1/chat/completions", {**ASK, **more}).json["choices"][0]
        assert choice["message"]["content"] == CALL and choice["finish_reason"] == "stop"


def test_tools_stand_in_the_prompt_unless_none_is_wanted(client):
    with_tools = client.post("/apply-template", ASK).json["prompt"]
    assert "get_weather" in with_tools and "The weather of a city" in with_tools


def test_results_of_calls_come_back(client, says):
    says("Rain.")
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
    messages = [
        *ASK["messages"],
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": '{"sky": "rain"}'},
    ]
    got = client.post("/v1/chat/completions", {**ASK, "messages": messages})
    assert got.json["choices"][0]["message"]["content"] == "Rain."
    prompt = client.post("/apply-template", {**ASK, "messages": messages}).json["prompt"]
    assert prompt.index("get_weather") < prompt.index("Oslo") < prompt.index('{"sky": "rain"}')


def test_logprobs_of_a_held_text_come_with_it(client, says):
    says("{x}", CALL)
    body = {**ASK, "logprobs": True}
    chunks = streamed(client, body)
    content = [one for chunk in chunks if chunk["logprobs"] for one in chunk["logprobs"]["content"]]
    assert "".join(one["token"] for one in content) == "{x}"
    choice = client.post("/v1/chat/completions", body).json["choices"][0]
    assert choice["message"]["tool_calls"] and choice["logprobs"] is None


# Llama 3's own forms


@pytest.fixture(scope="module")
def llama3(tmp_path_factory):
    folder = tiny.folder(tmp_path_factory.mktemp("served") / "llama3", "llama3")
    with serving(ServeChoice(port=0), model=ModelChoice(model=folder)) as server:
        yield Client(server)


@pytest.mark.parametrize(
    "said",
    [
        '{"type": "function", "name": "get_weather", "parameters": {"city": "Oslo"}}',
        '{"name": "get_weather", "parameters": {"city": "Oslo"}}',
        '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Oslo"}}',
        '<function=get_weather>{"city": "Oslo"}</function>',
        '[get_weather(city="Oslo")]',
    ],
)
def test_llamas_calls_are_calls_and_leak_into_no_content(llama3, says, said):
    says(said, said, tokenizer=tiny.tokenizer("llama3"))
    choice = llama3.post("/v1/chat/completions", ASK).json["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert choice["message"]["content"] is None and choice["finish_reason"] == "tool_calls"
    assert call["function"]["name"] == "get_weather" and json.loads(call["function"]["arguments"]) == {"city": "Oslo"}
    chunks = streamed(llama3, ASK)
    assert not any(chunk["delta"].get("content") for chunk in chunks)
    assert chunks[1]["delta"]["tool_calls"][0]["function"] == call["function"]


@pytest.mark.parametrize("said", ['{"city": "Oslo"}', "[1, 2, 3]", "<b>bold</b>", '{"name": "Oslo", "size": 5}'])
def test_json_that_is_no_call_is_content(llama3, says, said):
    says(said, tokenizer=tiny.tokenizer("llama3"))
    assert llama3.post("/v1/chat/completions", ASK).json["choices"][0]["message"]["content"] == said
