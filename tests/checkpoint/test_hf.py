"""Hugging Face's layout: read what transformers writes, write what transformers reads, refuse what is damaged."""

import json
import logging
import random
import resource
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llama3_scratch import convert, verify
from llama3_scratch.checkpoint.description import describe
from llama3_scratch.checkpoint.hf import read_hf, read_hf_header
from llama3_scratch.checkpoint.hf_out import write_hf
from llama3_scratch.checkpoint.load import Checkpoint, weight_files
from llama3_scratch.config import RopeScaling, expected
from llama3_scratch.errors import FileError, ResourceError, UsageError
from llama3_scratch.init import init
from llama3_scratch.model import forward
from llama3_scratch.params.hf_layout import half_split, hf_name, interleaved
from tests import tiny

SCALED = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


# Wild enough for a mistake to show (an eps of 1e-6 is off by 3e-5 std), tame enough for f32 to agree to 3e-6 std.
STD = 0.15


def theirs(seed=0, **fields):
    """transformers' own tiny Llama with random weights."""
    transformers = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "vocab_size": 67,
        "intermediate_size": 40,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_theta": 500_000.0, **SCALED},
    }
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes | fields)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            wild = torch.randn(weight.shape, generator=generator)
            weight.copy_(1 + 0.2 * wild if weight.ndim == 1 else wild if "embed" in name else STD * wild)
    return model


def opened(folder, **options):
    transformers = pytest.importorskip("transformers")
    return transformers.LlamaForCausalLM.from_pretrained(folder, attn_implementation="eager", **options).eval()


@torch.no_grad()
def assert_same_logits(model, config, params):
    tokens_BT = tiny.tokens(1, 512, config)
    theirs_BTV = model(tokens_BT).logits
    ours_BTV = forward(tokens_BT, params, config)
    assert (ours_BTV - theirs_BTV).abs().max() <= 2e-5 * theirs_BTV.std()


@pytest.mark.parametrize(
    "shards, tied, rope",
    [("single", False, "llama3"), ("indexed", True, "llama3"), ("indexed", False, "default")],
)
def test_reads_what_transformers_writes(tmp_path, shards, tied, rope):
    parameters = {"rope_theta": 500_000.0, **SCALED} if rope == "llama3" else {"rope_theta": 1e4, "rope_type": rope}
    model = theirs(tie_word_embeddings=tied, rope_parameters=parameters)
    model.save_pretrained(tmp_path, max_shard_size="20KB" if shards == "indexed" else "1GB")
    assert (tmp_path / "model.safetensors.index.json").exists() == (shards == "indexed")
    config, params = read_hf(tmp_path)
    assert list(params) == list(expected(config))
    assert config.tied == tied == (params["output.weight"] is params["tok_embeddings.weight"])
    assert config.rope_scaling == (RopeScaling(32.0, 1.0, 4.0, 64) if rope == "llama3" else None)
    assert_same_logits(model, config, params)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("max_shard_bytes", [10**9, 20_000])
def test_round_trip_is_bit_exact(tmp_path, dtype, tied, max_shard_bytes):
    config = replace(tiny.CONFIG, tied=tied)
    params = tiny.params(config, dtype=dtype)
    write_hf(tmp_path / "out", params, config, None, max_shard_bytes=max_shard_bytes)
    again_config, again = read_hf(tmp_path / "out")
    assert again_config == config
    assert list(again) == list(params)
    for name, tensor in params.items():
        assert again[name].dtype == dtype and again[name].equal(tensor), name
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    assert (len(shards) > 1) == (max_shard_bytes == 20_000)
    assert all(shard.stat().st_mode & 0o444 == 0o444 for shard in shards)
    header_config, header = read_hf_header(tmp_path / "out")
    assert header_config == config
    short = str(dtype).removeprefix("torch.")
    assert header == {n: (tuple(t.shape), short) for n, t in params.items() if not (tied and n == "output.weight")}


