"""`/v1/completions`, its logprobs in the older form, and those of chats."""

from __future__ import annotations

import math

import pytest
import torch

from llama3_scratch.checkpoint.load import load
from llama3_scratch.model import forward
from llama3_scratch.text.detokenizer import piece
from tests import tiny

ONCE = "Once upon a time, there was"


@pytest.fixture(scope="module")
def storyteller():
    return load("storyteller", needs_tokenizer=True)


def test_a_completion_has_the_fields_that_clients_read(stories):
    got = stories.complete(ONCE).json
    assert got["object"] == "text_completion" and got["id"].startswith("cmpl-") and got["model"] == "storyteller"
    (choice,) = got["choices"]
    assert choice["text"].strip() and choice["logprobs"] is None and choice["finish_reason"] == "length"
    assert got["usage"]["completion_tokens"] == 16, "OpenAI's default"


def test_prompts_are_texts_or_tokens_one_or_several(stories, storyteller):
    ids = storyteller.tokenizer.encode(ONCE)
    (text,) = [choice["text"] for choice in stories.complete(ONCE).json["choices"]]
    for prompt in ([ONCE], ids, [ids], [ONCE, ONCE], [ids, ids]):
        choices = stories.complete(prompt).json["choices"]
        assert [choice["text"] for choice in choices] == [text] * len(choices)
        assert [choice["index"] for choice in choices] == list(range(len(choices)))
    choices = stories.complete([ONCE, "Tom"], n=2, temperature=1, seed=3).json["choices"]
    assert len({choice["text"] for choice in choices}) == 4 and [choice["index"] for choice in choices] == [0, 1, 2, 3]


def test_a_stream_of_completions(stories):
    text = stories.complete(ONCE, max_tokens=8).json["choices"][0]["text"]
    *chunks, last, done = stories.frames(
        "/v1/completions",
        {"prompt": ONCE, "max_tokens": 8, "stream_options": {"include_usage": True}, "echo": True},
    )
    assert done == "[DONE]" and last["choices"] == [] and last["usage"]["completion_tokens"] == 8
    said = [chunk["choices"][0]["text"] for chunk in chunks]
    assert said[0] == ONCE and "".join(said[1:]) == text and all(said)
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]


def expected_logprobs(checkpoint, ids: list[int]) -> list[float]:
    """Of each token but the first, from one pass over all."""
    logprobs_TV = forward([ids], checkpoint.params, checkpoint.config, dtype=torch.float32)[0].log_softmax(-1)
    return [float(logprobs_TV[place, token]) for place, token in enumerate(ids[1:])]


def test_logprobs_are_those_of_one_pass_and_an_echo_has_the_prompts(stories, storyteller):
    got = stories.complete(ONCE, max_tokens=5, echo=True, logprobs=3).json["choices"][0]
    told = got["logprobs"]
    ids = storyteller.tokenizer.encode(got["text"])
    assert got["text"].startswith(ONCE) and "".join(told["tokens"]) == got["text"]
    wanted = expected_logprobs(storyteller, ids)  # the first is known: a token that begins texts stands before it
    assert told["token_logprobs"] == pytest.approx(wanted, abs=2e-3)
    assert [
        got["text"][begin:][: len(token)] for begin, token in zip(told["text_offset"], told["tokens"], strict=True)
    ] == told["tokens"]
    for logprob, top in zip(told["token_logprobs"][-5:], told["top_logprobs"][-5:], strict=True):
        values = list(top.values())
        assert len(values) == 3 and values == sorted(values, reverse=True)
        assert logprob == pytest.approx(values[0], abs=1e-6), "greedy: the likeliest"


def test_an_echo_alone_scores_a_text(stories, storyteller):
    """What lm-eval asks: how likely is this text?"""
    ids = storyteller.tokenizer.encode(ONCE)
    got = stories.complete(ids, max_tokens=0, echo=True, logprobs=1).json
    told = got["choices"][0]["logprobs"]
    assert got["choices"][0]["text"].endswith(ONCE) and got["usage"]["completion_tokens"] == 0
    assert len(told["tokens"]) == len(ids)
    assert told["token_logprobs"][0] is None and told["top_logprobs"][0] is None, "nothing stands before it"
    assert sum(told["token_logprobs"][1:]) == pytest.approx(sum(expected_logprobs(storyteller, ids)), abs=1e-2)


