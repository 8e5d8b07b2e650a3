"""convert: every layout from every other, bit for bit where the dtype allows; a failure keeps the earlier output."""

import resource
from dataclasses import replace

import pytest
import torch

from llama3_scratch import convert
from llama3_scratch.checkpoint.hf_out import write_hf
from llama3_scratch.checkpoint.load import load
from llama3_scratch.checkpoint.meta import write_meta
from llama3_scratch.config import Config, RopeScaling
from llama3_scratch.init import init
from llama3_scratch.model import forward
from llama3_scratch.params.quantize import FORMS, dequantize, quantize
from llama3_scratch.text.tokenizer import PATTERN, Tokenizer
from tests import tiny

# 8 shards divide H, G, F and V; rows are whole blocks of 32 for Q4_0; with K = 8 one of the RoPE pairs turns slowly
# enough to show the whole scaling factor, of which GGUF only says what it does to each pair.
CONFIG = Config(128, 2, 16, 8, 304, 96, rope_scaling=RopeScaling(8.0), max_seq_len=131_072)

# The same in whole tiles and groups of 64.
SMALL = replace(CONFIG, hidden_dim=192)


def tokenizer():
    ranks = {bytes([byte]): byte for byte in range(256)}
    for word in (b"th", b"the", b" t", b"in", b" a"):
        ranks[word] = len(ranks)
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    special = {name: 290 + index for index, name in enumerate(names)}
    return Tokenizer(
        ranks,
        pattern=PATTERN,
        special_tokens=special,
        bos_id=290,
        eos_id=291,
        stop_tokens=[291, 294],
        chat_format="llama3",
        add_bos=True,
    )


def source(folder, config=CONFIG, dtype=torch.float32):
    write_meta(folder, init(config, seed=0, std=0.15, norm_std=0.2, dtype=dtype), config, tokenizer())
    return folder


def bits(params):
    """The weights as integers, so that -0.0 and 0.0 differ."""
    return {name: t.float().contiguous().view(torch.int32) for name, t in params.items()}


def assert_same_model(found, wanted):
    assert found.config == wanted.config
    assert list(found.params) == list(wanted.params)
    theirs = bits(wanted.params)
    for name, values in bits(found.params).items():
        assert values.equal(theirs[name]), name
    tokens_BT = tiny.tokens(1, 40, wanted.config)
    assert forward(tokens_BT, found.params, found.config).equal(forward(tokens_BT, wanted.params, wanted.config))
    for field in ("ranks", "special_tokens", "bos_id", "eos_id", "chat_format", "add_bos", "pattern"):
        assert getattr(found.tokenizer, field) == getattr(wanted.tokenizer, field), field
    assert sorted(found.tokenizer.stop_tokens) == sorted(wanted.tokenizer.stop_tokens)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tied", [False, True])
def test_lossless_layouts(tmp_path, dtype, tied, capsys):
    pytest.importorskip("gguf")
    first = source(tmp_path / "meta", replace(CONFIG, tied=tied), dtype)
    wanted = load(first)
    assert wanted.params["norm.weight"].dtype == dtype and wanted.config.tied == tied
    write_hf(tmp_path / "hf-indexed", wanted.params, wanted.config, wanted.tokenizer, max_shard_bytes=50_000)
    assert (tmp_path / "hf-indexed" / "model.safetensors.index.json").exists()
    chain = [
        (first, "meta-2", ["--to", "meta", "--shards", "2"]),
        ("meta-2", "hf", ["--to", "hf"]),
        ("hf", "model.gguf", ["--to", "gguf"]),
        ("model.gguf", "meta-8", ["--to", "meta", "--shards", "8"]),
        ("hf-indexed", "meta-4", ["--to", "meta", "--shards", "4"]),
        ("meta-8", "hf-again", ["--to", "hf"]),
    ]
    for start, end, options in chain:
        assert convert.main([str(tmp_path / start), str(tmp_path / end), *options]) == 0, capsys.readouterr().err
        assert_same_model(load(tmp_path / end), wanted)
        assert "rounds" not in capsys.readouterr().err
    assert len(list((tmp_path / "meta-8").glob("consolidated.*.pth"))) == 8


