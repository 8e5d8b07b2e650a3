"""params.json: every way it can be wrong, what it leaves open, and that it says again what was read."""

import json
import logging
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llama3_scratch.checkpoint.params_json import params_json, read_params_json
from llama3_scratch.config import OFFICIAL, Config, RopeScaling, expected, official_name
from llama3_scratch.errors import FileError, UsageError

# Python 3.13 and later point at the comma, earlier ones at what stands behind it.
TRAILING_COMMA = ":2:12: not valid JSON" if sys.version_info >= (3, 13) else ":3:1: not valid JSON"

# D=48 H=6 G=2 V=67 F=96: 2/3 · 4 · 48 = 128, and 0.75 of that; of the weights only names and shapes matter.
GOOD = {
    "dim": 48, "n_layers": 2, "n_heads": 6, "n_kv_heads": 2, "vocab_size": 67, "multiple_of": 32,
    "ffn_dim_multiplier": 0.75, "norm_eps": 1e-5, "rope_theta": 500000.0, "use_scaled_rope": True,
}  # fmt: skip
CONFIG = Config(48, 2, 6, 2, 67, 96, rope_scaling=RopeScaling(8.0), max_seq_len=131_072)
INT4 = {"scheme": "int4_weight_int8_dynamic_activation", "group_size": 32}


def shards(config=CONFIG):
    return [{name: torch.empty(shape, device="meta") for name, shape in expected(config).items()}]


def write(tmp_path, text=None, **fields):
    """A params.json with this text, or the good one with these fields changed; None takes a field out."""
    path = tmp_path / "params.json"
    data = {key: value for key, value in (GOOD | fields).items() if value is not None}
    path.write_bytes(json.dumps(data).encode() if text is None else text)
    return path


@pytest.fixture(autouse=True)
def notes(caplog):
    caplog.set_level(logging.INFO, "llama3_scratch")


def refused(path, *said):
    with pytest.raises(FileError) as caught:
        read_params_json(path, shards())
    message = str(caught.value)
    assert caught.value.exit_code == 3
    assert "\n" not in message and len(message) < 400
    for part in (str(path), *said):
        assert part in message, message


def test_good(tmp_path, caplog):
    assert read_params_json(write(tmp_path), shards()) == CONFIG
    assert [record.levelname for record in caplog.records] == ["INFO"]


@pytest.mark.parametrize(
    "text, said",
    [
        pytest.param(b"", ["empty file", "params.json"], id="F073-empty"),
        pytest.param(b" \n", [":2:1: not valid JSON"], id="F073-blank"),
        pytest.param(b'{\n  "dim": 48,\n}', [TRAILING_COMMA], id="F073-trailing-comma"),
        pytest.param(b'{"dim": 48', [":1:11: not valid JSON"], id="F073-cut"),
        pytest.param(b'{"dim": "\xff"}', ["byte 9 isn't UTF-8"], id="F073-utf8"),
        pytest.param(b"<html>", ["looks like a web page"], id="F073-html"),
        pytest.param(b"[]", ["a JSON object, got list"], id="F074"),
        pytest.param(b'"dim"', ["a JSON object, got str"], id="F074-string"),
        pytest.param(b"null", ["a JSON object, got NoneType"], id="F074-null"),
        pytest.param(b'{"dim": NaN}', ["NaN isn't a number"], id="F076-nan"),
        pytest.param(b'{"dim": -Infinity}', ["-Infinity isn't a number"], id="F076-inf"),
        pytest.param(b'{"norm_eps": 1e400}', ["1e400 isn't a number"], id="F076-1e400"),
        pytest.param(b'{"dim": %s}' % (b"9" * 5000), ["not valid JSON", "digits"], id="F076-digits"),
        pytest.param(b"[" * 1_000_000, ["JSON nested too deeply"], id="F089"),
        pytest.param(b'{"dim":' * 1_000_000, ["JSON nested too deeply"], id="F089-objects"),
    ],
)
def test_bad_file(tmp_path, text, said):
    refused(write(tmp_path, text), *said)


