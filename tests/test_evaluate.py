"""Evaluation: every figure against one worked out another way."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from llama3_scratch import evaluate
from llama3_scratch.checkpoint.load import load
from llama3_scratch.model import forward
from llama3_scratch.sample import sampler
from llama3_scratch.scoring import apart, choose, estimate, log_probabilities, surprise, windows
from llama3_scratch.stream import stream
from tests import tiny

TEXT = "The quick brown fox jumps over the lazy dog. 敏捷的狐狸。 " * 6


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.folder(tmp_path_factory.mktemp("evaluate") / "model", None)


def run(capsys, *arguments) -> dict:
    assert evaluate.main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_means_and_errors_by_hand():
    found = estimate([1.0, 2.0, 6.0])
    assert found.mean == 3 and found.error == pytest.approx(math.sqrt(((2**2 + 1 + 3**2) / 2) / 3))
    assert estimate([1.0, 3.0], [3, 1]).mean == 1.5 and math.isnan(estimate([1.0]).error)


@pytest.mark.parametrize("first", [None, 99])
@pytest.mark.parametrize(("length", "stride"), [(8, 7), (8, 3), (8, 1), (50, 49)])
def test_each_token_is_predicted_once(first, length, stride):
    ids = list(range(30))
    seen = []
    for window in windows(ids, length=length, stride=stride, first=first):
        assert len(window.ids) <= length and 1 <= window.scored < len(window.ids)
        assert first is None or window.ids[0] == first
        seen += window.ids[-window.scored :]
    assert seen == ids[first is None :]


def test_perplexity_is_that_of_the_whole_text(model, tmp_path, capsys):
    (tmp_path / "text.txt").write_text(TEXT)
    checkpoint = load(model)
    ids = [checkpoint.tokenizer.bos_id, *checkpoint.tokenizer.encode(TEXT, bos=False, eos=False)]
    logprobs_TV = forward(torch.tensor([ids]), checkpoint.params, checkpoint.config)[0].log_softmax(-1)
    nats = -logprobs_TV[:-1].gather(1, torch.tensor(ids)[1:, None]).double().mean().item()
    found = run(capsys, model, "--text", tmp_path / "text.txt", "--window", 4096)["text"]
    assert found["perplexity"] == pytest.approx(math.exp(nats), rel=1e-4)
    assert found["bytes"] == len(TEXT.encode()) == found["tokens"]  # a token a byte
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2), rel=1e-5)
    assert "windows of 4096 tokens, 4095 apart, each behind a begin token" in found["policy"]
    short = run(capsys, model, "--text", tmp_path / "text.txt", "--window", 20, "--stride", 5, "--tokens", 60)["text"]
    assert short["tokens"] == 60 and short["windows"] == 10 and short["perplexity_error"] > 0


def test_a_model_that_knows_nothing_has_a_perplexity_of_its_vocabulary(model):
    checkpoint = load(model)
    params = checkpoint.params | {"output.weight": torch.zeros_like(checkpoint.params["output.weight"])}
    window = next(windows(list(range(20)), length=32, stride=8, first=1))
    found = surprise(window, log_probabilities(window.ids, params, checkpoint.config), checkpoint.tokenizer)
    assert found.nats / found.tokens == pytest.approx(math.log(checkpoint.config.vocab_size), rel=1e-6)


def test_choices_by_hand(model, tmp_path, capsys):
    checkpoint = load(model)
    query, choices = "Which?\nAnswer:", ["a long answer", "b", "cc"]
    begin = checkpoint.tokenizer.encode(query, bos=True, eos=False)
    sums = []
    for choice in choices:
        ids = [*begin, *checkpoint.tokenizer.encode(f" {choice}", bos=False, eos=False)]
        logprobs_TV = forward(torch.tensor([ids]), checkpoint.params, checkpoint.config)[0].log_softmax(-1)
        sums.append(sum(logprobs_TV[t - 1, ids[t]].item() for t in range(len(begin), len(ids))))
    by_byte = [total / len(choice) for total, choice in zip(sums, choices, strict=True)]
    chosen = choose(query, choices, checkpoint)
    assert chosen.plain == sums.index(max(sums)) == 1 and chosen.by_byte == by_byte.index(max(by_byte))
    rows = [{"query": "Which?", "choices": choices, "gold": gold} for gold in (1, 0, 1)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = run(capsys, model, "--choices", tmp_path / "rows.jsonl")["choices"]
    assert found["questions"] == 3 and found["accuracy"] == pytest.approx(2 / 3) and found["accuracy_error"] > 0
    assert run(capsys, model, "--choices", tmp_path / "rows.jsonl", "--limit", 1)["choices"]["accuracy"] == 1


def test_two_models_apart(model, tmp_path, capsys):
    (tmp_path / "text.txt").write_text(TEXT)
    other = tiny.folder(tmp_path / "other", None, seed=1)
    same = run(capsys, model, "--text", tmp_path / "text.txt", "--against", model)["against"]
    assert same["kl"] == pytest.approx(0, abs=1e-9) and same["top1"] == 1
    far = run(capsys, model, "--text", tmp_path / "text.txt", "--against", other, "--window", 64)["against"]
    assert far["kl"] > 0.1 and far["kl_99"] > far["kl_median"] > 0 and far["top1"] < 0.9 and far["kl_error"] > 0
    near = run(capsys, model, "--text", tmp_path / "text.txt", "--quantize", "int8-row")["against"]
    assert 0 < near["kl"] < far["kl"] / 10
    one_TV, other_TV = (torch.randn(5, 7).log_softmax(-1) for _ in range(2))
    window = replace(next(windows(list(range(9)), length=5, stride=4, first=3)), scored=4)
    by_hand = [sum(one_TV[t].exp() * (one_TV[t] - other_TV[t])).item() for t in range(4)]
    assert apart(window, one_TV, other_TV).divergence_T.tolist() == pytest.approx(by_hand, abs=1e-6)


def test_samples_are_the_likeliest_answers_side_by_side(model, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("Once\n\nThe fox\n")
    other = tiny.folder(tmp_path / "other", "chatml", seed=1)
    found = run(capsys, model, "--samples", tmp_path / "prompts.txt", "--against", other, "--max-tokens", 6)["samples"]
    assert [sample["prompt"] for sample in found] == ["Once", "The fox"]
    checkpoint = load(model)
    ids = checkpoint.tokenizer.encode("The fox", bos=True, eos=False)
    wanted = [
        step.token
        for step in stream(
            [ids], checkpoint.params, checkpoint.config, samplers=[sampler()], max_tokens=6, dtype=torch.float32
        )
    ]
    assert found[1][str(model)] == checkpoint.tokenizer.decode(wanted).strip()
    assert set(found[0]) == {"prompt", str(model), str(other)} and found[0][str(model)] != found[0][str(other)]
    assert evaluate.main([str(model), "--samples", str(tmp_path / "prompts.txt"), "--max-tokens", "2"]) == 0
    assert "prompt: The fox" in capsys.readouterr().out


def test_the_table_says_what_was_measured(model, tmp_path, capsys):
    (tmp_path / "text.txt").write_text(TEXT)
    assert evaluate.main([str(model), "--text", str(tmp_path / "text.txt"), "--quantize", "int8-row"]) == 0
    out = capsys.readouterr().out
    for said in (
        "perplexity, ",
        "bits per byte, ",
        "in int8-row",
        "KL divergence",
        "same likeliest token",
        "windows of",
    ):
        assert said in out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "nothing to evaluate on; give --text, --choices, --samples or --instructions"),
        (["--choices", "x.jsonl", "--quantize", "int8"], 2, "held against each other on --text"),
        (["--text", "missing.txt"], 3, "missing.txt: a text in UTF-8 not found"),
        (["--text", "t.txt", "--window", "99999"], 2, "--window 99999: the model was trained for"),
        (
            ["--text", "t.txt", "--window", "8", "--stride", "9"],
            2,
            "a stride is at least 1 and less than the window's 8",
        ),
        (["--choices", "bad.jsonl"], 3, "bad.jsonl:1: gold must be the index of a choice, 0 to 1, got 2"),
        (["--choices", "one.jsonl"], 3, "one.jsonl:1: expected a text under query and at least two under choices"),
    ],
)
def test_mistakes_are_one_sentence(model, tmp_path, capsys, monkeypatch, arguments, code, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.txt").write_text("some text")
    (tmp_path / "bad.jsonl").write_text('{"query": "q", "choices": ["a", "b"], "gold": 2}')
    (tmp_path / "one.jsonl").write_text('{"query": "q", "choices": ["a"], "gold": 0}')
    assert evaluate.main([str(model), *arguments]) == code
    assert said in capsys.readouterr().err