def test_report_is_one_line_with_the_bytes(tmp_path, capsys):
    folder = tmp_path / "out"
    assert convert.main([str(source(tmp_path / "source")), str(folder), "--to", "hf", "--quiet"]) == 0
    n_bytes = sum(path.stat().st_size for path in folder.iterdir())
    captured = capsys.readouterr()
    assert captured.out == f"{folder}: Hugging Face's layout, float32, {n_bytes:,} bytes\n"
    assert captured.err == ""


def test_transformers_serves_it(tmp_path):
    transformers = pytest.importorskip("transformers")
    ours = load(source(tmp_path / "source"))
    assert convert.main([str(tmp_path / "source"), str(tmp_path / "out"), "--to", "hf"]) == 0
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert model.generation_config.eos_token_id == [291, 294]
    prompt = reader("the thin 123 cats", return_tensors="pt")
    assert prompt.input_ids[0].tolist() == ours.tokenizer.encode("the thin 123 cats", bos=True, eos=False)
    answer = model.generate(**prompt, max_new_tokens=24, do_sample=False)[0, prompt.input_ids.shape[1] :].tolist()
    ids = prompt.input_ids
    while ids.shape[1] - prompt.input_ids.shape[1] < len(answer):
        ids = torch.cat([ids, forward(ids, ours.params, ours.config)[:, -1:].argmax(-1)], dim=1)
    assert answer == ids[0, prompt.input_ids.shape[1] :].tolist()
    text = [id for id in answer if id in ours.tokenizer.ranks.values()]
    assert reader.decode(text) == ours.tokenizer.decode(text)


@pytest.mark.parametrize(
    "stored, dtype, rounds",
    [
        ("float32", "bfloat16", True),
        ("float32", "float16", True),
        ("bfloat16", "float16", True),
        ("float16", "bfloat16", True),
        ("bfloat16", "float32", False),
        ("float16", "float32", False),
        ("float32", "float32", False),
    ],
)
def test_dtype(tmp_path, capsys, stored, dtype, rounds):
    ours = load(source(tmp_path / "source", dtype=getattr(torch, stored)))
    assert convert.main([str(tmp_path / "source"), str(tmp_path / "out"), "--to", "hf", "--dtype", dtype]) == 0
    assert (f"--dtype {dtype} rounds " in capsys.readouterr().err) == rounds
    params = load(tmp_path / "out").params
    for name, tensor in ours.params.items():
        assert params[name].equal(tensor.to(getattr(torch, dtype))), name


def test_float16_that_would_overflow_is_refused(tmp_path, capsys):
    params = init(CONFIG, seed=0)
    params["layers.1.attention.wv.weight"][3, 4] = 7e4
    write_meta(tmp_path / "source", params, CONFIG, tokenizer())
    assert convert.main([str(tmp_path / "source"), str(tmp_path / "out"), "--to", "hf", "--dtype", "float16"]) == 2
    assert "layers.1.attention.wv.weight reaches 70000, float16 ends at 65504" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_tied_head_is_counted_once(tmp_path, capsys):
    ours = load(source(tmp_path / "source", replace(CONFIG, tied=True)))
    assert convert.main([str(tmp_path / "source"), str(tmp_path / "out"), "--to", "hf", "--dtype", "bfloat16"]) == 0
    assert f" of {ours.config.n_parameters:,} weights" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_0"])
def test_lossy_gguf_is_said(tmp_path, capsys, kind):
    pytest.importorskip("gguf")
    ours = load(source(tmp_path / "source"))
    arguments = [str(tmp_path / "source"), str(tmp_path / "out.gguf"), "--to", "gguf", "--type", kind]
    assert convert.main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.out.endswith(f"out.gguf: GGUF, {kind}, {(tmp_path / 'out.gguf').stat().st_size:,} bytes\n")
    assert f"--type {kind} rounds " in captured.err
    params = load(tmp_path / "out.gguf").params
    for name, tensor in ours.params.items():
        bound = {"F16": 1e-3, "Q8_0": 0.01, "Q4_0": 0.2}[kind] * tensor.abs().max()
        assert (params[name].float() - tensor).abs().max() <= bound, name