@pytest.mark.parametrize("tied, scaling", [(False, RopeScaling(8.0, 1.0, 4.0, 64)), (True, None)])
def test_transformers_reads_what_we_write(tmp_path, tied, scaling):
    transformers = pytest.importorskip("transformers")
    said = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    transformers.logging.get_logger("transformers").addHandler(handler)
    config = replace(tiny.CONFIG, tied=tied, rope_scaling=scaling)
    params = init(config, seed=0, std=STD, norm_std=0.2)
    write_hf(tmp_path / "out", params, config, None, max_shard_bytes=20_000)
    model = opened(tmp_path / "out")
    transformers.logging.get_logger("transformers").removeHandler(handler)
    assert not said
    assert model.dtype == torch.float32
    assert_same_logits(model, config, params)
    prompt = tiny.tokens(1, 7, config)
    answer = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=40, do_sample=False)[0]
    ours = prompt
    for _ in range(40):
        ours = torch.cat([ours, forward(ours, params, config)[:, -1:].argmax(-1)], dim=1)
    assert answer.tolist() == ours[0].tolist()


def test_rows_are_moved_as_in_the_converters():
    rows = torch.arange(2 * 8).view(2 * 8, 1)
    assert interleaved(rows, 2).flatten().tolist() == [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]
    assert half_split(interleaved(rows, 2), 2).equal(rows)


def test_weights_stay_in_the_file(tmp_path):
    write_hf(tmp_path / "out", tiny.params(), tiny.CONFIG, None)
    _, params = read_hf(tmp_path / "out")
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("/proc/self/maps is Linux's")
    mine = [
        line for line in maps.read_text().splitlines() if line.endswith(str(tmp_path / "out" / "model.safetensors"))
    ]
    ranges = [[int(end, 16) for end in line.split()[0].split("-")] for line in mine]
    inside = {name for name, t in params.items() if any(low <= t.data_ptr() < high for low, high in ranges)}
    assert set(params) - inside == {name for name in params if name.endswith(("wq.weight", "wk.weight"))}


@pytest.fixture
def folder(tmp_path):
    write_hf(tmp_path / "model", tiny.params(), tiny.CONFIG, None)
    return tmp_path / "model"


@pytest.fixture
def sharded(tmp_path):
    write_hf(tmp_path / "model", tiny.params(), tiny.CONFIG, None, max_shard_bytes=20_000)
    return tmp_path / "model"


def edit_json(path, **fields):
    data = json.loads(path.read_text())
    for key, value in fields.items():
        data.pop(key, None)
        if value is not ...:
            data[key] = value
    path.write_text(json.dumps(data))


def split(path):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(path, header, body):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def damage(path, change):
    """Rewrite a safetensors file after `change(header)` or with the raw bytes that it returns."""
    header, body = split(path)
    join(path, change(header) or header, body)


KEY = "model.layers.1.mlp.up_proj.weight"


def entry(**fields):
    return lambda header: header[KEY].update(fields)


def shifted(by):
    def change(header):
        begin, end = header[KEY]["data_offsets"]
        header[KEY]["data_offsets"] = [begin + by, end + by]

    return change


def twice(header):
    text = json.dumps(header)
    return (text[:-1] + f', "{KEY}": {json.dumps(header[KEY])}}}').encode()