def test_f072_missing(tmp_path):
    refused(tmp_path / "params.json", "params.json, the model's sizes not found")


def test_f073_byte_order_mark_is_accepted(tmp_path):
    assert read_params_json(write(tmp_path, b"\xef\xbb\xbf" + json.dumps(GOOD).encode()), shards()) == CONFIG


@pytest.mark.parametrize(
    "fields, said",
    [
        *(
            pytest.param({key: None}, [f"{key} is missing, expected a whole number"], id=f"F075-{key}")
            for key in ("dim", "n_layers", "n_heads")
        ),
        pytest.param({"dim": "4096"}, ["dim must be a whole number from 1 to 4294967295, got '4096'"], id="F077-text"),
        pytest.param({"n_layers": True}, ["n_layers must be a whole number", "got True"], id="F077-true"),
        pytest.param({"n_heads": 6.0}, ["n_heads must be a whole number", "got 6.0"], id="F077-float"),
        pytest.param({"norm_eps": "1e-5"}, ["norm_eps must be a positive number, got '1e-5'"], id="F077-real"),
        pytest.param({"rope_theta": True}, ["rope_theta must be a positive number, got True"], id="F077-real-true"),
        pytest.param({"use_scaled_rope": "yes"}, ["use_scaled_rope must be true or false, got 'yes'"], id="F077-bool"),
        pytest.param({"n_layers": 0}, ["n_layers must be a whole number", "got 0"], id="F079-zero"),
        pytest.param({"n_kv_heads": -2}, ["n_kv_heads must be a whole number", "got -2"], id="F079-negative"),
        pytest.param({"vocab_size": -2}, ["vocab_size must be a whole number", "got -2"], id="F079-vocab"),
        pytest.param({"multiple_of": 0}, ["multiple_of must be a whole number", "got 0"], id="F079-multiple"),
        pytest.param({"norm_eps": 0}, ["norm_eps must be a positive number, got 0"], id="F079-eps"),
        pytest.param({"rope_theta": -1.0}, ["rope_theta must be a positive number, got -1.0"], id="F079-theta"),
        pytest.param({"norm_eps": 10**400}, ["norm_eps must be a positive number", "got 1000000"], id="F076-huge"),
        pytest.param({"dim": 10**400}, ["dim must be a whole number", "got 1000000"], id="F079-huge"),
        pytest.param({"n_layers": 10**9}, ["n_layers is 1000000000, but the weights have only 21"], id="F079-layers"),
        pytest.param({"ffn_dim_multiplier": 1e308}, ["ffn_dim_multiplier 1e+308 makes no hidden"], id="F079-ffn"),
        pytest.param({"n_heads": 7}, ["n_heads must divide dim, got dim=48, n_heads=7"], id="F081"),
        pytest.param({"n_heads": 16}, ["dim / n_heads must be even", "48 / 16 = 3"], id="F081-odd"),
        pytest.param({"n_kv_heads": 4}, ["n_kv_heads must divide n_heads, got n_heads=6, n_kv_heads=4"], id="F082"),
        pytest.param({"n_kv_heads": 12}, ["n_kv_heads must divide n_heads"], id="F082-more"),
        pytest.param(
            {"multiple_of": 256},
            ["multiple_of 256", "multiplier 0.75 mean a hidden size of 256", "w1.weight has 96 rows"],
            id="F083",
        ),
        pytest.param(
            {"ffn_dim_multiplier": None}, ["multiplier None mean a hidden size of 128", "has 96 rows"], id="F083-absent"
        ),
        *(
            pytest.param(fields, ["this is a vision checkpoint, and this is a text-only program"], id=f"F085-{key}")
            for key, fields in {
                "chunk": {"vision_chunk_size": 560, "vision_max_num_chunks": 4},
                "layers": {"vision_num_cross_attention_layers": 8},
                "model": {"vision_model": {"cross_attention_adapter": {"num_layers": 8}}},
            }.items()
        ),
        pytest.param(
            {"quantization_args": {"scheme": "int8_weight"}},
            ["only the scheme int4_weight_int8_dynamic_activation is read, got 'int8_weight'", "bf16 release"],
            id="F086-scheme",
        ),
        pytest.param({"quantization_args": "fp8"}, ["got 'fp8'", "bf16 release"], id="F086-text"),
        pytest.param(
            {"quantization_args": "int4_weight_int8_dynamic_activation"}, ["is SpinQuant"], id="F086-text-of-the-scheme"
        ),
        *(
            pytest.param({"quantization_args": args, "lora_args": lora}, ["is SpinQuant", "QLoRA or the bf16"], id=key)
            for key, args, lora in (
                ("F086-spinquant", INT4 | {"spinquant": True}, None),
                ("F086-spinquant-unsaid", {"group_size": 256}, None),
                ("F086-spinquant-lora", INT4 | {"spinquant": True}, {"rank": 16, "scale": 2.0}),
            )
        ),
        pytest.param({"vocab_size": 32000, "rope_theta": None}, ["Llama 1 or 2, which needs SentencePiece"], id="F088"),
    ],
)
def test_bad_field(tmp_path, fields, said):
    refused(write(tmp_path, **fields), *said)


