"""The clients that people use: openai-python and simonw/llm as they are, requests as Open WebUI and Continue send."""

from __future__ import annotations

import concurrent.futures
import json
import threading
import time

import numpy as np
import openai
import pytest

from llama3_scratch.inference.choices import ModelChoice
from llama3_scratch.serving.choices import ServeChoice
from llama3_scratch.serving.run import serving
from tests import tiny
from tests.serving import client_requests
from tests.serving.http_client import until

HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def api(client):
    with openai.OpenAI(base_url=f"{client.server.address}/v1", api_key="none", max_retries=0) as api:
        yield api


def test_openai_chats(api, says):
    says("Hello, you")
    got = api.chat.completions.create(model="tiny", messages=HI, seed=1, temperature=0.3, top_p=0.9)
    assert got.choices[0].message.content == "Hello, you" and got.choices[0].finish_reason == "stop"
    assert got.usage.total_tokens == got.usage.prompt_tokens + 11
    assert 0 <= got.usage.prompt_tokens_details.cached_tokens < got.usage.prompt_tokens


def test_openai_streams(api, says):
    says("Hé!")
    chunks = list(
        api.chat.completions.create(model="tiny", messages=HI, stream=True, stream_options={"include_usage": True})
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Hé!"
    assert chunks[-1].usage.completion_tokens == 5 and chunks[-1].choices == []
    says("Hé!")
    with api.chat.completions.stream(model="tiny", messages=HI) as stream:
        assert "".join(event.delta for event in stream if event.type == "content.delta") == "Hé!"
        assert stream.get_final_completion().choices[0].message.content == "Hé!"


def test_openai_calls_tools(api, says):
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    says(call, call, "3")
    got = api.chat.completions.create(model="tiny", messages=HI, tools=tools)
    (called,) = got.choices[0].message.tool_calls
    assert got.choices[0].finish_reason == "tool_calls" and json.loads(called.function.arguments) == {"a": 1}
    with api.chat.completions.stream(model="tiny", messages=HI, tools=tools) as stream:
        streamed = stream.get_final_completion().choices[0]
    assert streamed.message.tool_calls[0].function.name == "add" and streamed.finish_reason == "tool_calls"
    messages = [*HI, got.choices[0].message, {"role": "tool", "tool_call_id": called.id, "content": "3"}]
    assert api.chat.completions.create(model="tiny", messages=messages, tools=tools).choices[0].message.content == "3"


def test_openai_logprobs(api, says):
    says("añ")
    got = api.chat.completions.create(model="tiny", messages=HI, logprobs=True, top_logprobs=3)
    content = got.choices[0].logprobs.content
    assert "".join(one.token for one in content) == "añ" and len(content[0].top_logprobs) == 3


def test_openai_completes(stories):
    with openai.OpenAI(base_url=stories.server.address, api_key="none") as api:  # without /v1
        got = api.completions.create(model="storyteller", prompt="Once upon", max_tokens=4, logprobs=2, echo=True)
        assert got.choices[0].text.startswith("Once upon") and len(got.choices[0].logprobs.top_logprobs[-1]) == 2
        texts = [
            chunk.choices[0].text for chunk in api.completions.create(model="storyteller", prompt="Tom", stream=True)
        ]
        assert "".join(texts)


def test_openai_embeds(api):
    got = api.embeddings.create(model="tiny", input=["a", "b"])  # base64, unless told otherwise
    assert len(got.data) == 2 and len(got.data[0].embedding) == tiny.CONFIG.dim
    assert np.linalg.norm(got.data[1].embedding) == pytest.approx(1, abs=1e-5)
    as_floats = api.embeddings.create(model="tiny", input="a", encoding_format="float").data[0].embedding
    assert got.data[0].embedding == pytest.approx(as_floats, abs=1e-6)


def test_openai_lists_models(api):
    assert [model.id for model in api.models.list()] == ["tiny"] and api.models.retrieve("tiny").id == "tiny"


def test_openais_errors_have_their_types(api, client, folder):
    with pytest.raises(openai.BadRequestError) as error:
        api.chat.completions.create(model="tiny", messages=HI, temperature=9)
    assert error.value.param == "temperature" and error.value.type == "invalid_request_error"
    with pytest.raises(openai.NotFoundError) as error:
        api.chat.completions.create(model="gpt-4", messages=HI)
    assert error.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="context"):
        api.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x" * 9000}])
    with pytest.raises(openai.APIStatusError) as large:
        api.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x" * 5_000_000}])
    assert large.value.status_code == 413
    foreign = openai.OpenAI(
        base_url=api.base_url, api_key="none", max_retries=0, default_headers={"Origin": "http://evil.com"}
    )
    with foreign, pytest.raises(openai.PermissionDeniedError):
        foreign.models.list()
    with serving(ServeChoice(port=0, api_keys=("right",)), model=ModelChoice(model=folder)) as server:
        at = f"{server.address}/v1"
        with openai.OpenAI(base_url=at, api_key="wrong") as wrong, pytest.raises(openai.AuthenticationError):
            wrong.models.list()
        with openai.OpenAI(base_url=at, api_key="right") as right:
            assert [model.id for model in right.models.list()] == ["tiny"]