def test_logprobs_without_an_echo_begin_behind_the_prompt(stories):
    told = stories.complete(ONCE, max_tokens=3, logprobs=0).json["choices"][0]["logprobs"]
    assert told["text_offset"][0] == 0 and told["top_logprobs"] == [{}, {}, {}]
    echoed = stories.frames("/v1/completions", {"prompt": ONCE, "max_tokens": 3, "logprobs": 1, "echo": True})
    offsets = [offset for frame in echoed[:-1] for offset in frame["choices"][0]["logprobs"]["text_offset"]]
    assert offsets == sorted(offsets) and offsets[-3] == len(ONCE)


def joined(content: list[dict]) -> tuple[str, bytes]:
    return "".join(one["token"] for one in content), b"".join(bytes(one["bytes"]) for one in content)


def test_a_chats_logprobs_joined_are_its_content(client, says):
    says("añ你🙂.")
    choice = client.chat("hi", logprobs=True, top_logprobs=2).json["choices"][0]
    told, content = choice["logprobs"], choice["message"]["content"]
    assert told["refusal"] is None and joined(told["content"]) == (content, content.encode())
    for one in told["content"]:
        assert set(one) == {"token", "bytes", "logprob", "top_logprobs"} and math.isfinite(one["logprob"])
        assert len(one["top_logprobs"]) == 2 and set(one["top_logprobs"][0]) == {"token", "bytes", "logprob"}
    assert [one["token"] for one in told["content"]] == ["a", "", "ñ", "", "", "你", "", "", "", "🙂", "."]


def test_logprobs_alone_have_no_others_beside_them(client, says):
    says("ab")
    told = client.chat("hi", logprobs=True).json["choices"][0]["logprobs"]["content"]
    assert [one["top_logprobs"] for one in told] == [[], []]


@pytest.mark.parametrize(
    ("said", "stop", "text"),
    [("one\nUser: two", ["\nUser:"], "one"), ("aXbcd", ["bc"], "aX"), ("你好", [], "你好"), ("你\ud83d"[:1], [], "你")],
)
def test_streamed_logprobs_joined_are_the_content_whatever_is_held_back(client, says, said, stop, text):
    says(said)
    body = {"messages": [{"role": "user", "content": "hi"}], "logprobs": True, "stop": stop}
    frames = client.frames("/v1/chat/completions", body)
    choices = [frame["choices"][0] for frame in frames[:-1]]
    content = [one for choice in choices if choice["logprobs"] for one in choice["logprobs"]["content"]]
    assert joined(content) == (text, text.encode())
    for choice in choices[1:-1]:
        assert joined(choice["logprobs"]["content"])[0] == choice["delta"]["content"]


def test_logprobs_are_before_the_samplers_filters(client, folder):
    checkpoint = load(folder)
    body = {"max_tokens": 1, "logprobs": True, "top_logprobs": 20, "temperature": 0.1, "top_k": 1, "ignore_eos": True}
    (told,) = client.chat("hi", **body).json["choices"][0]["logprobs"]["content"]
    ids = client.post("/tokenize", {"messages": [{"role": "user", "content": "hi"}]}).json["tokens"]
    logprobs_V = forward([ids], checkpoint.params, checkpoint.config)[0, -1].log_softmax(-1)
    wanted = logprobs_V.topk(20).values
    assert torch.tensor([one["logprob"] for one in told["top_logprobs"]]).allclose(wanted, atol=2e-3)


def test_tokenize_and_back(stories, storyteller):
    ids = storyteller.tokenizer.encode(ONCE, bos=False)
    got = stories.post("/tokenize", {"content": ONCE}).json
    assert got["tokens"] == ids and got["count"] == len(ids)
    assert stories.post("/tokenize", {"content": ONCE, "add_special": True}).json["tokens"][1:] == ids
    assert stories.post("/detokenize", {"tokens": ids}).json["content"] == ONCE
    assert stories.post("/detokenize", {"tokens": [10**9]}).error["param"] == "tokens"
    assert stories.post("/detokenize", {"tokens": "x"}).status == 400
    assert stories.post("/tokenize", {}).error["param"] == "content"


def test_tokens_with_their_pieces(client):
    got = client.post("/tokenize", {"content": "aé", "with_pieces": True}).json["tokens"]
    assert got == [{"id": 97, "piece": "a"}, {"id": 195, "piece": [195]}, {"id": 169, "piece": [169]}]


def test_a_chats_prompt_can_be_seen(client):
    chat = {"messages": [{"role": "user", "content": "hi"}]}
    text = client.post("/apply-template", chat).json["prompt"]
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    ids = client.post("/v1/tokenize", chat).json["tokens"]
    assert b"".join(piece(id, tiny.tokenizer()) for id in ids).decode() == text
    assert client.post("/apply-template", {"prompt": "x"}).status == 400
