"""load: which door opens what, what it says where none does, and what it checks whatever the door."""

import json
import logging
from dataclasses import replace

import pytest
import torch

import llama3_scratch as l3
from llama3_scratch import generate
from llama3_scratch.checkpoint import load as module
from llama3_scratch.checkpoint import meta
from llama3_scratch.checkpoint.hf_out import write_hf
from llama3_scratch.checkpoint.load import find_tokenizer, layout, load
from llama3_scratch.checkpoint.meta import write_meta
from llama3_scratch.config import RopeScaling
from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.sample import NonFiniteError, sampler
from llama3_scratch.stream import stream
from llama3_scratch.tokenizer import write_tokenizer
from tests import tiny
from tests.reference import llama3


@pytest.fixture
def folder(tmp_path):
    return tiny.folder(tmp_path / "model")


def refused(read, *said):
    with pytest.raises(FileError) as caught:
        read()
    assert caught.value.exit_code == 3 and "\n" not in str(caught.value)
    for part in said:
        assert part in str(caught.value), str(caught.value)


def test_a_checkpoint(folder):
    ck = l3.load(folder)
    assert (ck.path, ck.config.vocab_size, ck.tokenizer.chat_format) == (folder, 272, "chatml")
    logits_BTV = l3.forward(tiny.tokens(2, 9), ck.params, ck.config)
    assert logits_BTV.shape == (2, 9, 272) and logits_BTV.dtype == torch.float32
    assert l3.load(str(folder)).config == ck.config
    with pytest.raises(AttributeError):
        ck.config = None


# Which door


def test_f001_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA3_SCRATCH_WEIGHTS", str(tmp_path / "weights"))
    refused(lambda: load(tmp_path / "none"), str(tmp_path / "none"), "no such file or folder", "smollm2-135m")
    refused(lambda: load("llama3.2-1b"), "not downloaded to", "python -m llama3_scratch.download llama3.2-1b")


def test_f002_nothing_that_is_known(tmp_path, capsys):
    looked = "no weights: looked for consolidated.*.pth, model*.safetensors and *.gguf"
    refused(lambda: load(tmp_path), str(tmp_path), looked)
    assert generate.main(["hi", "--model", str(tmp_path)]) == 3
    error = capsys.readouterr().err
    assert error == f"error: {tmp_path}: {looked}\n"
    (tmp_path / "b.gguf").touch()
    (tmp_path / "a.gguf").touch()
    refused(lambda: load(tmp_path), looked, f"there is {tmp_path / 'a.gguf'}, give that")
    (tmp_path / "original").mkdir()
    refused(lambda: load(tmp_path), looked, f"there is {tmp_path / 'original'}, give that")
    (tmp_path / "pytorch_model.bin").touch()
    refused(lambda: load(tmp_path / "params.json"), "no such file")


def test_f003_files_of_other_kinds(folder, tmp_path):
    for name in ("consolidated.00.pth", "params.json"):
        refused(
            lambda name=name: load(folder / name), name, "expected a folder, a .gguf or a .bin file; give the folder"
        )
    (tmp_path / "x.gguf").mkdir()
    refused(lambda: load(tmp_path / "x.gguf"), "no weights: looked for")


@pytest.mark.parametrize(
    "names, kind",
    [
        (["consolidated.00.pth"], "meta"),
        (["consolidated.00.pth", "model.safetensors"], "meta"),
        (["model.safetensors"], "hf"),
        (["model-00001-of-00002.safetensors", "model.safetensors.index.json"], "hf"),
        (["model.safetensors", "x.gguf", "original"], "hf"),
    ],
)
def test_layout(tmp_path, names, kind):
    for name in names:
        (tmp_path / name).touch()
    assert layout(tmp_path) == kind


def test_f034_mixed_folder_says_which_it_takes(tmp_path, caplog):
    (tmp_path / "consolidated.00.pth").touch()
    layout(tmp_path)
    assert not caplog.records
    (tmp_path / "model.safetensors").touch()
    layout(tmp_path)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(
        f"{tmp_path}: both consolidated.*.pth and model*.safetensors are here; Meta's"
    )


# The tokenizer


def test_f080_tokenizer_of_another_model(folder, caplog):
    write_tokenizer(tiny.tokenizer("llama3"), folder)
    for rows, name in ((255, "other"), (262, "small")):
        config = replace(tiny.CONFIG, vocab_size=rows)
        write_meta(folder.parent / name, tiny.params(config), config, tiny.tokenizer("llama3"))
    said = "other: the tokenizer has 263 tokens, the embedding 255 rows (vocab_size); they belong to different models"
    refused(lambda: load(folder.parent / "other"), said)
    with caplog.at_level(logging.WARNING, "llama3_scratch"):  # special tokens may lack a row
        assert load(folder.parent / "small").tokenizer.n_words == 262
    assert "the embedding has 262 rows, none for token 262 '<|python_tag|>'; left out" in caplog.text
    assert load(folder).tokenizer.n_words == 263  # an embedding with rows to spare is common


