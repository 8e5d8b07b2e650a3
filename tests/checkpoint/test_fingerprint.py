"""The hash of a model's numbers: whatever differs changes it, and what is remembered is never of other files."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from llama3_scratch import generate
from llama3_scratch.caches import prompt_cache
from llama3_scratch.checkpoint import fingerprint as module
from llama3_scratch.checkpoint import names
from llama3_scratch.checkpoint.fingerprint import FILE, Origin, fingerprint
from llama3_scratch.checkpoint.gguf_out import write_gguf
from llama3_scratch.checkpoint.hf_out import write_hf
from llama3_scratch.checkpoint.load import load
from llama3_scratch.checkpoint.meta import write_meta
from llama3_scratch.checkpoint.peft_out import write_peft
from llama3_scratch.inference.choices import ModelChoice
from llama3_scratch.inference.loading import open_model
from llama3_scratch.params.lora import attach
from llama3_scratch.params.quantize import FORMS, quantize
from tests import tiny
from tests.forms import trained, with_adaptors

CONFIG = replace(tiny.CONFIG, vocab_size=272, n_layers=2)


def one_number(params, name, at):
    tensor = params[name].clone()
    tensor.view(-1)[at] += 1e-3
    return params | {name: tensor}


def test_every_number_name_form_and_adapter_counts():
    params = tiny.params()
    others = [one_number(params, name, at) for name in params for at in (0, params[name].numel() // 3, -1)]
    others += [quantize(tiny.params(tiny.TILED), form) for form in FORMS]
    others += [with_adaptors(params), with_adaptors(params, dora=True), tiny.params(dtype=torch.bfloat16)]
    others += [one_number(with_adaptors(params), "layers.1.attention.wk.adaptor.B.weight", 5)]
    swapped = params["layers.0.attention.wk.weight"], params["layers.0.attention.wv.weight"]
    others += [params | {"layers.0.attention.wv.weight": swapped[0], "layers.0.attention.wk.weight": swapped[1]}]
    others += [params | {"norm.weight": params["norm.weight"][None]}]
    found = {fingerprint(one) for one in [params, *others]}
    assert len(found) == len(others) + 1
    again = dict(reversed({name: tensor.clone() for name, tensor in params.items()}.items()))
    assert fingerprint(again) == fingerprint(params) == fingerprint({k: v.requires_grad_() for k, v in again.items()})


def test_the_same_numbers_of_any_layout_are_the_same_model(tmp_path):
    pytest.importorskip("gguf", reason="the gguf package, an extra, writes the file")
    config = replace(CONFIG, tied=True)
    params = tiny.params(config)
    write_meta(tmp_path / "meta", params, config, None)
    write_hf(tmp_path / "hf", params, config, None)
    write_gguf(tmp_path / "m.gguf", params, config, None, kind="F32")
    assert {fingerprint(load(tmp_path / name).params) for name in ("meta", "hf", "m.gguf")} == {fingerprint(params)}


@pytest.fixture
def folder(tmp_path):
    write_hf(tmp_path / "m", tiny.params(CONFIG), CONFIG, tiny.tokenizer())
    write_peft(tmp_path / "adapter", trained(attach(tiny.params(CONFIG), CONFIG, rank=2, alpha=4, seed=1)), CONFIG)
    return tmp_path / "m"


@pytest.fixture
def settled(monkeypatch):
    """As if the test's files were older than they are."""
    monkeypatch.setattr(module, "CLOCK_TICK", -(10**12))


@pytest.fixture
def hashed(monkeypatch):
    """How often all weights were hashed."""
    calls = []
    shown = module.progress
    monkeypatch.setattr(module, "progress", lambda what, total: calls.append(what) or shown(what, total))
    return calls


def opened(folder, **chosen):
    return open_model(ModelChoice(model=folder, **chosen))[0]


def hash_of(folder, **chosen):
    checkpoint = opened(folder, **chosen)
    return fingerprint(checkpoint.params, checkpoint.origin)


