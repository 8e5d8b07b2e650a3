"""The real small model: its greedy answers and its perplexity equal transformers', its answer is right."""

from __future__ import annotations

import json
import math

import pytest
import torch

from llama3_scratch import generate, load
from llama3_scratch.checkpoint.meta import open_pth
from llama3_scratch.model import block, forward
from llama3_scratch.sample import sampler
from llama3_scratch.stream import stream
from tests import smollm2_golden as golden


@pytest.fixture(scope="module")
def checkpoint(smollm2):
    return load(smollm2)


@pytest.fixture(scope="module")
def answers():
    return json.loads(golden.FILE.read_text())["answers"]


def greedy(checkpoint, prompts, **options):
    rows: list[list[int]] = [[] for _ in prompts]
    for step in stream(
        prompts,
        checkpoint.params,
        checkpoint.config,
        samplers=[sampler()] * len(prompts),
        max_tokens=golden.N_TOKENS,
        **options,
    ):
        rows[step.row].append(step.token)
    return rows


def test_it_is_stored_in_metas_layout_as_it_is_computed(smollm2, checkpoint):
    stored = open_pth(smollm2 / "consolidated.00.pth")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    assert checkpoint.config.tied and checkpoint.config.n_parameters == 134_515_008


def test_prompts_have_the_stored_ids(checkpoint, answers):
    assert golden.prompts(checkpoint) == [answer["prompt_tokens"] for answer in answers]


def test_greedy_ids_of_twenty_prompts_equal_transformers_as_one_batch(checkpoint, answers):
    rows = greedy(checkpoint, [answer["prompt_tokens"] for answer in answers])
    assert rows == [answer["tokens"] for answer in answers]


@pytest.mark.parametrize("index, options", [(0, {}), (13, {"chunk": 5}), (19, {"block": block})])
def test_greedy_ids_alone_chunked_and_readable(checkpoint, answers, index, options):
    answer = answers[index]
    assert greedy(checkpoint, [answer["prompt_tokens"]], **options) == [answer["tokens"]]


@pytest.mark.parametrize("n_tokens", [1024, pytest.param(8192, marks=pytest.mark.slow)])
def test_perplexity_equals_transformers(checkpoint, n_tokens):
    wanted = math.exp(json.loads(golden.FILE.read_text())["mean_nll"][str(n_tokens)])
    ours = golden.mean_nll(
        lambda ids: forward(ids, checkpoint.params, checkpoint.config), golden.wikitext(checkpoint, n_tokens)
    )
    assert math.exp(ours) == pytest.approx(wanted, rel=1e-5)


def test_the_readmes_question_is_answered_rightly(smollm2, capsys):
    assert generate.main(["What is the capital of France?", "--model", str(smollm2)]) == 0
    assert capsys.readouterr().out == "The capital of France is Paris.\n"


@pytest.mark.slow
def test_transformers_still_says_what_is_stored(smollm2):
    stored = json.loads(golden.FILE.read_text())
    made = golden.make(smollm2, 1024)
    assert made["answers"] == stored["answers"]
    assert made["mean_nll"]["1024"] == pytest.approx(stored["mean_nll"]["1024"], rel=1e-6)
