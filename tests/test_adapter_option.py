"""`--adapter`: what generate and chat say with adapters, and the models that convert writes of them."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace

import pytest
import torch

from llama3_scratch import chat, convert, generate
from llama3_scratch.checkpoint.adapters import add_adapters
from llama3_scratch.checkpoint.load import load
from llama3_scratch.checkpoint.meta import write_meta
from llama3_scratch.checkpoint.peft_out import write_peft
from llama3_scratch.inference.choices import ModelChoice
from llama3_scratch.inference.loading import open_model
from llama3_scratch.model import forward
from llama3_scratch.params.lora import adapted, adapter, attach, merge, on_tied_head
from llama3_scratch.params.quantize import quantize
from llama3_scratch.stored import stored
from tests import tiny
from tests.compare import check
from tests.forms import trained

CONFIG = replace(tiny.TILED, n_layers=2, vocab_size=272)
TOKENS_BT = tiny.tokens(1, 20, CONFIG)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model in four forms, tied and not, and two adapters for all of them."""
    root = tmp_path_factory.mktemp("adapters")
    params = tiny.params(CONFIG)
    forms = {
        "model": params,
        "bf16": {name: tensor.bfloat16() for name, tensor in params.items()},
        "int4": quantize(params, "int4"),
        "nf4": quantize(params, "nf4"),
    }
    for name, its in forms.items():
        write_meta(root / name, its, CONFIG, tiny.tokenizer())
    tied = replace(CONFIG, tied=True)
    write_meta(root / "tied", tiny.params(tied), tied, tiny.tokenizer())
    adapters = {
        "one": {"targets": ["wq", "wk", "w2"], "dora": False},
        "two": {"targets": ["wq", "w1", "output"], "dora": False},
        "dora": {"targets": ["wv", "w3"], "dora": True},
    }
    for seed, (name, options) in enumerate(adapters.items()):
        made = trained(attach(params, CONFIG, rank=4, alpha=8, seed=seed, **options), seed=seed)
        write_peft(root / name, adapter(made) | params, CONFIG, base="model")
    return root


def said(capsys, *argv):
    assert generate.main([*map(str, argv), "--json", "--max-tokens", "12"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)["tokens"]


def opened(model, *adapters, **chosen):
    return open_model(ModelChoice(model=model, adapters=adapters, **chosen))[0]


def test_generate_answers_as_the_merged_model_does(models, tmp_path, capsys):
    adapters = ["--adapter", models / "one", "--adapter", models / "dora"]
    assert convert.main([*map(str, [models / "model", tmp_path / "merged", "--to", "meta", *adapters])]) == 0
    capsys.readouterr()
    with_adapters = said(capsys, "hi", "--model", models / "model", *adapters)
    assert with_adapters == said(capsys, "hi", "--model", tmp_path / "merged")
    assert with_adapters != said(capsys, "hi", "--model", models / "model")


def test_f211_the_order_of_folders_changes_nothing(models, capsys):
    one, two = (["--adapter", models / name] for name in ("one", "two"))
    assert said(capsys, "hi", "--model", models / "model", *one, *two) == said(
        capsys, "hi", "--model", models / "model", *two, *one
    )
    assert generate.main(["hi", "--model", str(models / "model"), *map(str, ["--adapter", models / "dora"] * 2)]) == 2
    assert "layers.0.attention.wv: two adapters of which one is DoRA don't add up" in capsys.readouterr().err


def test_floats_are_merged_and_integers_keep_theirs(models):
    whole = opened(models / "model", models / "one")
    assert not adapted(whole.params)
    plain = load(models / "model")
    wanted = forward(TOKENS_BT, add_adapters(plain, [models / "one"]).params, CONFIG)
    check(forward(TOKENS_BT, whole.params, CONFIG), wanted, 2e-5)
    for form in ("int4", "nf4"):
        beside = opened(models / form, models / "one")
        assert len(adapted(beside.params)) == 6
        assert stored(beside.params, "layers.0.attention.wq").name == form
    beside = opened(models / "model", models / "one", quantize="int4")
    assert len(adapted(beside.params)) == 6 and stored(beside.params, "layers.0.attention.wq").name == "int4"


def test_f209_an_adapter_of_a_tied_head_stays_beside_it_and_is_not_converted(models, tmp_path, capsys):
    beside = opened(models / "tied", models / "two")
    assert on_tied_head(beside.params) and beside.config.tied
    argv = [models / "tied", tmp_path / "out", "--to", "hf", "--adapter", models / "two"]
    assert convert.main([*map(str, argv)]) == 3
    assert "output: its weight is the embedding's too (tied)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_f208_a_bf16_model_is_rounded_once_more_with_a_warning(models, capsys):
    assert (
        generate.main(["hi", "--model", str(models / "bf16"), "--adapter", str(models / "one"), "--max-tokens", "2"])
        == 0
    )
    assert "warning: merging rounds to bfloat16, which adds an error of" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["model", "bf16", "int4"])