def test_the_second_run_reads_nothing(folder, settled, hashed):
    wanted = fingerprint(load(folder).params)
    hashed.clear()
    assert [hash_of(folder) for _ in range(3)] == [wanted] * 3 and len(hashed) == 1
    checkpoint = opened(folder)
    hashed.clear()
    assert fingerprint(dict(checkpoint.params), checkpoint.origin) == wanted and len(hashed) == 1, "another's origin"
    changed = one_number(checkpoint.params, "norm.weight", 1)
    assert fingerprint(changed, checkpoint.origin) == fingerprint(changed) != wanted


def test_each_form_and_adapter_has_its_own(folder, settled, hashed):
    adapter = folder.parent / "adapter"
    more = [{"quantize": form} for form in FORMS] + [{"adapters": adapter}]
    for chosen in ({}, *more, {"adapters": adapter, "quantize": "int8-row"}):
        wanted = fingerprint(opened(folder, **chosen).params)
        hashed.clear()
        assert hash_of(folder, **chosen) == hash_of(folder, **chosen) == wanted and len(hashed) == 1


def rewrite(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path.with_name("other"), metadata={"format": "pt"})
    return path.with_name("other").read_bytes()


def edited(tensors):
    next(tensor for name, tensor in tensors.items() if name.endswith(("q_proj.weight", "lora_B.weight"))).view(-1)[
        7
    ] += 1


@pytest.mark.parametrize("how", ["in place", "in place, with its old time", "replaced", "replaced, with its old time"])
@pytest.mark.parametrize("which", ["m/model.safetensors", "adapter/adapter_model.safetensors"])
def test_a_changed_file_is_noticed(folder, settled, hashed, how, which):
    path, adapter = folder.parent / which, folder.parent / "adapter"
    before, was = hash_of(folder, adapters=adapter), path.stat()
    data = rewrite(path, edited)
    assert len(data) == was.st_size
    if how.startswith("in place"):
        path.write_bytes(data)
        path.with_name("other").unlink()
    else:
        path.with_name("other").replace(path)
    if how.endswith("old time"):
        os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
    hashed.clear()
    assert hash_of(folder, adapters=adapter) != before and len(hashed) == 1


def test_a_file_that_changes_while_it_is_read_is_not_believed(folder, settled, hashed):
    assert hash_of(folder)
    checkpoint = opened(folder)
    path = folder / "model.safetensors"
    path.with_name("other").write_bytes(path.read_bytes())
    path.with_name("other").replace(path)
    hashed.clear()
    assert fingerprint(checkpoint.params, checkpoint.origin) == fingerprint(checkpoint.params)
    assert len(hashed) == 2
    (names.user_cache() / FILE).unlink()
    checkpoint = opened(folder)
    path.touch()
    fingerprint(checkpoint.params, checkpoint.origin)
    assert not (names.user_cache() / FILE).exists()


def test_what_changed_a_moment_ago_is_not_remembered(folder):
    """Within a tick of the clock it could change again and show the same time."""
    now = time.time_ns()
    for age, remembered in ((0, False), (1.5e9, False), (-1e10, False), (1e10, True)):
        for path in folder.iterdir():
            os.utime(path, ns=(now, int(now - age)))
        origin = Origin.now([folder])
        aged = tuple((*state[:5], state[4]) for state in origin.states)  # the other time can't be set
        assert all(max(state[-2:]) < origin.taken - module.CLOCK_TICK for state in aged) == remembered
    hash_of(folder)
    assert not (names.user_cache() / FILE).exists(), "the time of their change, which can't be set, is now"