@pytest.mark.parametrize(
    "change, message",
    [
        pytest.param(shifted(-4), rf"{KEY}: data begin at byte \d+, expected \d+ \(overlap", id="F041-overlap"),
        pytest.param(lambda h: h.pop(KEY) and None, "hole in the offsets", id="F041-hole"),
        pytest.param(entry(data_offsets=[8, 4]), rf"{KEY}: data_offsets \[8, 4\], expected", id="F041-backwards"),
        pytest.param(entry(data_offsets=[-8, 0]), rf"{KEY}: data_offsets \[-8, 0\], expected", id="F041-negative"),
        pytest.param(entry(data_offsets=None), f"{KEY}: data_offsets None, expected", id="F041-absent"),
        pytest.param(entry(shape=[40, 47]), rf"{KEY}: F32 of shape \[40, 47\] takes 7520 bytes", id="F042"),
        pytest.param(entry(shape=[2**40, 2**40]), f"{KEY}: F32 of shape .* its offsets hold 7680", id="F043"),
        pytest.param(entry(shape=[2**40] * 1000), f"{KEY}: shape .* at most 8 whole", id="F043-dimensions"),
        pytest.param(entry(shape=[-40, -48]), f"{KEY}: shape .* whole numbers", id="F043-negative"),
        pytest.param(entry(shape=[40.0, 48]), f"{KEY}: shape .* whole numbers", id="F043-float"),
        pytest.param(entry(dtype="F99"), f"{KEY}: unknown dtype 'F99'", id="F044"),
        pytest.param(entry(dtype=7), f"{KEY}: unknown dtype 7", id="F044-number"),
        pytest.param(lambda h: h.update({KEY: 7}), f"{KEY}: unknown dtype None", id="F044-no-object"),
        pytest.param(twice, f"key '{KEY}' stands twice", id="F045"),
        pytest.param(lambda h: b'{"a": ', "isn't valid JSON in UTF-8", id="F040-json"),
        pytest.param(lambda h: b'{"\xff": 1}', "isn't valid JSON in UTF-8", id="F040-utf8"),
        pytest.param(lambda h: b"[1]", "its header is a list, expected an object", id="F040-list"),
        pytest.param(lambda h: b"[" * 200_000, "isn't valid JSON in UTF-8", id="F040-deep"),
        pytest.param(entry(dtype="I32"), f"{KEY}: dtype I32, expected F32, BF16 or F16", id="F020"),
        pytest.param(entry(shape=[48, 40]), rf"{KEY}: shape \[48, 40\], expected \[40, 48\].*intermediate", id="F019"),
    ],
)
def test_bad_header(folder, change, message):
    path = folder / "model.safetensors"
    damage(path, change)
    with pytest.raises(FileError, match=message) as caught:
        read_hf(folder)
    assert str(path) in str(caught.value)


def test_random_damage_to_a_header_is_a_file_error_or_none(folder):
    path = folder / "model.safetensors"
    good = path.read_bytes()
    length = int.from_bytes(good[:8], "little")
    generator = random.Random(0)
    refused = 0
    for _ in range(300):
        bad = bytearray(good)
        for _ in range(generator.randint(1, 3)):
            bad[generator.randrange(8 + length)] = generator.choice(b'0123456789-.e[]{}",:\\\x00\xff' + good[:8])
        path.write_bytes(bad)
        try:
            read_hf(folder)
        except FileError as error:
            refused += 1
            assert str(folder) in str(error)
    assert refused > 250


def test_f035_empty_and_short_files(folder):
    path = folder / "model.safetensors"
    path.write_bytes(b"")
    with pytest.raises(FileError, match=f"{path}: empty file"):
        read_hf(folder)
    path.write_bytes(b"1234567")
    with pytest.raises(FileError, match=f"{path}: 7 bytes, expected at least the 8"):
        read_hf(folder)


@pytest.mark.parametrize("length", [2**63, 100_000_001])
def test_f036_absurd_header_length(folder, length):
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
    with pytest.raises(FileError, match=f"{path}: says that its header has {length} bytes, at most 100000000"):
        read_hf(folder)


def test_f037_header_longer_than_the_file(folder):
    path = folder / "model.safetensors"
    size = path.stat().st_size
    path.write_bytes(struct.pack("<Q", size - 7) + path.read_bytes()[8:])
    with pytest.raises(FileError, match=f"{path}: truncated: its header has {size - 7} bytes, the whole file {size}"):
        read_hf(folder)


@pytest.mark.parametrize(
    "extra, trouble", [pytest.param(-1, "truncated", id="F038"), pytest.param(3, "trailing bytes", id="F039")]
)
def test_wrong_length(folder, extra, trouble):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:extra] if extra < 0 else data + b"x" * extra)
    sizes = f"the header means {len(data)} bytes, the file has {len(data) + extra}"
    with pytest.raises(FileError, match=f"{path}: {trouble}: {sizes}"):
        read_hf(folder)