@pytest.mark.parametrize(
    "to",
    [["meta"], ["hf", "--dtype", "float32"], ["meta", "--dtype", "bfloat16"], ["gguf", "--type", "F32"]],
    ids="-".join,
)
def test_convert_writes_the_merged_model_in_any_layout(models, tmp_path, capsys, source, to):
    target = tmp_path / ("out.gguf" if to[0] == "gguf" else "out")
    argv = [models / source, target, "--to", *to, "--adapter", models / "one", "--adapter", models / "two"]
    if to[0] == "gguf":
        pytest.importorskip("gguf")
    assert convert.main([*map(str, argv)]) == 0, capsys.readouterr().err
    err = capsys.readouterr().err
    assert ("turned into floats, since an adapter is merged" in err) == (source == "int4")
    beside = add_adapters(load(models / source), [models / "one", models / "two"])
    wanted = merge(beside.params, dtype=torch.float32)
    found = load(target).params
    assert not adapted(found)
    name = "layers.1.feed_forward.w2"
    dtype = torch.bfloat16 if "bfloat16" in to or (source == "bf16" and to == ["meta"]) else torch.float32
    assert found[f"{name}.weight"].dtype == dtype
    assert found[f"{name}.weight"].equal(wanted[f"{name}.weight"].to(dtype))
    assert ("rounds" in err) == (dtype == torch.bfloat16)


def test_convert_quantises_what_was_merged(models, tmp_path, capsys):
    argv = [models / "bf16", tmp_path / "out", "--to", "meta", "--quantize", "int8", "--adapter", models / "one"]
    assert convert.main([*map(str, argv)]) == 0
    merged = merge(add_adapters(load(models / "bf16"), [models / "one"]).params, dtype=torch.float32)
    found = load(tmp_path / "out").params
    for name, tensor in quantize(merged, "int8").items():
        assert found[name].equal(tensor), name


def test_chat_talks_with_an_adapter(models, capsys, monkeypatch):
    answers = []
    for extra in ([], ["--adapter", str(models / "one")]):
        monkeypatch.setattr(sys, "stdin", io.StringIO("hi\n"))
        argv = ["--model", str(models / "model"), "--temperature", "0", "--max-tokens", "12", *extra]
        assert chat.main(argv) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] != answers[1]


@pytest.mark.parametrize("verb", [["generate", "hi", "--model"], ["convert"]], ids=["generate", "convert"])
def test_f197_a_missing_folder_ends_with_code_3(models, tmp_path, capsys, verb):
    name, *argv = verb
    argv += [str(models / "model"), *([str(tmp_path / "out"), "--to", "hf"] if name == "convert" else [])]
    main = {"generate": generate.main, "convert": convert.main}[name]
    assert main([*argv, "--adapter", str(tmp_path / "none")]) == 3
    assert f"{tmp_path / 'none'}: not found, expected the folder of an adapter" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
