"""Evaluation: every figure against one worked out another way."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from llama3_scratch import evaluate
from llama3_scratch.checkpoint.hf_out import write_hf
from llama3_scratch.checkpoint.load import load
from llama3_scratch.checkpoint.meta import write_meta
from llama3_scratch.evaluation.scoring import (
    TooLongError,
    ask,
    choose,
    estimate,
    kl_divergence,
    log_probabilities,
    surprisal,
    windows,
)
from llama3_scratch.inference.answers import answers
from llama3_scratch.inference.sample import sampler
from llama3_scratch.model import forward
from llama3_scratch.params.quantize import quantize
from tests import tiny
from tests.batches import stream_all

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
    (tmp_path / "rows.jsonl").write_text(TEXT)
    assert evaluate.main([str(model), "--text", str(tmp_path / "rows.jsonl"), "--tokens", "9"]) == 0
    assert "rows.jsonl: measured as it stands, the syntax of JSON included" in capsys.readouterr().err
    short = run(capsys, model, "--text", tmp_path / "text.txt", "--window", 20, "--stride", 5, "--tokens", 60)["text"]
    assert short["tokens"] == 60 and short["windows"] == 10 and short["perplexity_error"] > 0


def test_a_model_that_knows_nothing_has_a_perplexity_of_its_vocabulary(model):
    checkpoint = load(model)
    params = checkpoint.params | {"output.weight": torch.zeros_like(checkpoint.params["output.weight"])}
    window = next(windows(list(range(20)), length=32, stride=8, first=1))
    found = surprisal(window, log_probabilities(window.ids, params, checkpoint.config), checkpoint.tokenizer)
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
    asked = ask(query, choices, checkpoint.tokenizer, 4096)
    chosen = choose(asked, checkpoint.params, checkpoint.config)
    assert asked.cut == 0
    assert chosen.plain == sums.index(max(sums)) == 1 and chosen.by_byte == by_byte.index(max(by_byte))
    rows = [{"query": "Which?", "choices": choices, "gold": gold} for gold in (1, 0, 1)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = run(capsys, model, "--choices", tmp_path / "rows.jsonl")["choices"]
    assert found["questions"] == 3 and found["accuracy"] == pytest.approx(2 / 3) and found["accuracy_error"] > 0
    assert run(capsys, model, "--choices", tmp_path / "rows.jsonl", "--limit", 1)["choices"]["accuracy"] == 1


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A model whose context is 40 tokens."""
    config = replace(tiny.CONFIG, vocab_size=272, hidden_dim=44, max_seq_len=40)
    folder = tmp_path_factory.mktemp("short") / "model"
    write_meta(folder, tiny.params(config), config, tiny.tokenizer(None))
    return folder


def test_what_is_too_long_is_cut_from_the_left_as_the_harness_does(short, tmp_path, capsys):
    """lm-evaluation-harness 0.4.13, HFLM._loglikelihood_tokens: (context + continuation)[-(max_length + 1):][:-1]."""
    transformers = pytest.importorskip("transformers")
    checkpoint = load(short)
    write_hf(tmp_path / "hf", checkpoint.params, checkpoint.config, checkpoint.tokenizer)
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    tokenizer, context = checkpoint.tokenizer, checkpoint.config.max_seq_len
    for length, choices in (
        (60, ["yes", "no", "perhaps"]),
        (30, ["a" * 39, "b"]),
        (24, ["yes", "no"]),
        (3, ["c", "d"]),
    ):
        query = f"{'What is it? ' * 9}"[-length:] + "\nAnswer:"
        begin = tokenizer.encode(query, bos=True, eos=False)
        sums, cut = [], 0
        for choice in choices:
            own = tokenizer.encode(f" {choice}", bos=False, eos=False)
            read = [*begin, *own][-(context + 1) :][:-1]
            cut = max(cut, len(begin) + len(own) - 1 - len(read))
            with torch.no_grad():
                logprobs_TV = theirs(torch.tensor([read])).logits[0].log_softmax(-1)
            sums.append(logprobs_TV[-len(own) :].gather(1, torch.tensor(own)[:, None]).sum().item())
        asked = ask(query, choices, tokenizer, context)
        chosen = choose(asked, checkpoint.params, checkpoint.config)
        assert asked.cut == cut and (cut > 0) == (length >= 30)
        assert chosen.plain == sums.index(max(sums))
    with pytest.raises(TooLongError, match="choice 1 alone has 41 tokens, the model's context 40"):
        ask("What?", ["yes", "c" * 40], tokenizer, context)


