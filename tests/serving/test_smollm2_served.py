"""The real model, served: the text of `generate`, and conversations whose beginning is found again."""

from __future__ import annotations

import pytest

import llama3_scratch as l3
from llama3_scratch.inference.choices import ModelChoice
from llama3_scratch.serving.choices import ServeChoice
from llama3_scratch.serving.run import serving
from tests.serving.http_client import Client

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served(smollm2):
    with serving(ServeChoice(port=0), model=ModelChoice(model=smollm2)) as server:
        yield Client(server)


def test_an_answer_is_that_of_generate(served, smollm2):
    question = "What is the capital of France?"
    text = served.chat(question).json["choices"][0]["message"]["content"]
    assert text == l3.answer(l3.load(smollm2), question) == "The capital of France is Paris."


def test_a_conversation_computes_only_what_is_new(served):
    """Six turns with the sampler's own tokens: those of all turns before are in the pages, but for the last page."""
    messages = [{"role": "system", "content": "You answer in two or three sentences, with odd words. " * 4}]
    before = 0
    for turn in range(6):
        messages.append({"role": "user", "content": f"Tell me number {turn} of your favourite animals, and why?"})
        got = served.post(
            "/v1/chat/completions", {"messages": messages, "temperature": 1.3, "seed": turn, "max_tokens": 60}
        ).json
        used = got["usage"]
        if turn:
            assert used["prompt_tokens_details"]["cached_tokens"] > before - 64, turn
        before = used["total_tokens"]
        messages.append(got["choices"][0]["message"])


def test_likeness_of_texts_shows_in_their_embeddings(served):
    texts = ["How do I bake bread?", "What is the way to make a loaf?", "The stock market fell by 3 % today."]
    data = served.post("/v1/embeddings", {"input": texts}).json["data"]
    bread, loaf, market = (one["embedding"] for one in data)

    def like(one: list[float], other: list[float]) -> float:
        return sum(x * y for x, y in zip(one, other, strict=True))

    assert like(bread, loaf) > like(bread, market)