@pytest.mark.parametrize(
    "text, message",
    [
        pytest.param(b"<!DOCTYPE html><html>", "web page", id="F007"),
        pytest.param(b"version https://git-lfs.github.com/spec/v1\nsize 99\n", "git-lfs pointer to 99", id="F008"),
    ],
)
def test_not_a_weight_file(folder, text, message):
    (folder / "model.safetensors").write_bytes(text)
    with pytest.raises(FileError, match=message):
        read_hf(folder)


def test_f046_index(sharded):
    index = sharded / "model.safetensors.index.json"
    name = json.loads(index.read_text())["weight_map"][KEY]
    damage(sharded / name, lambda h: h.update({"strange": h.pop(KEY)}))
    with pytest.raises(FileError, match=f"{index}: {KEY} is said to be in {name}, which lacks it"):
        read_hf(sharded)
    (sharded / name).unlink()
    with pytest.raises(FileError, match=f"{index}: .* should be in {name}, which is missing"):
        read_hf(sharded)
    edit_json(index, weight_map={})
    with pytest.raises(FileError, match=f"{index}: weight_map must be an object"):
        read_hf(sharded)
    index.unlink()
    with pytest.raises(FileError, match=r"expected model.safetensors or model.safetensors.index.json, found model-0"):
        read_hf(sharded)


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/b", "..", "C:x", "..\\x", "", 7])
def test_f047_index_leads_elsewhere(sharded, name):
    index = sharded / "model.safetensors.index.json"
    edit_json(index, weight_map={KEY: name})
    with pytest.raises(FileError, match="refused, expected the name of a file beside the index") as caught:
        read_hf(sharded)
    assert f"{index}: {KEY}: {name!r}" in str(caught.value)


@pytest.mark.parametrize(
    "fields, message",
    [
        pytest.param({"model_type": "mistral"}, "not a Llama: model_type 'mistral'", id="F048"),
        pytest.param({"model_type": ...}, "not a Llama: model_type None", id="F048-absent"),
        pytest.param({"architectures": ["LlamaForSequenceClassification"]}, "not a Llama: .*Classif", id="F048-head"),
        pytest.param({"hidden_size": ...}, "hidden_size is missing", id="F075"),
        pytest.param({"hidden_size": "48"}, "hidden_size must be a whole number", id="F077"),
        pytest.param({"num_attention_heads": 0}, "num_attention_heads must be a whole number", id="F079"),
        pytest.param({"num_attention_heads": 5, "head_dim": ...}, "n_heads must divide dim, got dim=48", id="F081"),
        pytest.param({"num_key_value_heads": 4}, "n_kv_heads must divide n_heads", id="F082"),
        pytest.param({"num_hidden_layers": 10**9}, "num_hidden_layers is 10{9}, but", id="layers"),
        pytest.param({"head_dim": 15}, "head_dim must be even, since RoPE turns pairs, got 15", id="head_dim"),
        pytest.param({"hidden_act": "gelu"}, 'hidden_act is "gelu", a Llama 3 has "silu"', id="hidden_act"),
        pytest.param({"attention_bias": True}, "attention_bias is true, a Llama 3 has false", id="attention_bias"),
        pytest.param({"mlp_bias": True}, "mlp_bias is true", id="mlp_bias"),
        pytest.param({"partial_rotary_factor": 0.5}, r"partial_rotary_factor is 0\.5, a Llama 3 has 1", id="rotated"),
        pytest.param({"quantization_config": {"quant_method": "awq"}}, "quantization_config: 'awq'", id="quantised"),
        pytest.param({"rope_scaling": {"type": "linear", "factor": 2.0}}, "disagree|'linear' isn't", id="linear"),
        pytest.param({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "'yarn' isn't supported", id="yarn"),
        pytest.param({"rope_parameters": {"rope_type": "dynamic"}}, "'dynamic' isn't supported", id="dynamic"),
        pytest.param({"rope_theta": 7.0, "rope_scaling": SCALED}, "rope_parameters disagree", id="rope-disagrees"),
        pytest.param({"rope_scaling": {"rope_type": "llama3"}}, "factor is missing", id="rope-factor"),
        pytest.param(
            {"rope_scaling": SCALED | {"low_freq_factor": 4.0}, "rope_parameters": None},
            "low_freq_factor must be below high_freq_factor, got 4 and 4",
            id="rope-band",
        ),
        pytest.param({"rope_scaling": [8]}, "rope_scaling must be an object", id="rope-list"),
        pytest.param(
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rot", id="partial"
        ),
    ],
)
def test_bad_config(folder, fields, message):
    edit_json(folder / "config.json", **fields)
    with pytest.raises(FileError, match=message) as caught:
        read_hf(folder)
    assert str(folder / "config.json") in str(caught.value)
    with pytest.raises(FileError, match=message):
        read_hf_header(folder)


def test_f048_no_config(folder):
    (folder / "config.json").unlink()
    with pytest.raises(FileError, match=r"config.json: Hugging Face's config.json not found"):
        read_hf(folder)


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_parameters": ..., "rope_scaling": {"type": "llama3", **{k: SCALED[k] for k in list(SCALED)[1:]}}},
        {"rope_parameters": {"rope_theta": 500_000.0, **SCALED}, "rope_scaling": ..., "rope_theta": ...},
        {"rope_parameters": {"rope_theta": 500_000.0, **SCALED}, "rope_scaling": SCALED},
    ],
    ids=["transformers-4", "transformers-5", "both"],
)
def test_rope_spellings(folder, fields):
    edit_json(folder / "config.json", **fields)
    config, _ = read_hf(folder)
    assert (config.rope_theta, config.rope_scaling) == (500_000.0, RopeScaling(32.0, 1.0, 4.0, 64))