def test_f078_duplicate_key(tmp_path, caplog):
    text = json.dumps(GOOD).replace('"dim": 48', '"dim": 99, "dim": 48').encode()
    path = write(tmp_path, text)
    assert read_params_json(path, shards()) == CONFIG
    assert f"{path}: key 'dim' stands twice, the last one counts" in caplog.text


@pytest.mark.parametrize("stated", [-1, None])
def test_f080_vocabulary_from_the_embedding(tmp_path, caplog, stated):
    path = write(tmp_path, vocab_size=stated)
    assert read_params_json(path, shards()) == CONFIG
    assert f"{path}: vocab_size is {stated}, taken from tok_embeddings.weight: 67" in caplog.text
    with pytest.raises(FileError, match=f"vocab_size is {stated}, and there is no tok_embeddings.weight"):
        read_params_json(path)


def test_f083_hidden_size_from_w1(tmp_path, caplog):
    path = write(tmp_path, multiple_of=None, ffn_dim_multiplier=None)
    config = replace(CONFIG, hidden_dim=71)
    assert read_params_json(path, shards(config)) == config
    assert f"{path}: no multiple_of, the hidden size 71 is taken from feed_forward.w1" in caplog.text
    assert read_params_json(path).hidden_dim == 256  # Meta's default where no weights say otherwise


def test_f084_unknown_keys(tmp_path, caplog):
    path = write(tmp_path, rope_freq_base=1, hidden_dim=6400)
    assert read_params_json(path, shards()) == CONFIG
    assert f"{path}: unknown keys ignored: hidden_dim, rope_freq_base" in caplog.text


def test_f085_metas_defaults_are_no_vision_model(tmp_path):
    path = write(tmp_path, vision_chunk_size=-1, vision_num_cross_attention_layers=-1, vision_max_num_chunks=4)
    assert read_params_json(path, shards()) == CONFIG


def test_f086_qlora_is_read(tmp_path):
    for args in (INT4, {"group_size": 256}, INT4 | {"spinquant": False}):
        path = write(tmp_path, quantization_args=args, lora_args={"rank": 16, "scale": 2.0})
        assert read_params_json(path, shards()) == replace(CONFIG, max_seq_len=8192)


