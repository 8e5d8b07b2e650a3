"""`/v1/embeddings`: the mean of what goes into the head, of length 1, as numbers or as base64."""

from __future__ import annotations

import base64
import concurrent.futures

import numpy as np
import pytest
import torch

from llama3_scratch.cache import NO_CACHE
from llama3_scratch.checkpoint.load import load
from llama3_scratch.inference.fast_forward import FastForward


def expected(text: str) -> torch.Tensor:
    checkpoint = load("storyteller", needs_tokenizer=True)
    model = FastForward(checkpoint.params, checkpoint.config, dtype=torch.float32)
    ids = checkpoint.tokenizer.encode(text)
    with torch.inference_mode():
        mean_D = model.hidden(torch.tensor([ids]), NO_CACHE)[0].mean(0)
    return mean_D / mean_D.norm()


def test_an_embedding_is_the_normalised_mean(stories):
    text = "The cat sat on the mat. " * 12  # several passes
    got = stories.post("/v1/embeddings", {"input": text}).json
    assert got["object"] == "list" and got["model"] == "storyteller"
    assert got["usage"]["prompt_tokens"] == got["usage"]["total_tokens"] > 64
    (one,) = got["data"]
    assert one["object"] == "embedding" and one["index"] == 0
    assert torch.tensor(one["embedding"]).allclose(expected(text), atol=1e-4)


def test_base64_is_little_endian_float32(stories):
    as_numbers = stories.post("/v1/embeddings", {"input": "a cat"}).json["data"][0]["embedding"]
    text = stories.post("/v1/embeddings", {"input": "a cat", "encoding_format": "base64"}).json["data"][0]["embedding"]
    assert np.frombuffer(base64.b64decode(text), "<f4").tolist() == as_numbers
    assert np.linalg.norm(as_numbers) == pytest.approx(1, abs=1e-5)


def test_fewer_dimensions_are_of_length_1_too(stories):
    whole = stories.post("/v1/embeddings", {"input": "a cat"}).json["data"][0]["embedding"]
    cut = stories.post("/v1/embeddings", {"input": "a cat", "dimensions": 7}).json["data"][0]["embedding"]
    assert len(cut) == 7 and np.allclose(np.array(whole[:7]) / np.linalg.norm(whole[:7]), cut, atol=1e-6)
    assert stories.post("/v1/embeddings", {"input": "a", "dimensions": 10**6}).error["param"] == "dimensions"


def test_several_inputs_keep_their_order_and_likeness_shows(stories):
    texts = ["The dog ran home.", "The puppy ran home.", "Stones 7 % = ()"]
    data = stories.post("/v1/embeddings", {"input": texts}).json["data"]
    assert [one["index"] for one in data] == [0, 1, 2]
    dog, puppy, stones = (np.array(one["embedding"]) for one in data)
    assert dog @ puppy > dog @ stones


def test_embeddings_are_the_same_while_answers_are_generated(stories):
    texts = [f"The cat number {number} sat on the mat." for number in range(12)]
    alone = [stories.post("/v1/embeddings", {"input": text}).json["data"] for text in texts]
    answers = [stories.complete(text, max_tokens=40).json["choices"] for text in texts]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        embedded = [pool.submit(stories.post, "/v1/embeddings", {"input": text}) for text in texts]
        answered = [pool.submit(stories.complete, text, max_tokens=40) for text in texts]
        for index, text in enumerate(texts):
            assert np.allclose(
                embedded[index].result().json["data"][0]["embedding"], alone[index][0]["embedding"], atol=1e-5
            ), text
            assert answered[index].result().json["choices"] == answers[index]


@pytest.mark.parametrize("given", [None, "", [], [""], {}, [1.5], [[]], [10**9]])
def test_an_input_that_is_none_is_refused(client, given):
    got = client.post("/v1/embeddings", {"input": given})
    assert got.status == 400 and got.error["param"] == "input"


def test_an_input_longer_than_the_context_is_refused(stories):
    got = stories.post("/v1/embeddings", {"input": "word " * 400})
    assert got.status == 400 and got.error["type"] == "exceed_context_size_error"
    assert stories.post("/v1/embeddings", {"input": "a", "encoding_format": "int8"}).error["param"] == "encoding_format"