def test_absent_fields_mean_what_transformers_takes_for_them(folder):
    transformers = pytest.importorskip("transformers")
    absent = ("rms_norm_eps", "max_position_embeddings", "rope_theta", "rope_scaling", "rope_parameters", "head_dim")
    edit_json(folder / "config.json", **dict.fromkeys(absent, ...))
    config, _ = read_hf(folder)
    their = transformers.LlamaConfig.from_pretrained(folder)
    assert config.norm_eps == their.rms_norm_eps
    assert config.max_seq_len == their.max_position_embeddings
    assert {"rope_theta": config.rope_theta, "rope_type": "default"} == their.rope_parameters


def test_f017_missing_keys(folder):
    path = folder / "model.safetensors"
    damage(path, lambda h: h.update({f"x{i}": h.pop(k) for i, k in enumerate(list(h)[1:13])}))
    with pytest.raises(FileError, match=r"up_proj.weight.* and \d+ more are missing; expected 48 tensors, got 48"):
        read_hf(folder)


def test_f017_a_head_that_should_be_there(tmp_path):
    config = replace(tiny.CONFIG, tied=True)
    write_hf(tmp_path / "out", tiny.params(config), config, None)
    edit_json(tmp_path / "out" / "config.json", tie_word_embeddings=False)
    with pytest.raises(FileError, match=r"lm_head.weight is missing; .*; tie_word_embeddings isn't true"):
        read_hf(tmp_path / "out")


@pytest.mark.parametrize("shards", ["single", "indexed"])
def test_of_a_tied_pair_either_end_is_both_as_in_transformers(tmp_path, shards):
    config = replace(tiny.CONFIG, tied=True)
    params = tiny.params(config, std=STD)
    folder = tmp_path / "m"
    write_hf(folder, params, config, None, max_shard_bytes=10**9 if shards == "single" else 40_000)
    files = [json.loads(path.read_text()) for path in folder.glob("*.index.json")]
    name = files[0]["weight_map"]["model.embed_tokens.weight"] if files else "model.safetensors"
    header, body = split(folder / name)
    header["lm_head.weight"] = header.pop("model.embed_tokens.weight")
    join(folder / name, header, body)
    if files:
        edit = files[0]["weight_map"]
        edit["lm_head.weight"] = edit.pop("model.embed_tokens.weight")
        (folder / "model.safetensors.index.json").write_text(json.dumps(files[0]))
    found, weights = read_hf(folder)
    assert found == config and weights["output.weight"] is weights["tok_embeddings.weight"]
    assert all(weights[name].equal(tensor) for name, tensor in params.items())
    assert_same_logits(opened(folder), found, weights)
    assert read_hf_header(folder)[0].tied
    checkpoint = Checkpoint(found, weights, None, folder)
    assert weight_files(checkpoint)["output.weight"] == weight_files(checkpoint)["tok_embeddings.weight"] == name
    assert describe(folder).config == config and convert.main([str(folder), str(tmp_path / "w"), "--to", "hf"]) == 0
    assert verify.main([str(folder), "--tensors"]) == 0
    edit_json(folder / "config.json", tie_word_embeddings=False)
    with pytest.raises(FileError, match=r"embed_tokens.weight is missing; .*; tie_word_embeddings isn't true"):
        read_hf(folder)