def test_f090_missing_tokenizer_is_told_before_shards_are_merged(tmp_path, monkeypatch):
    folder = tiny.folder(tmp_path / "model", shards=2)
    (folder / "tokenizer.model").unlink()
    monkeypatch.setattr(meta, "open_pth", lambda path: pytest.fail("weights were opened"))
    refused(
        lambda: load(folder), str(folder / "tokenizer.model"), f"not found, nor in {tmp_path} or {folder / 'original'}"
    )


@pytest.mark.parametrize("place", [".", "..", "original"])
def test_f090_places_of_the_tokenizer(tmp_path, place):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / place).mkdir(exist_ok=True)
    write_tokenizer(tiny.tokenizer(), folder / place)
    assert find_tokenizer(folder).n_words == 258


# What is checked whatever the door


def spoil(folder, value=float("nan")):
    path = folder / "consolidated.00.pth"
    tensors = torch.load(path)
    tensors["layers.3.feed_forward.w2.weight"][5, 7] = value
    torch.save(tensors, path)


def test_f018_allow_extra(tmp_path):
    write_hf(tmp_path / "hf", tiny.params(), tiny.CONFIG, tiny.tokenizer())
    folder = tiny.folder(tmp_path / "meta")
    tensors = torch.load(folder / "consolidated.00.pth")
    torch.save(tensors | {"layers.0.attention.wq.bias": torch.ones(48)}, folder / "consolidated.00.pth")
    refused(lambda: load(folder), "layers.0.attention.wq.bias is not part of a Llama", "--allow-extra")
    assert load(folder, allow_extra=True).params.keys() == tensors.keys()


def test_f021_small_models_are_scanned(folder):
    spoil(folder)
    refused(
        lambda: load(folder),
        f"{folder}: layers.3.feed_forward.w2.weight: 1 NaN or infinite values, the first at [5, 7]",
    )


def test_f021_large_models_are_told_by_their_first_bad_logit(folder, monkeypatch):
    spoil(folder)
    monkeypatch.setattr(module, "SCAN_LIMIT", 1000)
    ck = load(folder)
    steps = stream([[1, 2, 3]], ck.params, ck.config, samplers=[sampler()], max_tokens=2)
    with pytest.raises(NonFiniteError, match=r"layers\.3\.feed_forward.w2.weight holds NaN or infinity") as caught:
        next(iter(steps))
    assert caught.value.exit_code == 1


def test_f021_no_scan_from_half_a_gigabyte_on(folder, monkeypatch):
    scanned = []
    monkeypatch.setattr(module, "scan", lambda params, source: scanned.append(source))
    for size, expected in ((499_999_999, [folder]), (500_000_000, [])):
        scanned.clear()
        monkeypatch.setattr(module, "n_bytes", lambda params, size=size: size)
        load(folder)
        assert scanned == expected


def test_f087_override(folder, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "llama3_scratch"):
        assert load(folder).config.rope_scaling == RopeScaling(32.0)
        assert load(folder, rope_scale_factor=4.0).config.rope_scaling == RopeScaling(4.0)
    notes = [record.getMessage() for record in caplog.records]
    assert notes == [
        "RoPE scaling factor 32: params.json's rope_scaling_factor",
        "RoPE scaling factor 4: --rope-scale-factor",
    ]
    write_hf(tmp_path / "hf", tiny.params(), tiny.CONFIG, tiny.tokenizer())
    with pytest.raises(UsageError, match=r"--rope-scale-factor is for Meta's folders.*says its own"):
        load(tmp_path / "hf", rope_scale_factor=8.0)


def test_on_another_device_a_tied_head_stays_one_tensor(tmp_path):
    config = replace(tiny.CONFIG, tied=True, vocab_size=272)
    write_meta(tmp_path / "m", tiny.params(config), config, tiny.tokenizer())
    moved = load(tmp_path / "m", device="meta").params
    assert all(tensor.device.type == "meta" for tensor in moved.values())
    assert moved["output.weight"] is moved["tok_embeddings.weight"]


def test_errors_reach_the_command_line_in_one_line(folder, capsys):
    (folder / "params.json").write_text(json.dumps({"dim": 48}))
    assert generate.main(["hi", "--model", str(folder)]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"error: {folder / 'params.json'}: n_heads is missing, expected a whole number\n"
    assert generate.main(["hi", "--debug", "--model", str(folder)]) == 3
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["Llama3.2-1B-Instruct", "Llama3.2-1B", "mine"])
def test_only_the_folders_name_says_that_metas_model_chats_until_it_is_written_anew(tmp_path, name):
    config = replace(tiny.CONFIG, vocab_size=128_256)
    folder = tmp_path / name
    write_meta(folder, tiny.params(config), config, llama3())
    (folder / "tokenizer_extra.json").unlink(missing_ok=True)  # as Meta publishes it
    chats = name.endswith("Instruct")
    checkpoint = load(folder)
    assert (checkpoint.tokenizer.chat_format == "llama3") == chats

    write_meta(tmp_path / "copy", checkpoint.params, config, checkpoint.tokenizer)
    assert load(tmp_path / "copy").tokenizer.chat_format == checkpoint.tokenizer.chat_format


def test_allow_extra_is_for_folders(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(UsageError, match="--allow-extra is for Meta's and Hugging Face's folders"):
        load(tmp_path / "model.gguf", allow_extra=True)