@pytest.mark.parametrize("form", FORMS)
def test_quantize_to_metas_layout(tmp_path, capsys, form):
    ours = load(source(tmp_path / "source", SMALL, torch.bfloat16))
    arguments = [str(tmp_path / "source"), str(tmp_path / "out"), "--to", "meta", "--quantize", form]
    assert convert.main(arguments) == 0
    n_bytes = sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert capsys.readouterr().out.endswith(f"out: Meta's layout, {form}, {n_bytes:,} bytes\n")
    found = load(tmp_path / "out")
    wanted = quantize(ours.params, form)
    assert found.config == ours.config and found.params.keys() == wanted.keys()
    assert all(found.params[name].equal(tensor) for name, tensor in wanted.items())
    assert convert.main([str(tmp_path / "out"), str(tmp_path / "again"), "--to", "meta", "--quantize", form]) == 2
    assert "this model's weights are quantised already; take its float weights" in capsys.readouterr().err

    assert convert.main([str(tmp_path / "out"), str(tmp_path / "hf"), "--to", "hf"]) == 2
    assert "Hugging Face's layout has no place for quantised weights; give --dtype" in capsys.readouterr().err
    assert convert.main([str(tmp_path / "out"), str(tmp_path / "hf"), "--to", "hf", "--dtype", "float32"]) == 0
    floats = load(tmp_path / "hf").params
    assert all(floats[name].equal(tensor) for name, tensor in dequantize(wanted, torch.float32).items())


@pytest.mark.parametrize(("form", "kind"), [("int8", "Q8_0"), ("int4", "Q4_1"), ("int4-sym", "Q4_0")])
def test_quantize_to_gguf_and_blocks_kept_as_stored(tmp_path, capsys, form, kind):
    pytest.importorskip("gguf")
    ours = load(source(tmp_path / "source", SMALL))
    path = tmp_path / "model.gguf"
    assert convert.main([str(tmp_path / "source"), str(path), "--to", "gguf", "--quantize", form]) == 0
    assert f": GGUF, {kind}, " in capsys.readouterr().out
    assert convert.main([str(path), str(tmp_path / "meta"), "--to", "meta", "--blocks", "stored"]) == 0
    assert f": Meta's layout, {form}, " in capsys.readouterr().out
    found, wanted = load(tmp_path / "meta").params, quantize(ours.params, form)
    assert found.keys() == wanted.keys() == load(path, blocks="stored").params.keys()
    assert all(found[name].equal(tensor) for name, tensor in wanted.items())
    assert convert.main([str(tmp_path / "meta"), str(tmp_path / "again.gguf"), "--to", "gguf"]) == 0
    again = load(tmp_path / "again.gguf", blocks="stored").params
    assert all(again[name].equal(tensor) for name, tensor in wanted.items())
    assert convert.main([str(tmp_path / "meta"), str(tmp_path / "f.gguf"), "--to", "gguf", "--type", "F32"]) == 0
    floats = load(tmp_path / "f.gguf").params
    assert all(floats[name].equal(tensor) for name, tensor in dequantize(wanted, torch.float32).items())


