"""The real small model: its greedy answers and its perplexity equal transformers', its answer is right."""

from __future__ import annotations

import json
import math

import pytest
import torch

from llama3_scratch import generate, load
from llama3_scratch.checkpoint.fetch import download
from llama3_scratch.checkpoint.meta import open_pth
from llama3_scratch.checkpoint.names import BLOCKS
from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.inference.choices import ModelChoice
from llama3_scratch.inference.loading import open_model
from llama3_scratch.inference.sample import sampler
from llama3_scratch.model import block, forward
from llama3_scratch.native import kernels
from llama3_scratch.params.quantize import dequantize, quantize
from llama3_scratch.stored import n_bytes, stored
from tests import smollm2_golden as golden
from tests.batches import stream_all


@pytest.fixture(scope="module")
def checkpoint(smollm2):
    return load(smollm2)


@pytest.fixture(scope="module")
def answers():
    return json.loads(golden.FILE.read_text())["answers"]


def greedy(checkpoint, prompts, **options):
    rows: list[list[int]] = [[] for _ in prompts]
    for step in stream_all(
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


@pytest.fixture(scope="module")
def blocks(smollm2):
    try:
        return load(download(BLOCKS))
    except FileError as error:
        pytest.skip(f"the model's blocks can't be fetched: {error}")


def test_its_blocks_are_a_quarter_of_its_floats_and_mean_the_same_to_the_last_bit(blocks, checkpoint, torch_only):
    """KL 0 between the two: no figure of quality, since these floats were made from these blocks."""
    assert n_bytes(blocks.params) < 97_000_000 < n_bytes(checkpoint.params) / 5
    assert {stored(blocks.params, f"layers.{i}.feed_forward.w2").name for i in range(30)} == {"int4"}
    assert stored(blocks.params, "output").name == "int8" and blocks.config == checkpoint.config
    assert blocks.params["output.weight"] is blocks.params["tok_embeddings.weight"]
    assert dequantize(blocks.params, torch.float32).keys() == checkpoint.params.keys()
    for name, floats in dequantize(blocks.params, torch.float32).items():
        assert floats.equal(checkpoint.params[name]), name
    ids = golden.prompts(checkpoint)[0]
    with torch.inference_mode():
        ours, wanted = (forward(torch.tensor([ids]), ck.params, ck.config) for ck in (blocks, checkpoint))
    assert ours.allclose(wanted, rtol=1e-6, atol=1e-4)


@pytest.mark.skipif(kernels.library() is None, reason="the kernels weren't built: no C compiler")
def test_the_kernels_rounding_of_inputs_costs_little(blocks, checkpoint):
    ids = torch.tensor(golden.prompts(checkpoint)[5:6])
    with torch.inference_mode():
        ours, wanted = (forward(ids, ck.params, ck.config)[0].log_softmax(-1) for ck in (blocks, checkpoint))
    divergence = (wanted.exp() * (wanted - ours)).sum(-1).mean().item()
    assert 1e-9 < divergence < 1e-5


def test_generate_without_a_model_runs_from_the_blocks(blocks, checkpoint, monkeypatch):
    """Where the kernels multiply by them; what looks at floats gets floats."""

    def opened(as_floats=False, **chosen):
        checkpoint, dtype = open_model(ModelChoice(**chosen), as_floats=as_floats)
        assert dtype == (torch.float64 if chosen.get("dtype") == "float64" else torch.float32)
        return checkpoint.path.name, stored(checkpoint.params, "layers.0.attention.wq").name

    built = ("smollm2-135m-blocks", "int4") if kernels.library() else ("smollm2-135m", "float32")
    assert opened() == opened(dtype="float32") == built
    floats = ("smollm2-135m", "float32")
    assert opened(model="smollm2-135m") == opened(dtype="float64") == opened(as_floats=True) == floats
    assert opened(quantize="int8") == ("smollm2-135m-blocks", "int8")
    assert opened(model="smollm2-135m", quantize="int8") == ("smollm2-135m", "int8")
    monkeypatch.setattr(kernels, "library", lambda: None)
    assert opened() == floats


@pytest.mark.parametrize("form", ["int8", pytest.param("nf4", marks=pytest.mark.slow)])
def test_the_blocks_are_quantised_to_what_the_floats_are(blocks, checkpoint, form):
    ours, wanted = quantize(blocks.params, form, of_integers=True), quantize(checkpoint.params, form)
    assert ours.keys() == wanted.keys() and all(tensor.equal(wanted[name]) for name, tensor in ours.items())
    with pytest.raises(UsageError, match="quantised already"):
        quantize(blocks.params, form)


@pytest.mark.slow
def test_transformers_still_says_what_is_stored(smollm2):
    stored = json.loads(golden.FILE.read_text())
    made = golden.make(smollm2, 1024)
    assert made["answers"] == stored["answers"]
    assert made["mean_nll"]["1024"] == pytest.approx(stored["mean_nll"]["1024"], rel=1e-6)
