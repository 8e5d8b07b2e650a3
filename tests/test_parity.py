"""`python -m llama3_scratch.parity`: agrees where it should, and names the tensor where it doesn't."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from llama3_scratch import model
from llama3_scratch import parity as verb
from llama3_scratch.checkpoint import load
from llama3_scratch.checkpoint.hf_out import write_hf
from llama3_scratch.compare import parity
from llama3_scratch.model import rope_frequencies
from tests import tiny
from tests.forms import FORMS, fitting

pytest.importorskip("transformers", reason="the parity extra: pip install -e '.[parity]'")

CONFIG = replace(tiny.CONFIG, max_seq_len=16_384)
STEPS = "attention_norm attention.wq attention.wk attention.wv attention.wo ffn_norm feed_forward.w1 feed_forward.w3"


@pytest.fixture
def folder(tmp_path):
    """The tiny world as a Hugging Face folder, which needs no tokenizer files to be compared."""
    write_hf(tmp_path / "tiny", tiny.params(CONFIG), CONFIG, None)
    return str(tmp_path / "tiny")


@pytest.fixture(autouse=True)
def without_tokenizer(monkeypatch):
    monkeypatch.setattr(load, "read_tokenizer_json", lambda folder: None)


def compared(params, config=CONFIG, *, dtype=torch.float64, tolerance=1e-9):
    found, top1 = parity.compare(tiny.tokens(1, 40), params, config, dtype=dtype, tolerance=tolerance)
    return [difference.name for difference in found if difference.diverges], top1, found


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_tiny_world_agrees(folder, capsys, dtype):
    assert verb.main([folder, "--dtype", dtype, "--length", "64"]) == 0
    printed = capsys.readouterr()
    rows = [line.split()[0] for line in printed.out.splitlines()[1:-1]]
    assert rows == ["rope", *(f"layers.{layer}" for layer in range(5)), "norm", "logits"]
    assert printed.out.rstrip().endswith("same likeliest token: 100.0%")
    assert printed.err == f"64 tokens through 5 layers in {dtype}\n"


def test_stories260k_agrees(capsys):
    assert verb.main([str(tiny.data("stories260k/stories260K.bin")), "--json", "--length", "100"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["first_divergent"] is None and told["top1"] == 1 and told["length"] == 100
    steps = [f"layers.4.{step}" for step in [*STEPS.split(), "feed_forward.w2"]]
    names = [tensor["name"] for tensor in told["tensors"]]
    assert names[-13:] == ["layers.3", *steps, "layers.4", "norm", "output"]
    assert max(tensor["worst"] for tensor in told["tensors"]) < 1e-11


@pytest.mark.parametrize("form", FORMS)
def test_every_form_agrees_with_its_plain_weights(form):
    config = fitting(form, CONFIG)
    wrong, top1, _ = compared(FORMS[form](tiny.params(config)), config)
    assert not wrong and top1 == 1


def test_divisors_agree():
    """Transformers has no word for them; its frequencies are divided all the same."""
    unscaled = replace(CONFIG, rope_scaling=None)
    ratio = rope_frequencies(unscaled, torch.float64) / rope_frequencies(CONFIG, torch.float64)
    assert not compared(tiny.params(CONFIG), replace(unscaled, rope_divisors=tuple(ratio.tolist())))[0]


def theirs_with(monkeypatch, **fields):
    """Their side gets another configuration than ours."""
    from llama3_scratch.checkpoint import hf_out

    honest = hf_out.config_json
    monkeypatch.setattr(hf_out, "config_json", lambda *arguments: honest(*arguments) | fields)


def test_another_eps_is_named_at_the_first_norm(folder, capsys, monkeypatch):
    theirs_with(monkeypatch, rms_norm_eps=1e-6)
    assert verb.main([folder, "--length", "64"]) == 4
    printed = capsys.readouterr()
    assert "layers.0" in printed.out
    error = printed.err.splitlines()[-1]
    assert error.startswith(
        f"error: {folder}: layers.0.attention_norm is the first tensor that differs from transformers', by "
    )
    assert error.endswith("standard deviations (tolerance 1e-09); 52 of 53 tensors do")


def test_another_rope_is_named_before_any_layer(monkeypatch):
    theirs_with(monkeypatch, rope_parameters={"rope_type": "default", "rope_theta": 500_000.0}, rope_scaling=None)
    assert compared(tiny.params(CONFIG))[0][0] == "rope frequencies"


@pytest.mark.parametrize(
    ("function", "wrong", "first"),
    [
        ("rotate", lambda x_BTHK, rotation_BTJ: x_BTHK, "layers.0.attention.wo"),
        ("F", SimpleNamespace(**{**vars(F), "silu": F.gelu}), "layers.0.feed_forward.w2"),
    ],
)
def test_a_mistake_in_the_model_is_named_by_its_step(monkeypatch, function, wrong, first):
    monkeypatch.setattr(model, function, wrong)
    assert compared(tiny.params(CONFIG))[0][0] == first


def test_a_mistake_in_one_layer_is_named_by_its_layer(monkeypatch):
    honest = model.swiglu

    def wrong_in_layer_3(x_BTD, params, name):
        return honest(x_BTD, params, name) + (0.001 if name == "layers.3.feed_forward" else 0)

    monkeypatch.setattr(model, "swiglu", wrong_in_layer_3)
    assert compared(tiny.params(CONFIG))[0][:2] == ["layers.3", "layers.4.attention_norm"]


def test_nan_diverges(folder, capsys, monkeypatch):
    monkeypatch.setattr(model, "rotate", lambda x_BTHK, rotation_BTJ: x_BTHK * torch.nan)
    assert verb.main([folder, "--json", "--length", "3"]) == 4
    told = json.loads(capsys.readouterr().out)
    assert told["first_divergent"] == "layers.0.attention.wo"
    assert next(tensor for tensor in told["tensors"] if tensor["name"] == "layers.0.attention.wo")["worst"] is None


def test_a_layer_of_zeros_agrees():
    params = tiny.params(CONFIG) | {"layers.2.feed_forward.w2.weight": torch.zeros(CONFIG.dim, CONFIG.hidden_dim)}
    assert not compared(params)[0]


def test_tolerance_is_the_users(folder, capsys):
    assert verb.main([folder, "--dtype", "float32", "--tolerance", "1e-9", "--length", "9"]) == 4
    assert "(tolerance 1e-09)" in capsys.readouterr().err


def test_the_profiler_that_was_there_stays():
    def mine(*_):
        pass

    sys.setprofile(mine)
    try:
        compared(tiny.params(CONFIG))
        assert sys.getprofile() is mine
    finally:
        sys.setprofile(None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "hi"], "error: {folder} has no tokenizer for --prompt; give --length for random tokens"),
        (["--length", "16385"], "error: expected 1 to 16384 tokens, which is the model's context, got 16385"),
        (["--length", "0"], "error: argument --length: expected a whole number at least 1, got '0' (see --help)"),
        (["--tolerance", "0"], "error: argument --tolerance: expected a number above 0, got '0' (see --help)"),
    ],
)
def test_usage_errors(folder, capsys, arguments, message):
    assert verb.main([folder, *arguments]) == 2
    assert capsys.readouterr().err.strip() == message.format(folder=folder)


def test_a_prompt_is_encoded_by_the_models_tokenizer(folder, capsys, monkeypatch):
    tokenizer = SimpleNamespace(
        encode=lambda text, bos, eos: [1] * bos + [ord(letter) % 60 for letter in text], add_bos=True, n_words=67
    )
    monkeypatch.setattr(load, "read_tokenizer_json", lambda folder: tokenizer)
    assert verb.main([folder, "--prompt", "Hello", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["length"] == 6


def test_without_transformers_it_says_what_to_install(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert verb.main([folder]) == 2
    assert capsys.readouterr().err == (
        'error: parity needs Hugging Face\'s transformers, which is missing: pip install -e ".[parity]"\n'
    )
