"""Meta's folders: every way a `.pth` or a set of shards can be wrong, and the forms that are read."""

import json
import logging
import os
import pickle
import random
import subprocess
import sys
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llama3_scratch.checkpoint import meta
from llama3_scratch.checkpoint.check import check
from llama3_scratch.checkpoint.load import load
from llama3_scratch.checkpoint.meta import open_pth, read_meta, shard_paths, write_meta
from llama3_scratch.config import Config, RopeScaling
from llama3_scratch.errors import FileError, ResourceError, UsageError
from llama3_scratch.model import forward
from llama3_scratch.params.quantize import quantize
from llama3_scratch.stored import stored
from tests import tiny
from tests.forms import PROJECTIONS, plain, quantised, with_adaptors

ROOT = Path(__file__).parents[2]
SHARD = "consolidated.00.pth"
# H, G, F and V divide by 8.
WIDE = Config(64, 2, 16, 8, 304, 96, rope_scaling=RopeScaling(8.0), max_seq_len=131_072)


@pytest.fixture
def folder(tmp_path):
    return tiny.folder(tmp_path / "model")


def wide(path, shards, *, seed=0, **changes):
    config = replace(WIDE, **changes)
    write_meta(path, tiny.params(config, seed=seed), config, None, shards=shards)
    return path


def edit(path, change):
    """Rewrite a `.pth` with what `change` makes of its dict."""
    torch.save(change(torch.load(path, weights_only=True)), path)


def without(*names):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}


def edit_json(path, **fields):
    data = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


def refused(read, *said):
    """`read()` raises FileError in one line that says all of `said` and nothing unsafe."""
    with pytest.raises(FileError) as caught:
        read()
    message = str(caught.value)
    assert caught.value.exit_code == 3
    assert "\n" not in message and "weights_only" not in message
    for part in said:
        assert part in message, message


def rezip(path, change, compression=zipfile.ZIP_STORED):
    """Pack the archive anew after `change` has worked on {name within the archive: bytes}."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    change(entries)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


def record(entries, ending):
    return next(name for name in entries if name.endswith(ending))


# One file: F003 to F023


def test_f001_missing(tmp_path):
    refused(lambda: load(tmp_path / "none"), str(tmp_path / "none"), "no such file or folder")
    refused(lambda: read_meta(tmp_path / "none"), str(tmp_path / "none"), "expected a folder", "found nothing")


def test_f003_file_where_a_folder_belongs_and_the_other_way_round(folder):
    refused(lambda: load(folder / SHARD), SHARD, "expected a folder", "give the folder that it lies in")
    refused(lambda: read_meta(folder / SHARD), SHARD, "expected a folder", "found a file")
    (folder / SHARD).unlink()
    (folder / SHARD).mkdir()
    refused(lambda: load(folder), SHARD, "expected a file", "found a folder")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 2471645608\n" % (b"ab" * 32)


@pytest.mark.parametrize(
    "data, said",
    [
        pytest.param(b"", ["empty file", "download it again"], id="F004"),
        pytest.param(b"\n<!DOCTYPE html><title>403", ["looks like a web page", "download failed"], id="F007"),
        pytest.param(b"<?xml version='1.0'?><Error>AccessDenied", ["looks like a web page"], id="F007-xml"),
        pytest.param(POINTER, ["git-lfs pointer to 2471645608 bytes", "git lfs pull"], id="F008"),
        pytest.param(b'{"error": "gated"}', ["not a torch checkpoint (18 bytes)", "download it again"], id="F007-json"),
        pytest.param(b"\x80\x02", ["damaged", "(2 bytes)"], id="cut-pickle"),
        pytest.param(b"PK\x03\x04 and no more", ["truncated: 16 bytes"], id="cut-archive"),
    ],
)
def test_not_a_checkpoint(folder, data, said, caplog):
    (folder / SHARD).write_bytes(data)
    refused(lambda: load(folder), str(folder / SHARD), *said)
    assert not caplog.records


@pytest.mark.parametrize(
    "share",
    [pytest.param(0.25, id="F005-25"), pytest.param(0.5, id="F005-50"), pytest.param(0.99, id="F006")],
)
def test_truncated(folder, share):
    data = (folder / SHARD).read_bytes()
    size = int(share * len(data))
    (folder / SHARD).write_bytes(data[:size])
    refused(lambda: load(folder), str(folder / SHARD), f"truncated: {size} bytes", "download it again")


class Bomb:
    """What a malicious pickle does: a command that runs when it's read."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("kind", ["pickle", "old format", "TorchScript", "quantised"])
