"""random_checkpoint: an official shape in Meta's own layout, made by one command."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llama3_scratch.checkpoint import meta
from llama3_scratch.checkpoint.check import check
from llama3_scratch.config import OFFICIAL
from tests import tiny

spec = importlib.util.spec_from_file_location("recipe", Path(__file__).parents[1] / "scripts" / "random_checkpoint.py")
recipe = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recipe)


@pytest.fixture
def small(monkeypatch):
    """The shape of 3.2 1B with a hundredth of its width, so that a test can afford it."""
    config = replace(
        OFFICIAL["llama3.2-1b"], dim=64, n_heads=8, n_kv_heads=4, hidden_dim=96, vocab_size=304, head_dim=8
    )
    monkeypatch.setitem(OFFICIAL, "llama3.2-1b", config)
    return config


def test_whole_folder(tmp_path, small):
    tiny.folder(tmp_path / "other")
    arguments = ["Llama-3.2-1B", str(tmp_path / "m"), "--tokenizer", str(tmp_path / "other" / "tokenizer.model")]
    assert recipe.main(arguments) == 0
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == [
        "consolidated.00.pth", "params.json", "tokenizer.model", "tokenizer_extra.json",
    ]  # fmt: skip
    config, params = meta.read_meta(tmp_path / "m")
    check(params, config, tmp_path / "m")
    assert config == small
    assert {tensor.dtype for tensor in params.values()} == {torch.bfloat16}


def test_options(tmp_path, small):
    first = ["llama3.2-1b", str(tmp_path / "a"), "--layers", "2", "--dtype", "float32", "--seed", "3"]
    assert recipe.main(first) == 0
    assert recipe.main(["llama3.2-1b", str(tmp_path / "b"), *first[2:], "--shards", "4"]) == 0
    assert recipe.main(["llama3.2-1b", str(tmp_path / "c"), *first[2:6], "--seed", "4"]) == 0
    assert len(list((tmp_path / "b").glob("*.pth"))) == 4
    (config, one), (_, four), (_, other) = (meta.read_meta(tmp_path / name) for name in "abc")
    assert config == replace(small, n_layers=2)
    assert all(one[name].equal(four[name]) and one[name].dtype == torch.float32 for name in one)
    assert not one["layers.1.attention.wq.weight"].equal(other["layers.1.attention.wq.weight"])


@pytest.mark.parametrize("name", ["llama3.2-1b", "llama3.1-405b"])
def test_params_json_is_metas(tmp_path, monkeypatch, name):
    monkeypatch.setattr("llama3_scratch.init.init", lambda config, **rest: {"tok_embeddings.weight": torch.ones(1)})
    assert recipe.main([name, str(tmp_path / "m")]) == 0
    written = json.loads((tmp_path / "m" / "params.json").read_text())
    assert written["vocab_size"] == 128_256 and written["use_scaled_rope"] is True
    assert "rope_scaling_factor" not in written


@pytest.mark.parametrize(
    "arguments, code, said",
    [
        (["llama4-17b", "x"], 2, "'llama4-17b' isn't an official shape, expected one of llama3-8b, "),
        (["llama3.2-1b"], 2, "required: FOLDER"),
        (["llama3.2-1b", "x", "--layers", "0"], 2, "--layers: expected a whole number at least 1, got '0'"),
        (["llama3.2-1b", "x", "--shards", "3"], 2, "--shards 3 doesn't divide n_heads 8"),
        (["llama3.2-1b", "x", "--tokenizer", "none"], 3, "none: a tokenizer (base64 and rank on each line) not found"),
    ],
)
def test_usage(small, capsys, monkeypatch, tmp_path, arguments, code, said):
    monkeypatch.chdir(tmp_path)
    assert recipe.main(arguments) == code
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