def test_a_cache_folder_that_cannot_be_used_costs_time_only(folder, settled, hashed, tmp_path, monkeypatch):
    wanted = fingerprint(load(folder).params)
    (tmp_path / "file").touch()
    for place in (tmp_path / "file" / "x", tmp_path / "file"):
        monkeypatch.setattr(names, "user_cache", lambda place=place: place)
        hashed.clear()
        assert hash_of(folder) == hash_of(folder) == wanted and len(hashed) == 2

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(names, "user_cache", homeless)
    assert hash_of(folder) == wanted


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}', "3", '{"%s": "short"}'])
def test_what_is_remembered_may_be_damaged(folder, settled, content):
    wanted = hash_of(folder)
    path = names.user_cache() / FILE
    key = next(iter(json.loads(path.read_text())))
    path.write_text(content.replace("%s", key))
    assert hash_of(folder) == wanted
    assert json.loads(path.read_text()) == {key: wanted}


def test_no_more_are_remembered_than_the_newest(folder, settled, monkeypatch):
    monkeypatch.setattr(module, "MAX_REMEMBERED", 2)
    for form in ("int8-row", "int8", "nf4"):
        hash_of(folder, quantize=form)
    assert len(json.loads((names.user_cache() / FILE).read_text())) == 2


def test_parts_of_a_gguf_are_one_origin(tmp_path):
    for part in (1, 2):
        (tmp_path / f"m-0000{part}-of-00002.gguf").touch()
    (tmp_path / "m-00001-of-00003.gguf").touch()
    found = [state[0].rpartition("/")[2] for state in module.states([tmp_path / "m-00002-of-00002.gguf"])]
    assert found == ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]


@pytest.mark.parametrize("what", ["a row", "an adapter", "quantised", "sliding RoPE"])
def test_f221_a_prompt_cache_is_taken_by_no_other_model(folder, what, capsys):
    cache, other = folder.parent / "cache", folder.parent / "other"
    run = ["hi", "--model", str(folder), "--prompt-cache", str(cache), "--max-tokens", "2"]
    assert generate.main(run) == 0 and generate.main(run) == 0
    assert "tokens of the prompt from" in capsys.readouterr().err
    write_hf(other, one_number(tiny.params(CONFIG), "tok_embeddings.weight", 200 * 48 + 3), CONFIG, tiny.tokenizer())
    rope = replace(CONFIG, rope_theta=499_999.0)
    write_hf(folder.parent / "rope", tiny.params(CONFIG), rope, tiny.tokenizer())
    argv, said = {
        "a row": (["--model", str(other)], "made with other weights"),
        "an adapter": (["--adapter", str(folder.parent / "adapter")], "made with other weights"),
        "quantised": (["--quantize", "int8-row"], "made with other weights"),
        "sliding RoPE": (
            ["--model", str(folder.parent / "rope")],
            "made with rope_theta 500000.0, this run has 499999.0",
        ),
    }[what]
    before = cache.read_bytes()
    assert generate.main([*run, *argv]) == 3
    assert f"error: {cache}: {said}; delete it, or take" in capsys.readouterr().err.replace(", delete", "; delete")
    assert cache.read_bytes() == before


def test_words_may_change_what_was_seen_stays(folder, capsys):
    """What is kept belongs to ids: under another tokenizer the prompt's ids differ from the first changed one on."""
    cache = folder.parent / "cache"
    run = ["--model", str(folder), "--prompt-cache", str(cache), "--max-tokens", "3", "--json", "--raw"]
    assert generate.main(["abcdef", *run]) == 0
    write_hf(folder, tiny.params(CONFIG), CONFIG, tiny.tokenizer("llama3"))
    capsys.readouterr()
    assert generate.main(["abcdef", "--model", str(folder), "--max-tokens", "3", "--json", "--raw"]) == 0
    wanted = json.loads(capsys.readouterr().out)["tokens"]
    assert generate.main(["abcdef", *run]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == wanted


def test_a_file_of_an_earlier_version(folder, capsys):
    cache = folder.parent / "cache"
    save_file({"tokens": torch.tensor([1])}, cache, metadata={"what": prompt_cache.WHAT, "weights": "0" * 32})
    assert generate.main(["hi", "--model", str(folder), "--prompt-cache", str(cache)]) == 3
    assert "made by another version of this program; delete it" in capsys.readouterr().err