def test_f010_nothing_but_our_sentence_is_said(folder, kind, protocol, recwarn):
    """Torch warns of the pickle's protocol, of archives of programs and of its old storages."""
    path = folder / SHARD
    tensors = torch.load(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "pickle":
            path.write_bytes(pickle.dumps(tensors, protocol=protocol))
        elif kind == "old format":
            torch.save(tensors, path, pickle_protocol=protocol, _use_new_zipfile_serialization=False)
        elif kind == "TorchScript":
            torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(path))
        else:
            torch.save({name: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8) for name, t in tensors.items()}, path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if (kind, protocol) == ("old format", 2):
            assert len(open_pth(path)) == len(tensors)
        else:
            said = "got a quantised one" if kind == "quantised" else "not a torch checkpoint"
            if (kind, protocol) == ("pickle", 2):
                said = "refused: contains code (GLOBAL torch.storage._load_from_bytes)"
            refused(lambda: open_pth(path), str(path), said)
    assert not recwarn.list


@pytest.mark.parametrize("zipped", [pytest.param(True, id="F009"), pytest.param(False, id="F009-legacy")])
def test_malicious_pickle_is_refused_and_not_run(folder, zipped):
    marker = folder / "was-run"
    torch.save({"norm.weight": Bomb(f"touch {marker}")}, folder / SHARD, _use_new_zipfile_serialization=zipped)
    refused(lambda: load(folder), str(folder / SHARD), "refused: contains code (GLOBAL posix.system)", "tensors only")
    assert not marker.exists()


def test_f010_old_format(folder, caplog):
    before = {name: tensor.clone() for name, tensor in load(folder).params.items()}
    torch.save(before, folder / SHARD, _use_new_zipfile_serialization=False)
    after = load(folder).params
    assert all(after[name].equal(before[name]) for name in before)
    assert f"{folder / SHARD}: not a zip archive but torch's old format, so it's read into memory" in caplog.text


def test_f011_compressed(folder, caplog):
    before = {name: tensor.clone() for name, tensor in load(folder).params.items()}
    rezip(folder / SHARD, lambda entries: None, zipfile.ZIP_DEFLATED)
    after = load(folder).params
    assert all(after[name].equal(before[name]) for name in before)
    assert f"{folder / SHARD}: compressed, so it's read into memory instead of mapped" in caplog.text


def test_a_torchscript_archive_is_refused_without_torchs_advice(folder):
    rezip(folder / SHARD, lambda entries: entries.update({record(entries, "/data.pkl")[:-8] + "constants.pkl": b"."}))
    refused(lambda: load(folder), str(folder / SHARD), "not a torch checkpoint")


def shorten(entries):
    name = record(entries, "/data/0")
    entries[name] = entries[name][:-4]


