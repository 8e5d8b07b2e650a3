"""Looking inside over HTTP: the numbers are the model's, one place, for this machine or people with a key."""

from __future__ import annotations

import base64
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from llama3_scratch.serving import look
from llama3_scratch.serving.errors import ApiError
from llama3_scratch.trace import position
from tests.serving.http_client import until

CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "I sa"}]}


def tokens_of(client, body):
    return client.post("/tokenize", body).json["tokens"]


def test_the_lens_is_the_models(client):
    said = client.post("/v1/look/lens", {**CHAT, "said": list(b"y")}).json
    tokens = tokens_of(client, CHAT)
    model = client.server.service.models[None]
    shares_LV = position.lens(tokens, model.params, model.config)
    assert said["n_tokens"] == len(tokens) and len(said["layers"]) == model.config.n_layers
    for layer, told in enumerate(said["layers"]):
        assert told["layer"] == layer
        assert [one["probability"] for one in told["top"]] == pytest.approx(
            shares_LV[layer].topk(look.LENS_TOKENS).values.tolist(), rel=1e-3
        )
        assert told["said"] == pytest.approx(shares_LV[layer][ord("y")].item(), rel=1e-3)
        assert told["rank"] == 1 + int((shares_LV[layer] > shares_LV[layer][ord("y")]).sum())


def test_the_lens_last_layer_is_what_logprobs_say(client):
    body = {"prompt": "Once", "said": [0]}
    told = client.post("/v1/look/lens", body).json["layers"][-1]["top"][0]["probability"]
    got = client.complete("Once", max_tokens=1, logprobs=1, temperature=0).json
    assert np.exp(got["choices"][0]["logprobs"]["token_logprobs"][0]) == pytest.approx(told, rel=1e-3)


def test_attention_is_the_models(client):
    got = client.post("/v1/look/attention", CHAT).json
    tokens = tokens_of(client, CHAT)
    model = client.server.service.models[None]
    weights_LHS = position.attention(tokens, model.params, model.config)
    assert got["shape"] == list(weights_LHS.shape) and len(got["tokens"]) == len(tokens)
    assert got["tokens"][-4:] == ["I", " ", "s", "a"]
    told = np.frombuffer(base64.b64decode(got["weights"]), np.uint8).reshape(got["shape"])
    torch.testing.assert_close(torch.tensor((told / 255.0) ** 2).float(), weights_LHS, atol=5e-3, rtol=0)


def test_a_trace_is_a_page_of_its_own_in_a_sandbox(client):
    made = client.post("/v1/look/trace", CHAT).json
    assert made["n_tokens"] == len(tokens_of(client, CHAT))
    page = client.get(made["url"])
    assert page.status == 200 and len(page.body.decode()) == made["n_bytes"]
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["content-security-policy"] == "sandbox allow-scripts; frame-ancestors 'none'"
    assert b"script-src 'sha256-" in page.body
    assert client.get("/trace?id=guessed").status == client.get("/trace").status == 404


def test_the_latest_traces_are_kept(client):
    urls = [client.post("/v1/look/trace", {"prompt": text}).json["url"] for text in "abcde"]
    assert [client.get(url).status for url in urls] == [404, 200, 200, 200, 200]


def test_what_is_too_long_is_refused(client):
    got = client.post("/v1/look/trace", {"prompt": "x" * (look.MAX_TRACED + 1)})
    assert got.status == 400 and got.error["code"] == "too_long_to_look"
    assert (got.error["n_prompt_tokens"], got.error["n_ctx"]) == (look.MAX_TRACED + 1, look.MAX_TRACED)
    assert client.post("/v1/look/lens", {"prompt": "x" * (look.MAX_TRACED + 1)}).status == 200
    assert client.post("/v1/look/lens", {"prompt": "x" * (look.MAX_TOKENS + 1)}).status == 400


@pytest.mark.parametrize(
    "body",
    [{}, {"messages": []}, {"prompt": 1}, {"prompt": "a", "said": "b"}, {"prompt": "a", "said": [256]}],
)
def test_what_isnt_right_is_refused(client, body):
    got = client.post("/v1/look/lens", body)
    assert got.status == 400 and got.error["type"] == "invalid_request_error"


def test_a_token_that_the_vocabulary_hasnt_is_told_nothing_of(client):
    assert "said" not in client.post("/v1/look/lens", {"prompt": "a", "said": [65, 66]}).json["layers"][0]
    assert client.post("/v1/look/lens", {"prompt": "a", "model": "none"}).status == 404


def test_there_is_one_place(client, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()
    real = position.lens

    def slow(*args, **more):
        begun.set()
        go_on.wait(20)
        return real(*args, **more)

    monkeypatch.setattr(position, "lens", slow)
    first = threading.Thread(target=lambda: answers.append(client.post("/v1/look/lens", CHAT)))
    answers: list = []
    first.start()
    assert begun.wait(20)
    busy = client.post("/v1/look/attention", CHAT)
    assert busy.status == 503 and "retry-after" in busy.headers
    assert client.chat("Hi", max_tokens=3).status == 200, "answers go on meanwhile"
    go_on.set()
    first.join()
    assert answers[0].status == 200
    monkeypatch.undo()
    assert client.post("/v1/look/attention", CHAT).status == 200


def test_only_on_this_machine_or_with_a_key(client):
    choice = client.server.service.choice

    def call(choice):
        return SimpleNamespace(service=SimpleNamespace(choice=choice))

    look._allowed(call(choice))
    look._allowed(call(replace(choice, host="0.0.0.0", api_keys=("secret",))))
    with pytest.raises(ApiError) as refused:
        look._allowed(call(replace(choice, host="0.0.0.0")))
    assert refused.value.status == 403


def test_pages_tell_who_holds_them_and_nothing_else(client, says):
    says(None, None)
    common = "They begin alike, and for so long that it fills more than one page of the cache. " * 2
    threads = [threading.Thread(target=lambda i=i: client.chat(f"{common}{i}", max_tokens=2000)) for i in "12"]
    for thread in threads:
        thread.start()
    service = client.server.service
    until(lambda: service.thread.stats.running == 2)
    got = client.get("/v1/look/pages").json
    assert got["page_tokens"] == 64 and got["n_pages"] == service.thread.stats.pages
    assert len(got["requests"]) == 2 and all(one["yours"] for one in got["requests"])
    numbers = sorted(one["request"] for one in got["requests"])
    shared = [page for page in got["pages"] if len(page["held_by"]) == 2]
    assert shared and all(sorted(page["held_by"]) == numbers for page in shared)
    assert sorted(one["cached_tokens"] for one in got["requests"])[1] == 64 * len(shared)
    assert b"alike" not in client.get("/v1/look/pages").body
    for thread in threads:
        thread.join()
    after = client.get("/v1/look/pages").json
    assert after["requests"] == [] and all(page["held_by"] == [] for page in after["pages"])


def test_there_is_no_model_for_pictures(client):
    got = client.post("/v1/images/generations", {"prompt": "a llama"})
    assert got.status == 404 and got.error["code"] == "model_not_found" and "pictures" in got.error["message"]
    assert not any(one["meta"].get("images") for one in client.get("/v1/models").json["data"])