def test_a_question_that_is_too_long_ends_nothing_and_is_counted(short, tmp_path, capsys):
    rows = [(query, ["yes", "no"]) for query in ("Ice?", "x" * 300, "Fire?")] + [("Stone?", ["yes", "n" + "o" * 50])]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"query": q, "choices": choices, "gold": 0}) for q, choices in rows))
    assert evaluate.main([str(short), "--choices", str(path), "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)["choices"]
    assert (found["questions"], found["cut"], found["left_out"]) == (3, 1, 1)
    assert f"{path}:4: choice 1 alone has 52 tokens, the model's context 40; the question is left out" in err
    assert evaluate.main([str(short), "--choices", str(path)]) == 0
    out = capsys.readouterr().out
    assert "3 questions of" in out
    assert "1 cut from the left to the model's context, 1 more left out: a choice alone is longer" in out
    path.write_text(json.dumps({"query": "q", "choices": ["a", "b" * 60], "gold": 0}))
    assert evaluate.main([str(short), "--choices", str(path)]) == 3
    assert "no question is left to ask" in capsys.readouterr().err


def test_prompts_that_leave_no_room_are_cut_from_the_left(short, tmp_path, capsys):
    checkpoint = load(short)
    long = "It was long ago, and far away, and nobody knows it any more"
    (tmp_path / "prompts.txt").write_text(f"Once\n{long}\n")
    row = {"instruction": long, "input": "", "output": "yes"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    asked = [short, "--samples", tmp_path / "prompts.txt", "--instructions", tmp_path / "rows.jsonl", "--max-tokens", 6]
    found = run(capsys, *asked)
    [answer] = answers([list(long.encode()[-34:])], checkpoint, max_tokens=6)
    assert found["samples"][1][str(short)] == found["instructions"]["rows"][0][str(short)] == answer.text.strip() != ""
    assert found["samples_cut"] == found["instructions"]["cut"] == {str(short): 1}
    assert evaluate.main([*map(str, asked)]) == 0
    assert f"1 prompts cut from the left to the context of {short}" in " ".join(capsys.readouterr().out.split())
    assert evaluate.main([*map(str, asked[:3]), "--max-tokens", "40"]) == 2
    assert "--max-tokens 40: leaves no room for a prompt in the 40 tokens of" in capsys.readouterr().err


def test_a_padded_vocabulary_answers_and_compares(tmp_path, capsys):
    """Rows of the embedding beyond the tokenizer's tokens mean no text, and another model may have more of them."""
    models = []
    for rows in (272, 320):
        config = replace(tiny.CONFIG, vocab_size=rows, hidden_dim=44)
        params = tiny.params(config)
        params["output.weight"][:258] = 0  # the likeliest token is always one that only pads
        write_meta(tmp_path / str(rows), params, config, tiny.tokenizer(None))
        models.append(tmp_path / str(rows))
    (tmp_path / "text.txt").write_text("Hello you\nAnd me\n")
    row = {"instruction": "Say", "input": "", "output": "yes"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    asked = ["--text", tmp_path / "text.txt", "--samples", tmp_path / "text.txt"]
    found = run(capsys, models[0], *asked, "--instructions", tmp_path / "rows.jsonl", "--against", models[1])
    assert [sample[str(models[0])] for sample in found["samples"]] == ["", ""]
    assert found["instructions"]["rows"][0][str(models[1])] == ""
    one_TV, other_TV = (torch.randn(5, V).log_softmax(-1) for V in (7, 9))
    window = replace(next(windows(list(range(9)), length=5, stride=4, first=3)), scored=4)
    wanted_T = torch.nn.functional.kl_div(
        other_TV[:4, :7].log_softmax(-1), one_TV[:4], reduction="none", log_target=True
    ).sum(-1)
    torch.testing.assert_close(
        kl_divergence(window, one_TV, other_TV).divergence_T, wanted_T.double(), rtol=1e-4, atol=1e-6
    )
    assert found["against"]["kl"] > 0


def test_two_models_apart(model, tmp_path, capsys):
    (tmp_path / "text.txt").write_text(TEXT)
    other = tiny.folder(tmp_path / "other", None, seed=1)
    same = run(capsys, model, "--text", tmp_path / "text.txt", "--against", model)["against"]
    assert same["kl"] == pytest.approx(0, abs=1e-9) and same["top1"] == 1
    far = run(capsys, model, "--text", tmp_path / "text.txt", "--against", other, "--window", 64)["against"]
    assert far["kl"] > 0.1 and far["kl_99"] > far["kl_median"] > 0 and far["top1"] < 0.9 and far["kl_error"] > 0
    near = run(capsys, model, "--text", tmp_path / "text.txt", "--quantize", "int8-row", "--against", model)["against"]
    assert 0 < near["kl"] < far["kl"] / 10
    one_TV, other_TV = (torch.randn(5, 7).log_softmax(-1) for _ in range(2))
    window = replace(next(windows(list(range(9)), length=5, stride=4, first=3)), scored=4)
    by_hand = [sum(one_TV[t].exp() * (one_TV[t] - other_TV[t])).item() for t in range(4)]
    assert kl_divergence(window, one_TV, other_TV).divergence_T.tolist() == pytest.approx(by_hand, abs=1e-6)


def test_kl_is_what_the_model_lost_of_the_reference_and_quantize_changes_the_model_alone(model, tmp_path, capsys):
    (tmp_path / "text.txt").write_text(TEXT)
    asked = [model, "--text", tmp_path / "text.txt", "--window", 4096]
    plain, quantised = run(capsys, *asked), run(capsys, *asked, "--quantize", "int4")
    found = run(capsys, *asked, "--quantize", "int4", "--against", model)
    assert found["text"] == quantised["text"] != plain["text"] and "against" not in quantised
    assert found["against"]["perplexity"] == plain["text"]["perplexity"]
    checkpoint = load(model)
    tokenizer, config = checkpoint.tokenizer, checkpoint.config
    ids = tokenizer.encode(TEXT, bos=False, eos=False)
    first = tokenizer.bos_id if tokenizer.add_bos else None
    (window,) = windows(ids, length=min(4096, config.max_seq_len), stride=9, first=first)
    reference_TV = log_probabilities(window.ids, checkpoint.params, config)
    model_TV = log_probabilities(window.ids, quantize(checkpoint.params, "int4"), config)
    wanted = kl_divergence(window, reference_TV, model_TV).divergence_T.mean().item()
    assert found["against"]["kl"] == pytest.approx(wanted, rel=1e-6)


def test_samples_are_the_likeliest_answers_side_by_side(model, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("Once\n\nThe fox\n")
    other = tiny.folder(tmp_path / "other", "chatml", seed=1)
    found = run(capsys, model, "--samples", tmp_path / "prompts.txt", "--against", other, "--max-tokens", 6)["samples"]
    assert [sample["prompt"] for sample in found] == ["Once", "The fox"]
    checkpoint = load(model)
    ids = checkpoint.tokenizer.encode("The fox", bos=True, eos=False)
    wanted = [
        step.token
        for step in stream_all(
            [ids], checkpoint.params, checkpoint.config, samplers=[sampler()], max_tokens=6, dtype=torch.float32
        )
    ]
    assert found[1][str(model)] == checkpoint.tokenizer.decode(wanted).strip()
    assert set(found[0]) == {"prompt", str(model), str(other)} and found[0][str(model)] != found[0][str(other)]
    assert evaluate.main([str(model), "--samples", str(tmp_path / "prompts.txt"), "--max-tokens", "2"]) == 0
    assert "prompt: The fox" in capsys.readouterr().out


def test_the_table_says_what_was_measured(model, tmp_path, capsys):
    (tmp_path / "text.txt").write_text(TEXT)
    asked = [str(model), "--text", str(tmp_path / "text.txt"), "--quantize", "int8-row", "--against", str(model)]
    assert evaluate.main(asked) == 0
    out = capsys.readouterr().out
    assert "nan" not in out and out.count("–") == 6  # one window has no standard error
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
        (["--choices", "x.jsonl", "--against", "x"], 2, "compared on --text"),
        (["--text", "missing.txt"], 3, "missing.txt: no such file in "),
        (["--text", "t.txt", "--window", "99999"], 2, "--window 99999: the model was trained for"),
        (
            ["--text", "t.txt", "--window", "8", "--stride", "9"],
            2,
            "a stride is at least 1 and less than the window's 8",
        ),
        (["--choices", "bad.jsonl"], 3, "bad.jsonl:1: gold must be the index of a choice, 0 to 1, got 2"),
        (["--choices", "one.jsonl"], 3, "one.jsonl:1: expected a text under query and at least two under choices"),
        (["--choices", "empty.jsonl"], 3, "empty.jsonl:1: choice 1 is empty, so nothing of it could be predicted"),
        (["--choices", "lone.jsonl"], 3, "lone.jsonl:1: '\\ud800' is half a character"),
        (["--instructions", "lone.jsonl"], 3, "lone.jsonl:1: "),
        (["--samples", "blank.txt"], 3, "blank.txt: expected a prompt a line, found empty lines only"),
        (["--text", "t.txt", "--window", "1"], 2, "--window: expected a whole number at least 2, got '1'"),
    ],
)
def test_mistakes_are_one_sentence(model, tmp_path, capsys, monkeypatch, arguments, code, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.txt").write_text("some text")
    (tmp_path / "bad.jsonl").write_text('{"query": "q", "choices": ["a", "b"], "gold": 2}')
    (tmp_path / "one.jsonl").write_text('{"query": "q", "choices": ["a"], "gold": 0}')
    (tmp_path / "empty.jsonl").write_text('{"query": "q", "choices": ["a", ""], "gold": 0}')
    (tmp_path / "lone.jsonl").write_text('{"query": "a\\ud800", "choices": ["a", "b"], "gold": 0}')
    (tmp_path / "blank.txt").write_text("\n \n")
    assert evaluate.main([str(model), *arguments]) == code
    assert said in capsys.readouterr().err