@pytest.mark.parametrize(
    "change, said",
    [
        pytest.param(shorten, ["damaged", "tensors of 356160 bytes, stored are 356156"], id="F012"),
        pytest.param(lambda entries: entries.pop(record(entries, "/data/3")), ["damaged", "data/3"], id="F013"),
        pytest.param(lambda entries: entries.pop(record(entries, "/data.pkl")), ["data.pkl is missing"], id="F014"),
        pytest.param(
            lambda entries: entries.update({record(entries, "/data.pkl"): b"\x80\x02}q"}), ["damaged"], id="F014-cut"
        ),
    ],
)
def test_damaged_archive(folder, change, said):
    rezip(folder / SHARD, change)
    refused(lambda: load(folder), str(folder / SHARD), *said, "download it again")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_any_damaged_byte_is_refused_or_unseen(folder):
    """Whatever a flipped byte makes of the header, nothing but FileError comes of it."""
    good, rng = (folder / SHARD).read_bytes(), random.Random(0)
    with zipfile.ZipFile(folder / SHARD) as archive:
        pickled = archive.getinfo(record(archive.namelist(), "/data.pkl"))
    outcomes = set()
    for _ in range(120):
        data, at = bytearray(good), rng.randrange(pickled.header_offset, pickled.header_offset + pickled.file_size)
        data[at] = rng.randrange(256)
        (folder / SHARD).write_bytes(data)
        try:
            open_pth(folder / SHARD)
            outcomes.add("read")
        except FileError as error:
            assert "weights_only" not in str(error) and "\n" not in str(error)
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