def test_neither_end_of_a_tied_pair(tmp_path):
    config = replace(tiny.CONFIG, tied=True)
    write_hf(tmp_path / "m", tiny.params(config), config, None)
    damage(tmp_path / "m" / "model.safetensors", lambda h: h.update({"x": h.pop("model.embed_tokens.weight")}))
    with pytest.raises(FileError, match=r"model.embed_tokens.weight is missing; expected 47 tensors, got 47$"):
        read_hf(tmp_path / "m")


def test_f018_unexpected_keys(folder):
    path = folder / "model.safetensors"
    header, body = split(path)
    header["model.layers.0.self_attn.rotary_emb.inv_freq"] = {
        "dtype": "F32",
        "shape": [1],
        "data_offsets": [len(body), len(body) + 4],
    }
    join(path, header, body + b"1234")
    assert len(read_hf(folder)[1]) == 48
    header["strange"] = {"dtype": "F32", "shape": [1], "data_offsets": [len(body) + 4, len(body) + 8]}
    join(path, header, body + b"12341234")
    with pytest.raises(
        FileError, match=f"{path}: strange is not part of a Llama of this config; `allow_extra=True` ignores"
    ):
        read_hf(folder)
    assert len(read_hf(folder, allow_extra=True)[1]) == 48


def test_heads_tied_by_value_or_by_claim(tmp_path, caplog):
    params = tiny.params()
    params["output.weight"] = params["tok_embeddings.weight"].clone()
    write_hf(tmp_path / "equal", params, tiny.CONFIG, None)
    config, again = read_hf(tmp_path / "equal")
    assert config.tied and again["output.weight"] is again["tok_embeddings.weight"]
    write_hf(tmp_path / "claimed", tiny.params(), tiny.CONFIG, None)
    edit_json(tmp_path / "claimed" / "config.json", tie_word_embeddings=True)
    config, again = read_hf(tmp_path / "claimed")
    assert not config.tied and again["output.weight"].equal(tiny.params()["output.weight"])
    assert "tie_word_embeddings is true, but lm_head.weight differs and counts" in caplog.text


def test_refuses_to_write_what_the_layout_cannot_say(tmp_path):
    params = tiny.params()
    with pytest.raises(UsageError, match=r"layers.0.attention.wq.scales: quantised weights and adapters"):
        write_hf(tmp_path / "out", params | {"layers.0.attention.wq.scales": torch.ones(1)}, tiny.CONFIG, None)
    with pytest.raises(UsageError, match=r"norm.weight: dtype torch.float64, expected"):
        write_hf(tmp_path / "out", params | {"norm.weight": torch.ones(48).double()}, tiny.CONFIG, None)
    with pytest.raises(UsageError, match="RoPE divides each frequency"):
        write_hf(tmp_path / "out", params, replace(tiny.CONFIG, rope_divisors=(1.0, 2.0, 3.0, 4.0)), None)
    assert not (tmp_path / "out").exists()


def test_f142_disk_full(tmp_path):
    folder = tmp_path / "out"
    write_hf(folder, tiny.params(seed=3), tiny.CONFIG, None)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(ResourceError, match=f"{folder}: can't be written: .*File too large"):
            write_hf(folder, tiny.params(), tiny.CONFIG, None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]


def test_every_name_has_its_counterpart():
    names = [hf_name(name) for name in expected(tiny.CONFIG)]
    assert sorted(names) == sorted(theirs(num_hidden_layers=5).state_dict())