def test_openai_tries_again_where_the_queue_is_full(client, says):
    says(*[None] * 8, "at last")
    stats = client.server.service.thread
    body = client.request("/v1/chat/completions", {"messages": HI, "n": 4})
    api = openai.OpenAI(base_url=client.server.address, api_key="none", max_retries=5)
    with api, client.opened(body) as one, client.opened(body) as other:
        until(lambda: stats.stats.running + stats.stats.waiting == 8)
        leave = threading.Timer(0.2, lambda: (one.shutdown(2), other.shutdown(2)))
        leave.start()
        began = time.monotonic()
        got = api.chat.completions.create(model="tiny", messages=HI)
        leave.join()
    assert got.choices[0].message.content == "at last" and time.monotonic() - began >= 0.9, "it waited as it was told"


@pytest.fixture
def llm(client, tmp_path, monkeypatch):
    """simonw/llm with this server in its list of models: what it ends with when it's given these arguments."""
    from click.testing import CliRunner
    from llm.cli import cli

    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: served\n  model_name: {client.server.service.name}\n  api_base: {client.server.address}/v1\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    return lambda *arguments: CliRunner().invoke(cli, arguments)


def test_llm_prompts_with_and_without_a_stream(llm, says):
    says("Hello from llm")
    done = llm("prompt", "-m", "served", "hi", "-s", "be kind", "-o", "temperature", "0.2")
    assert done.exit_code == 0 and done.stdout.strip() == "Hello from llm", done.output
    says("and whole")
    done = llm("prompt", "-m", "served", "--no-stream", "-c", "again")
    assert done.stdout.strip() == "and whole", done.output
    done = llm("prompt", "-m", "served", "hi", "-o", "temperature", "1.9", "-o", "max_tokens", "99999999")
    assert done.exit_code != 0 and "max_tokens: expected a whole number" in done.stderr


def test_open_webuis_requests_are_answered(client, says):
    (path, chat), *tasks = client_requests.OPEN_WEBUI
    says("Hello!")
    frames = client.frames(path, chat)
    assert "".join(frame["choices"][0]["delta"].get("content") or "" for frame in frames[:-2]) == "Hello!"
    assert frames[-2]["usage"]["completion_tokens"] == 7
    texts = ['{ "title": "Greeting" }', '{ "tags": ["Greeting"] }', '{ "follow_ups": ["Who?"] }']
    says(*texts)
    with concurrent.futures.ThreadPoolExecutor() as pool:  # all at once, and each gets its own
        got = list(pool.map(lambda task: client.post(*task), tasks))
    assert [answer.status for answer in got] == [200] * 3
    assert sorted(answer.json["choices"][0]["message"]["content"] for answer in got) == sorted(texts)
    for path, status in client_requests.OPEN_WEBUI_PROBES:
        assert client.get(path).status == status


def test_continues_chat_is_answered(client, says):
    says("Sure.")
    assert client.frames(*client_requests.CONTINUE[0])[-1] == "[DONE]"


def test_continues_completion_of_code_with_its_long_list_of_stops_is_answered(stories):
    path, edit = client_requests.CONTINUE[1]
    assert len(edit["stop"]) == 16
    frames = stories.frames(path, edit)
    text = "".join(frame["choices"][0]["text"] for frame in frames[:-1])
    assert frames[-1] == "[DONE]" and text and not any(stop in text for stop in edit["stop"])