@pytest.mark.parametrize(
    "change, said",
    [
        pytest.param(lambda tensors: list(tensors.values()), ["expected a dict of tensors, got list"], id="F015"),
        pytest.param(lambda tensors: 7, ["expected a dict of tensors, got int"], id="F015-int"),
        pytest.param(
            lambda tensors: dict(enumerate(tensors.values())),
            ["expected a dict of tensors by name, got the key 0"],
            id="F015-keys",
        ),
        pytest.param(
            without("layers.4.attention.wk.weight"),
            ["layers.4.attention.wk.weight is missing; expected 48 tensors, got 47"],
            id="F017",
        ),
        pytest.param(
            lambda tensors: {name: t for name, t in tensors.items() if not name.startswith(("layers.1.", "layers.3."))},
            ["layers.1.attention_norm.weight, layers.1.attention.wq.weight", "and 8 more are missing"],
            id="F017-many",
        ),
        pytest.param(
            lambda tensors: tensors | {"layers.0.attention.wq.bias": torch.ones(48)},
            ["layers.0.attention.wq.bias is not part of a Llama", "`allow_extra=True` ignores that"],
            id="F018",
        ),
        pytest.param(
            lambda tensors: tensors | {"layers.2.attention.wk.weight": torch.ones(8, 48)},
            ["layers.2.attention.wk.weight: shape [8, 48], expected [16, 48]", "n_kv_heads, n_heads, dim"],
            id="F019",
        ),
        pytest.param(
            lambda tensors: tensors | {"norm.weight": torch.ones(48).double()},
            ["norm.weight: dtype float64, expected bfloat16 or float16 or float32"],
            id="F020-f64",
        ),
        pytest.param(
            lambda tensors: tensors | {"layers.0.attention.wv.weight": torch.ones(16, 48, dtype=torch.int8)},
            ["layers.0.attention.wv.weight: dtype int8, expected bfloat16"],
            id="F020-int8",
        ),
        pytest.param(
            lambda tensors: tensors | {"output.weight": torch.ones(272, 48, dtype=torch.complex64)},
            ["output.weight: dtype complex64, expected"],
            id="F020-complex",
        ),
        pytest.param(
            lambda tensors: tensors | {"norm.weight": torch.eye(48).to_sparse()},
            ["norm.weight: expected a dense tensor, got a torch.sparse_coo one"],
            id="F023-sparse",
        ),
        pytest.param(
            lambda tensors: tensors | {"norm.weight": torch.quantize_per_tensor(torch.ones(48), 0.1, 0, torch.qint8)},
            ["norm.weight: expected a dense tensor, got a quantised one"],
            id="F023-quantised",
        ),
        pytest.param(
            lambda tensors: tensors | {"norm.weight": torch.empty(48, device="meta")},
            ["norm.weight: expected a dense tensor, got a valueless one"],
            id="F023-meta",
        ),
        pytest.param(
            lambda tensors: tensors | {"norm.weight": [1.0] * 48},
            ["norm.weight: expected a tensor, got list"],
            id="F023-list",
        ),
        pytest.param(
            lambda tensors: tensors | {"layers.1.feed_forward.w2.weight": torch.ones(48, 44).to(torch.float8_e4m3fn)},
            ["layers.1.feed_forward.w2.weight: fp8 weights aren't read; take the bf16 release"],
            id="fp8",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*(quantized|Sparse|sparse|TypedStorage|deprecat).*")
def test_wrong_content(folder, change, said):
    edit(folder / SHARD, change)
    refused(lambda: load(folder), str(folder), *said)


def test_f016_nested(folder, caplog):
    edit(folder / SHARD, lambda tensors: {"model": tensors, "step": 7})
    assert load(folder).params.keys() == tiny.params().keys()
    assert f"{folder / SHARD}: the tensors lie under 'model', taken from there, without step" in caplog.text


def test_f018_rope_table_is_ignored_and_others_on_request(folder, caplog):
    wanted = set(load(folder).params)
    edit(folder / SHARD, lambda tensors: tensors | {"rope.freqs": torch.ones(4)})
    assert set(load(folder).params) == wanted and not caplog.records
    edit(folder / SHARD, lambda tensors: tensors | {"bias": torch.ones(4)})
    refused(lambda: load(folder), "bias is not part of a Llama")
    assert set(load(folder, allow_extra=True).params) == wanted


def test_saved_parameters_come_back_as_plain_tensors(folder):
    edit(folder / SHARD, lambda tensors: {name: torch.nn.Parameter(tensor) for name, tensor in tensors.items()})
    assert not any(tensor.requires_grad for tensor in load(folder).params.values())


def test_a_missing_or_copied_head_is_the_embedding(tmp_path):
    tied = replace(tiny.CONFIG, tied=True)
    write_meta(tmp_path / "m", tiny.params(tied), tied, None)
    read = {"shared": read_meta(tmp_path / "m")}
    edit(tmp_path / "m" / SHARD, lambda tensors: tensors | {"output.weight": tensors["output.weight"].clone()})
    read["copied"] = read_meta(tmp_path / "m")
    edit(tmp_path / "m" / SHARD, without("output.weight"))
    read["absent"] = read_meta(tmp_path / "m")
    for how, (config, params) in read.items():
        assert config == tied, how
        assert params["output.weight"] is params["tok_embeddings.weight"], how
    edit(tmp_path / "m" / SHARD, lambda tensors: tensors | {"output.weight": 2 * tensors["tok_embeddings.weight"]})
    assert not read_meta(tmp_path / "m")[0].tied


# Several shards: F025 to F034


def test_f025_gap(tmp_path):
    folder = wide(tmp_path / "m", 4)
    (folder / "consolidated.02.pth").unlink()
    refused(lambda: read_meta(folder), str(folder), "consolidated.02.pth missing", "found consolidated.00.pth, ")
    (folder / "consolidated.999999999.pth").write_bytes(b"")  # and no list of a billion names
    refused(lambda: read_meta(folder), "consolidated.02.pth, consolidated.04.pth, ")


@pytest.mark.parametrize("kept, found", [(1, 1), (2, 2)])
def test_f026_the_last_shards_are_missing(tmp_path, kept, found):
    folder = wide(tmp_path / "m", 8)
    for index in range(kept, 8):
        (folder / f"consolidated.{index:02d}.pth").unlink()
    said = [
        str(folder), "38 rows of tok_embeddings", "8 rows of wq", "vocab_size 304", f"imply 8 shards, found {found}",
        "the others are missing",
    ]  # fmt: skip
    refused(lambda: read_meta(folder), *said)
    edit_json(folder / "params.json", vocab_size=None, multiple_of=None)
    refused(lambda: read_meta(folder), "imply 8 shards")


def test_f027_shard_of_another_model(tmp_path):
    folder, other = wide(tmp_path / "m", 2), wide(tmp_path / "other", 2, hidden_dim=64)
    (other / "consolidated.01.pth").replace(folder / "consolidated.01.pth")
    refused(
        lambda: read_meta(folder), "consolidated.01.pth: layers.0.feed_forward.w1.weight: shape [32, 64], but [48, 64]",
        "of another model?",
    )  # fmt: skip
    folder, other = wide(tmp_path / "m", 2), wide(tmp_path / "other", 2)
    (other / "consolidated.01.pth").replace(folder / "consolidated.02.pth")
    refused(lambda: read_meta(folder), "imply 2 shards, found 3; some belong to another model")


def test_f028_dtypes_differ(tmp_path):
    folder = wide(tmp_path / "m", 2)
    edit(folder / "consolidated.01.pth", lambda tensors: {name: t.bfloat16() for name, t in tensors.items()})
    refused(lambda: read_meta(folder), "consolidated.01.pth: tok_embeddings.weight: dtype torch.bfloat16, but", "in ")


@pytest.mark.parametrize("index", [0, 1])
def test_f029_keys_differ(tmp_path, index):
    folder = wide(tmp_path / "m", 2)
    edit(folder / f"consolidated.0{index}.pth", without("layers.1.attention.wo.weight"))
    refused(
        lambda: read_meta(folder), f"consolidated.0{index}.pth: layers.1.attention.wo.weight is missing", "(1 such key"
    )


@pytest.mark.parametrize("off, warned", [(0.005, False), (0.02, True), (float("nan"), True)])
def test_f030_norms_differ(tmp_path, caplog, off, warned):
    folder = wide(tmp_path / "m", 2)
    first = torch.load(folder / SHARD)["layers.1.ffn_norm.weight"]
    edit(folder / "consolidated.01.pth", lambda tensors: tensors | {"layers.1.ffn_norm.weight": first + off})
    assert read_meta(folder)[1]["layers.1.ffn_norm.weight"].equal(first)
    said = f"consolidated.01.pth: layers.1.ffn_norm.weight differs from {SHARD} by {off:.3g}"
    assert (said in caplog.text) == warned


def test_f031_names_are_sorted_by_number(tmp_path):
    folder = wide(tmp_path / "m", 8)
    wanted = read_meta(folder)[1]
    for path in sorted(folder.glob("*.pth")):
        path.rename(folder / f"consolidated.{int(path.name[13:15])}.pth")
    (folder / "consolidated.0.pth").rename(folder / "consolidated.000.pth")
    assert [path.name for path in shard_paths(folder)][:2] == ["consolidated.000.pth", "consolidated.1.pth"]
    found = read_meta(folder)[1]
    assert all(found[name].equal(wanted[name]) for name in wanted)
    for index in range(8, 12):  # 10 and 11 come before 2 as text
        (folder / f"consolidated.{index}.pth").write_bytes(b"")
    assert [int(path.name.split(".")[1]) for path in shard_paths(folder)] == list(range(12))


def test_one_number_twice(tmp_path):
    folder = wide(tmp_path / "m", 2)
    (folder / "consolidated.1.pth").write_bytes(b"")
    refused(lambda: read_meta(folder), "consolidated.1.pth: has the number of consolidated.01.pth")


def test_f032_embedding_cut_in_columns(tmp_path):
    folder = wide(tmp_path / "m", 2)
    config, wanted = read_meta(folder)
    for index, part in enumerate(wanted["tok_embeddings.weight"].chunk(2, dim=1)):
        edit(
            folder / f"consolidated.0{index}.pth",
            lambda tensors, part=part: tensors | {"tok_embeddings.weight": part.contiguous()},
        )
    for vocab_size in (304, -1):
        edit_json(folder / "params.json", vocab_size=vocab_size)
        found = read_meta(folder)
        assert found[0] == config
        assert all(found[1][name].equal(wanted[name]) for name in wanted)


def test_f033_more_shards_than_heads(tmp_path):
    folder = wide(tmp_path / "m", 8)
    edit_json(folder / "params.json", n_kv_heads=4)
    refused(lambda: read_meta(folder), SHARD, "wk.weight: 8 shards hold 8 key/value heads, n_kv_heads", "is 4")


def test_f033_duplicated_heads_are_heads(tmp_path):
    """405B over 16 ranks repeats each key/value head and says n_kv_heads 16: the same model with a larger cache."""
    config = replace(WIDE, n_kv_heads=4)
    params = tiny.params(config)
    doubled = dict(params)
    for name, tensor in params.items():
        if name.endswith(("wk.weight", "wv.weight")):
            doubled[name] = tensor.unflatten(0, (4, -1)).repeat_interleave(2, dim=0).flatten(0, 1)
    write_meta(tmp_path / "m", doubled, WIDE, None, shards=8)
    found, read = read_meta(tmp_path / "m")
    assert found.n_kv_heads == 8
    tokens_BT = tiny.tokens(1, 40, config)
    torch.testing.assert_close(forward(tokens_BT, read, found), forward(tokens_BT, params, config))


def test_f034_mixed_folder(folder, caplog):
    wanted = load(folder).params
    (folder / "model.safetensors").write_bytes(b"not even one")
    (folder / "config.json").write_text("{}")
    assert load(folder).params["norm.weight"].equal(wanted["norm.weight"])
    assert f"{folder}: both consolidated.*.pth and model*.safetensors are here; Meta's are taken" in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(without("layers.1.attention.wk.weight"), id="F017"),
        pytest.param(lambda tensors: tensors | {"surprise": torch.ones(3)}, id="F018"),
        pytest.param(lambda tensors: tensors | {"layers.1.attention.wo.weight": torch.ones(64, 16)}, id="F019"),
        pytest.param(lambda tensors: {name: t.double() for name, t in tensors.items()}, id="F020"),
    ],
)
def test_shards_are_refused_before_anything_is_allocated(tmp_path, monkeypatch, change):
    folder = wide(tmp_path / "m", 2)
    for index in range(2):
        edit(folder / f"consolidated.0{index}.pth", change)
    monkeypatch.setattr(meta, "require_memory", lambda plan, free: pytest.fail("memory was asked for"))
    refused(lambda: read_meta(folder), str(folder))


def test_allow_extra_over_shards(tmp_path):
    folder = wide(tmp_path / "m", 2)
    for index in range(2):
        edit(folder / f"consolidated.0{index}.pth", lambda tensors: tensors | {"surprise": torch.ones(3, 2)})
    assert "surprise" not in read_meta(folder, allow_extra=True)[1]


def test_shards_that_memory_cannot_hold(tmp_path, monkeypatch):
    folder = wide(tmp_path / "m", 2)
    monkeypatch.setattr(meta, "available_memory", lambda: 100_000)
    with pytest.raises(ResourceError, match="100 kB are free"):
        read_meta(folder)


def test_uneven_cuts_are_refused(tmp_path):
    with pytest.raises(UsageError, match="`shards` 3 doesn't divide n_kv_heads 2"):
        write_meta(tmp_path / "m", tiny.params(), tiny.CONFIG, None, shards=3)
    assert not (tmp_path / "m").exists()


# Meta's int4 releases of 3.2

INT4 = {"scheme": "int4_weight_int8_dynamic_activation", "group_size": 32}


def qlora(path, *, flat_scales=False):
    """A folder as the QLoRA release lays it out: no `adaptor.scale`, but lora_args; int8 rows of embedding and head."""
    config = Config(64, 2, 8, 2, 304, 96, rope_scaling=RopeScaling(8.0))
    params = with_adaptors(quantised(tiny.params(config), group=32, bits=4, only=PROJECTIONS), rank=16)
    params = quantised(params, group=0, bits=8, only=("tok_embeddings", "output"))
    params = {name: torch.tensor(2.0) if name.endswith("adaptor.scale") else t for name, t in params.items()}
    stored = {name: tensor for name, tensor in params.items() if not name.endswith("adaptor.scale")}
    if flat_scales:
        stored |= {name: stored[name][:, 0].clone() for name in ("tok_embeddings.scales", "output.scales")}
    write_meta(path, tiny.params(config), config, None)
    torch.save(stored, path / SHARD)
    edit_json(path / "params.json", quantization_args=INT4, lora_args={"rank": 16, "scale": 2.0})
    return config, params


@pytest.mark.parametrize("flat_scales", [False, True], ids=["a column of scales", "a row of scales"])
def test_qlora(tmp_path, flat_scales):
    config, wanted = qlora(tmp_path / "m", flat_scales=flat_scales)
    found, params = read_meta(tmp_path / "m")
    assert found == config  # 8192 tokens of context although RoPE is scaled
    assert params.keys() == wanted.keys()
    assert params["layers.0.attention.wq.scales"].shape == (64, 2) and params["output.scales"].shape == (304, 1)
    tokens_BT = tiny.tokens(2, 64, config)
    dense = forward(tokens_BT, plain(wanted), config)
    logits = forward(tokens_BT, params, config, dtype=torch.float64)
    assert (logits - dense).abs().max() < 1e-9 * dense.std()
    without = forward(tokens_BT, {n: t for n, t in params.items() if "adaptor" not in n}, config, dtype=torch.float64)
    assert (without - dense).abs().max() > 0.1 * dense.std()


def test_heads_of_one_and_the_same_integers_are_tied_only_if_their_scales_are_equal(tmp_path):
    qlora(tmp_path / "m")
    for stretch, tied in ((1.0, True), (1.5, False)):

        def as_the_embedding(tensors, stretch=stretch):
            scales = stretch * tensors["tok_embeddings.scales"]
            return tensors | {"output.weight": tensors["tok_embeddings.weight"].clone(), "output.scales": scales}

        edit(tmp_path / "m" / SHARD, as_the_embedding)
        config, params = read_meta(tmp_path / "m")
        assert config.tied == tied == (params["output.weight"] is params["tok_embeddings.weight"])
    edit(tmp_path / "m" / SHARD, without("output.weight", "output.scales"))
    config, params = read_meta(tmp_path / "m")
    assert config.tied and params["output.scales"].equal(params["tok_embeddings.scales"])


def test_qlora_is_written_as_it_was_read(tmp_path):
    qlora(tmp_path / "m")
    config, params = read_meta(tmp_path / "m")
    write_meta(tmp_path / "copy", params, config, None)
    found, copied = read_meta(tmp_path / "copy")
    assert found == config and copied.keys() == params.keys()
    assert all(copied[name].equal(params[name]) for name in params)
    data = json.loads((tmp_path / "copy" / "params.json").read_text())
    assert data["quantization_args"] == INT4 | {"spinquant": False}
    assert data["lora_args"] == {"rank": 16, "scale": 2.0}
    with pytest.raises(UsageError, match="`shards` 2: quantised weights and adapters go into one shard"):
        write_meta(tmp_path / "halves", params, config, None, shards=2)
    params["layers.1.attention.wq.adaptor.scale"] = torch.tensor(1.0)
    with pytest.raises(UsageError, match=r"one rank and scale for all adapters, got \[\(16, 1.0\), \(16, 2.0\)\]"):
        write_meta(tmp_path / "other", params, config, None)


def test_qlora_that_is_not_whole(tmp_path):
    folder = tmp_path / "m"
    qlora(folder)
    edit(folder / SHARD, without("layers.1.attention.wv.adaptor.B.weight"))
    from llama3_scratch.checkpoint.check import check

    def read():
        config, params = read_meta(folder)
        check(params, config, folder)

    refused(read, "layers.1.attention.wv.adaptor.B.weight is missing, an adapter is A, B and scale")
    qlora(folder)
    edit_json(folder / "params.json", lora_args={"rank": 16})
    refused(read, "params.json", "scale is missing")
    edit_json(folder / "params.json", lora_args=None, quantization_args=INT4 | {"spinquant": False})
    refused(read, "params.json: lora_args is missing, expected the rank and scale of layers.0.attention.wq.adaptor")
    qlora(folder)
    (folder / SHARD).rename(folder / "x")
    for index in range(2):
        tensors = {
            name: t[: len(t) // 2] if name.endswith("wq.weight") else t for name, t in torch.load(folder / "x").items()
        }
        torch.save(tensors, folder / f"consolidated.0{index}.pth")
    edit_json(folder / "params.json", multiple_of=None, hidden_dim=None, ffn_dim_multiplier=None)
    refused(read, "quantised weights and adapters are read from one shard, got 2")


# Memory, in processes of their own

MEMORY = """
import json, sys, threading, time
import torch
from pathlib import Path
from llama3_scratch.checkpoint.meta import read_meta

def now(*keys):
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return [int(status[key].split()[0]) * 1024 for key in keys]

peak, before = [0, 0], now("RssAnon", "VmRSS")
def watch():
    while True:
        peak[:] = map(max, peak, now("RssAnon", "VmRSS"))
        time.sleep(0.002)
threading.Thread(target=watch, daemon=True).start()
config, params = read_meta(Path(sys.argv[1]))
time.sleep(0.1)
print(json.dumps([top - bottom for top, bottom in zip(peak, before)]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize("shards", [1, 4])
def test_merging_never_holds_the_model_twice(tmp_path, shards):
    config = Config(1024, 12, 16, 8, 16384, 2816, max_seq_len=8192)
    write_meta(tmp_path / "m", tiny.params(config, dtype=torch.bfloat16), config, None, shards=shards)
    size, margin = 2 * config.n_parameters, 60e6
    assert size > 290e6
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "m")], cwd=ROOT, capture_output=True, text=True, check=True
    )
    anonymous, resident = json.loads(done.stdout)
    assert anonymous < (margin if shards == 1 else size + margin)
    assert resident < (margin if shards == 1 else size * (1 + 1 / shards) + margin)


def test_messages_are_not_repeated(folder, caplog):
    with caplog.at_level(logging.INFO, "llama3_scratch"):
        load(folder)
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["RoPE scaling factor 32"]


@pytest.mark.parametrize("form", ["int8-row", "int8", "int4", "int4-sym", "nf4"])
def test_quantised_weights_come_back_as_they_were_and_go_into_one_shard(tmp_path, form, caplog):
    params = quantize(tiny.params(tiny.TILED), form)
    write_meta(tmp_path / "m", params, tiny.TILED, None)
    assert "quantization_args" not in json.loads((tmp_path / "m" / "params.json").read_text())
    config, found = read_meta(tmp_path / "m")
    check(found, config, tmp_path)
    assert config == tiny.TILED and found.keys() == params.keys()
    assert all(found[name].equal(params[name]) and found[name].dtype == params[name].dtype for name in params)
    assert not caplog.records
    with pytest.raises(UsageError, match="`shards` 2: quantised weights and adapters go into one shard, here is tok_"):
        write_meta(tmp_path / "two", params, tiny.TILED, None, shards=2)
    if stored(found, "layers.0.feed_forward.w1").values.ndim > 2:  # rows are counted first, and say two shards too
        torch.save(found, tmp_path / "m" / "consolidated.01.pth")
        refused(lambda: read_meta(tmp_path / "m"), "quantised weights and adapters are read from one shard, got 2")
