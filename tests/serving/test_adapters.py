"""Adapters by name: models of their own over one base, in one batch with it."""

from __future__ import annotations

import concurrent.futures
import json
from pathlib import Path

import pytest

from llama3_scratch.checkpoint.load import load
from llama3_scratch.checkpoint.peft_out import write_peft
from llama3_scratch.inference.choices import ModelChoice
from llama3_scratch.serving.choices import ServeChoice
from llama3_scratch.serving.run import serving
from tests.forms import with_adaptors
from tests.serving.http_client import Client

NAMES = ("tiny", "poet", "judge:v2")


@pytest.fixture(scope="module")
def adapted(folder, tmp_path_factory):
    checkpoint = load(folder)
    root: Path = tmp_path_factory.mktemp("adapters")
    for name, rank in (("a", 3), ("b", 2)):
        write_peft(root / name, with_adaptors(checkpoint.params, rank=rank), checkpoint.config, base="tiny")
    choice = ServeChoice(port=0, adapters={"poet": root / "a", "judge:v2": root / "b"})
    with serving(choice, model=ModelChoice(model=folder)) as server:
        yield Client(server), [None, root / "a", root / "b"]


def answer(client: Client, name: str) -> str:
    got = client.chat("hello there", model=name, max_tokens=24, ignore_eos=True)
    assert got.json["model"] == name
    return json.dumps(got.json["choices"][0]["message"])


def test_each_is_a_model_with_answers_of_its_own_alone_and_in_company(adapted):
    client, _ = adapted
    alone = [answer(client, name) for name in NAMES]
    assert len(set(alone)) == 3
    with concurrent.futures.ThreadPoolExecutor(9) as pool:
        assert list(pool.map(lambda name: answer(client, name), NAMES * 3)) == alone * 3


def test_they_are_listed_with_their_parent(adapted):
    client, _ = adapted
    listed = client.get("/v1/models").json["data"]
    assert [model["id"] for model in listed] == list(NAMES)
    assert [model.get("parent") for model in listed] == [None, "tiny", "tiny"]
    assert client.get("/v1/models/judge:v2").json["id"] == "judge:v2"
    assert client.chat("hi", model="c").error["code"] == "model_not_found"


def test_an_answer_is_that_of_the_adapter_alone(adapted, folder):
    client, folders = adapted
    with serving(ServeChoice(port=0, adapters={"only": folders[1]}), model=ModelChoice(model=folder)) as server:
        got = Client(server).chat("hello there", model="only", max_tokens=24, ignore_eos=True)
    assert json.dumps(got.json["choices"][0]["message"]) == answer(client, "poet")


def test_embeddings_and_echoes_are_the_adapters_too(adapted):
    client, _ = adapted
    vectors = [client.post("/v1/embeddings", {"input": "a cat", "model": name}).json["data"][0] for name in NAMES]
    assert len({json.dumps(vector) for vector in vectors}) == 3
    echoed = [
        client.complete("a cat", model=name, echo=True, logprobs=0, max_tokens=0).json["choices"][0]["logprobs"]
        for name in NAMES
    ]
    assert len({json.dumps(one) for one in echoed}) == 3