@pytest.mark.parametrize(
    "name, changes, override, factor, why",
    [
        ("llama3.2-1b", {}, None, 32, "the shape is llama3.2-1b's, trained with 32 although Meta's code says 8"),
        ("llama3.2-3b", {}, None, 32, "the shape is llama3.2-3b's"),
        ("llama3.1-8b", {}, None, 8, "Llama 3.1's own; the shape is neither"),
        ("llama3.1-405b", {}, None, 8, "Llama 3.1's own"),
        *(
            ("llama3.2-1b", {field: value}, None, 8, "Llama 3.1's own")
            for field, value in {
                "dim": 1024, "n_layers": 15, "n_heads": 16, "n_kv_heads": 4, "multiple_of": 1024 * 16,
            }.items()
        ),
        ("llama3.2-1b", {"vocab_size": 99}, None, 32, "the shape is llama3.2-1b's"),
        ("llama3.2-1b", {"rope_scaling_factor": 16}, None, 16, "params.json's rope_scaling_factor"),
        ("llama3.2-1b", {}, 8.0, 8, "`rope_scale_factor`"),
        ("llama3.1-8b", {"rope_scaling_factor": 16}, 4.5, 4.5, "`rope_scale_factor`"),
    ],
)  # fmt: skip
def test_f087_scaling_factor(tmp_path, caplog, name, changes, override, factor, why):
    text = json.dumps(params_json(OFFICIAL[name], {}) | changes).encode()
    config = read_params_json(write(tmp_path, text), rope_scale_factor=override)
    assert config.rope_scaling == RopeScaling(factor)
    assert f"RoPE scaling factor {factor:g}: {why}" in caplog.text


def test_f087_nothing_to_scale(tmp_path, caplog):
    path = write(tmp_path, use_scaled_rope=None)
    assert read_params_json(path, shards()) == replace(CONFIG, rope_scaling=None, max_seq_len=8192)
    assert not caplog.records
    with pytest.raises(UsageError, match=r"`rope_scale_factor`: .* has no use_scaled_rope"):
        read_params_json(path, rope_scale_factor=8.0)
    assert read_params_json(write(tmp_path, use_scaled_rope=False, rope_scaling_factor=16)).rope_scaling is None
    assert "rope_scaling_factor is ignored, use_scaled_rope isn't true" in caplog.text


def test_f088_llama2(tmp_path):
    llama2 = Config(48, 2, 6, 6, 32000, 96)
    path = write(tmp_path, n_kv_heads=None, vocab_size=-1, rope_theta=None, use_scaled_rope=None)
    with pytest.raises(FileError, match="vocab_size 32000 without rope_theta is Llama 1 or 2"):
        read_params_json(path, shards(llama2))


# What is written


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_sizes_are_written_with_metas_numbers(name, tmp_path):
    sku_list = pytest.importorskip("llama_models.sku_list", reason="compares with Meta's own table")
    theirs = [
        model.arch_args
        for model in sku_list.all_registered_models()
        if official_name(model.huggingface_repo) == name and model.variant != "bf16-mp16"  # which repeats its KV heads
    ]
    assert len(theirs) == (1 if name == "llama3.3-70b" else 2)  # base and instruct
    written = params_json(OFFICIAL[name], {})
    assert all({"use_scaled_rope": False} | written == args for args in theirs)
    text = json.dumps(written).encode()
    assert read_params_json(write(tmp_path, text)) == replace(OFFICIAL[name], tied=False)


@settings(max_examples=200, deadline=None)
@given(
    half=st.integers(1, 64), groups=st.integers(1, 8), queries=st.integers(1, 4), hidden=st.integers(1, 70_000),
    layers=st.integers(1, 200), vocab=st.integers(1, 300_000), context=st.integers(1, 10**6),
    factor=st.none() | st.floats(0.01, 1000), eps=st.floats(1e-8, 1), theta=st.floats(1, 1e9),
)  # fmt: skip
def test_any_config_comes_back(
    tmp_path_factory, half, groups, queries, hidden, layers, vocab, context, factor, eps, theta
):
    heads = groups * queries
    config = Config(
        2 * half * heads, layers, heads, groups, vocab, hidden, eps, theta, factor and RopeScaling(factor),
        max_seq_len=context,
    )  # fmt: skip
    path = tmp_path_factory.getbasetemp() / "params.json"
    path.write_text(json.dumps(params_json(config, {})))
    assert read_params_json(path) == config


def test_what_the_file_cannot_say_is_refused():
    with pytest.raises(UsageError, match=r"rope_freqs\) have no place in params.json"):
        params_json(replace(CONFIG, rope_divisors=(1.0, 2.0, 3.0, 4.0)), {})
    with pytest.raises(UsageError, match="only the factor of a RoPE scaling has a place"):
        params_json(replace(CONFIG, rope_scaling=RopeScaling(8.0, high_freq_factor=2.0)), {})
