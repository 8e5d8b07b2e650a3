"""load: which door opens what, what it says where none does, and what it checks whatever the door."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

import llama3_scratch as l3
from llama3_scratch import bench, chat, convert, describe, evaluate, generate, parity, verify
from llama3_scratch.checkpoint import load as module
from llama3_scratch.checkpoint import meta
from llama3_scratch.checkpoint.gguf_header import read_header
from llama3_scratch.checkpoint.gguf_out import write_gguf
from llama3_scratch.checkpoint.hf_out import write_hf
from llama3_scratch.checkpoint.load import find_tokenizer, layout, load, weight_files
from llama3_scratch.checkpoint.meta import write_meta
from llama3_scratch.config import RopeScaling
from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.inference.sample import NonFiniteError, sampler
from llama3_scratch.text.tokenizer_file import write_tokenizer
from tests import tiny
from tests.batches import stream_all
from tests.llama2c_writer import CONFIG as LLAMA2C
from tests.llama2c_writer import write as write_llama2c
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


@pytest.mark.parametrize("name", ["sha256-" + 64 * "a", "M.GGUF", "ggml-model.bin", "model", "m.safetensors"])
def test_a_gguf_is_known_by_its_first_letters(tmp_path, name, capsys):
    pytest.importorskip("gguf", reason="the gguf package, an extra, writes the file")
    config = replace(tiny.CONFIG, vocab_size=272)
    write_gguf(tmp_path / "source.gguf", tiny.params(config), config, tiny.tokenizer(), kind="F32")
    (path := tmp_path / "blobs").mkdir()
    path /= name
    path.symlink_to(tmp_path / "source.gguf")  # as in Hugging Face's cache
    assert layout(path) == "gguf"
    checkpoint = load(path)
    assert checkpoint.config == config and set(weight_files(checkpoint).values()) == {name}
    assert describe.main([str(path)]) == 0
    assert convert.main([str(path), str(tmp_path / "out"), "--to", "meta"]) == 0
    assert generate.main(["hi", "--model", str(path), "--max-tokens", "2"]) == 0
    assert parity.main([str(path), "--length", "5"]) == 0
    assert verify.main([str(path), "--tensors"]) == 0 and verify.main([str(path)]) == 3
    capsys.readouterr()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["meta", "sha256-" + 64 * "a"])
def test_bench_needs_neither_a_suffix_nor_a_tokenizer(tmp_path, name):
    pytest.importorskip("gguf", reason="the gguf package, an extra, writes the file")
    if name == "meta":
        write_meta(tmp_path / name, tiny.params(), tiny.CONFIG, None)
    else:
        write_gguf(tmp_path / name, tiny.params(), tiny.CONFIG, None, kind="F32")
    assert bench.main([str(tmp_path / name), "--pp", "4", "--tg", "2", "-r", "1"]) == 0


def test_parts_in_capitals_are_one_model(tmp_path):
    gguf = pytest.importorskip("gguf", reason="the gguf package, an extra, writes the file")
    for part in (1, 2):
        writer = gguf.GGUFWriter(tmp_path / f"M-0000{part}-of-00002.GGUF", "llama")
        writer.add_uint16("split.count", 2)
        writer.add_tensor(f"t{part}", np.zeros(4, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    assert set(read_header(tmp_path / "M-00002-of-00002.GGUF").tensors) == {"t1", "t2"}


def test_ollamas_list_of_files_names_the_weights(tmp_path):
    manifest = tmp_path / "models/manifests/registry.ollama.ai/library/llama3.2/1b"
    manifest.parent.mkdir(parents=True)
    digest = "sha256:" + 64 * "b"
    layers = [
        {"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:" + 64 * "c"},
        {"mediaType": "application/vnd.ollama.image.model", "digest": digest},
    ]
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))
    blob = tmp_path / "models/blobs" / digest.replace(":", "-")
    refused(lambda: load(manifest), str(manifest), f"its weights are {blob}, give that")
    for other in ({"layers": [{"mediaType": layers[1]["mediaType"], "digest": "../../x"}]}, {"layers": 3}, [1], {}):
        manifest.write_text(json.dumps(other))
        refused(lambda: load(manifest), str(manifest), "expected a folder, a .gguf or a .bin file")


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


def test_f090_missing_tokenizer_is_told_before_shards_are_merged(tmp_path, monkeypatch, capsys):
    folder = tiny.folder(tmp_path / "model", shards=2)
    (folder / "tokenizer.model").unlink()
    monkeypatch.setattr(meta, "open_pth", lambda path: pytest.fail("weights were opened"))
    said = f"not found, nor in {tmp_path} or {folder / 'original'}; it comes with the weights"
    refused(lambda: load(folder, needs_tokenizer=True), str(folder / "tokenizer.model"), said)
    text = tmp_path / "text.txt"
    text.write_text("hello")
    for verb, argv in (
        (generate, ["hi", "--model", str(folder)]),
        (chat, ["--model", str(folder)]),
        (evaluate, [str(folder), "--text", str(text)]),
    ):
        assert verb.main(argv) == 3
        assert capsys.readouterr().err == f"error: {folder / 'tokenizer.model'}: {said}\n"


@pytest.mark.parametrize("kind", ["meta", "hf"])
def test_f090_tokens_need_no_tokenizer(tmp_path, kind, caplog, capsys):
    config, folder = replace(tiny.CONFIG, vocab_size=272), tmp_path / "model"
    name = "tokenizer.json" if kind == "hf" else "tokenizer.model"
    (write_hf if kind == "hf" else write_meta)(folder, tiny.params(config), config, None)
    checkpoint = load(folder)
    assert checkpoint.tokenizer is None
    [said] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert str(folder / name) in said and said.endswith("; tokens can be given, but no text")
    assert generate.main(["hi", "--model", str(folder)]) == 3
    assert f"error: {folder / name}: " in capsys.readouterr().err
    steps = list(stream_all([[1, 2, 3]], checkpoint.params, config, samplers=[sampler()], max_tokens=2))
    assert len(steps) == 2


@pytest.mark.parametrize("kind", ["meta", "hf"])
def test_f090_a_damaged_tokenizer_is_an_error_as_ever(tmp_path, kind):
    config, folder = replace(tiny.CONFIG, vocab_size=272), tmp_path / "model"
    (write_hf if kind == "hf" else write_meta)(folder, tiny.params(config), config, tiny.tokenizer())
    name = "tokenizer.json" if kind == "hf" else "tokenizer.model"
    for damaged in (b"", b"{", b"version https://git-lfs.github.com/spec/v1\nsize 12\n"):
        (folder / name).write_bytes(damaged)
        refused(lambda: load(folder), str(folder / name))


def test_what_convert_makes_of_llama2c_opens_everywhere(tmp_path, capsys):
    """It has no tokenizer to write: nothing but text needs one."""
    pytest.importorskip("gguf", reason="the gguf package, an extra, writes the file")
    config = replace(LLAMA2C, vocab_size=272)
    params = tiny.params(config)
    write_llama2c(tmp_path / "m.bin", params, config)
    chain = [("m.bin", "meta", "meta"), ("meta", "hf", "hf"), ("hf", "m.gguf", "gguf"), ("m.gguf", "again", "meta")]
    for source, target, to in chain:
        assert convert.main([str(tmp_path / source), str(tmp_path / target), "--to", to]) == 0
        found = load(tmp_path / target)
        assert found.tokenizer is None and found.config == config
        assert all(found.params[name].equal(tensor) for name, tensor in params.items())
        assert describe.main([str(tmp_path / target)]) == 0
        assert "not here" in capsys.readouterr().out
    assert verify.main([str(tmp_path / "hf"), "--tensors"]) == 0
    assert generate.main(["hi", "--model", str(tmp_path / "m.gguf")]) == 3
    assert "has no tokenizer, so it can't take text" in capsys.readouterr().err


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
    refused(
        lambda: load(folder), "layers.0.attention.wq.bias is not part of a Llama", "`allow_extra=True` ignores that"
    )
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
    steps = stream_all([[1, 2, 3]], ck.params, ck.config, samplers=[sampler()], max_tokens=2)
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
        "RoPE scaling factor 4: `rope_scale_factor`",
    ]
    write_hf(tmp_path / "hf", tiny.params(), tiny.CONFIG, tiny.tokenizer())
    with pytest.raises(UsageError, match=r"`rope_scale_factor` is for Meta's folders.*says its own"):
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
    with pytest.raises(UsageError, match="`allow_extra` is for Meta's and Hugging Face's folders"):
        load(tmp_path / "model.gguf", allow_extra=True)