@pytest.mark.parametrize(
    "options, message",
    [
        (["--to", "hf", "--quantize", "int8"], "--quantize is for --to meta and gguf, got --to hf"),
        (["--to", "gguf", "--quantize", "nf4"], "--quantize nf4: GGUF has no such blocks; take --to meta"),
        (["--to", "gguf", "--quantize", "int8-row"], "--quantize int8-row: GGUF has no such blocks; take --to meta"),
        (["--to", "meta", "--quantize", "int8", "--dtype", "float16"], "--quantize int8 and --dtype both say"),
        (["--to", "gguf", "--quantize", "int8", "--type", "F16"], "--quantize int8 and --type both say"),
        (["--to", "meta", "--quantize", "int8", "--shards", "2"], "go into one shard"),
        (["--to", "hf", "--shards", "2"], "--shards is for --to meta, got --to hf"),
        (["--to", "hf", "--type", "F16"], "--type is for --to gguf, got --to hf"),
        (["--to", "gguf", "--dtype", "float16"], "--dtype is for --to meta and hf, got --to gguf"),
        (["--to", "meta", "--shards", "3"], "--shards 3 doesn't divide n_heads 16"),
        (["--to", "meta", "--shards", "0"], "expected a whole number at least 1, got '0'"),
        (["--to", "pth"], "invalid choice: 'pth'"),
        ([], "the following arguments are required: --to"),
        (["--to", "hf", "--shard", "2"], "unknown argument --shard; did you mean --shards?"),
    ],
)
def test_usage(tmp_path, capsys, options, message):
    assert convert.main([str(source(tmp_path / "source")), str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_nothing_is_replaced_unasked(tmp_path, capsys):
    folder = source(tmp_path / "source")
    out = tmp_path / "out"
    arguments = [str(folder), str(out), "--to", "hf"]
    out.mkdir()
    assert convert.main(arguments) == 0  # an empty folder holds nothing to lose
    written = out.joinpath("config.json").stat().st_ino
    assert convert.main(arguments) == 2
    assert f"{out}: already there; --force replaces it" in capsys.readouterr().err
    assert convert.main([*arguments, "--force"]) == 0
    assert out.joinpath("config.json").stat().st_ino != written
    (out / "thesis.tex").write_text("x")
    assert convert.main([*arguments, "--force"]) == 2
    assert f"{out}: holds thesis.tex, which no checkpoint has, and isn't replaced" in capsys.readouterr().err
    assert (out / "thesis.tex").exists()
    assert convert.main([str(folder), str(out), "--to", "gguf", "--force"]) == 2
    assert f"{out}: expected a file to write, found a folder" in capsys.readouterr().err
    assert convert.main([str(folder), str(out / "config.json"), "--to", "hf", "--force"]) == 2
    assert "expected a folder to write, found a file" in capsys.readouterr().err


def test_source_is_never_replaced(tmp_path, capsys):
    folder = source(tmp_path / "source")
    before = sorted(path.name for path in folder.iterdir())
    assert convert.main([str(folder), str(folder), "--to", "hf", "--force"]) == 2
    assert "writing there would replace the model that is read" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_missing_source_is_exit_3(tmp_path, capsys):
    assert convert.main([str(tmp_path / "nowhere"), str(tmp_path / "out"), "--to", "hf"]) == 3
    assert f"{tmp_path / 'nowhere'}" in capsys.readouterr().err


@pytest.mark.parametrize("layout", [pytest.param(layout, id=f"F142-{layout}") for layout in ("meta", "hf", "gguf")])
def test_disk_full(tmp_path, capsys, layout):
    if layout == "gguf":
        pytest.importorskip("gguf")
    folder, out = source(tmp_path / "source"), tmp_path / ("out.gguf" if layout == "gguf" else "out")
    arguments = [str(folder), str(out), "--to", layout, "--quiet"]
    assert convert.main(arguments) == 0
    capsys.readouterr()
    files = sorted(out.iterdir()) if out.is_dir() else [out]
    before = [path.read_bytes() for path in files]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        code = convert.main([*arguments, "--force"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    captured = capsys.readouterr()
    assert (code, captured.out) == (5, "")
    assert captured.err.startswith(f"error: {out}") and captured.err.count("\n") == 1
    assert [path.read_bytes() for path in files] == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["source", out.name])


def test_stories260k(tmp_path, capsys):
    story = tiny.data("stories260k/stories260K.bin")
    assert convert.main([str(story), str(tmp_path / "out"), "--to", "hf"]) == 0
    assert "has no tokenizer, so none is written" in capsys.readouterr().err
