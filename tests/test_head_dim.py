"""Heads whose widths don't add up to the model's: computed as transformers and llama.cpp do, read and written."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from llama3_scratch import convert, describe, model, parity
from llama3_scratch.cache import Cache, Slots
from llama3_scratch.caches.quantized import Bf16Slots, Int4Slots, Int8Slots
from llama3_scratch.caches.sliding import SlidingCache
from llama3_scratch.checkpoint.gguf import read_gguf
from llama3_scratch.checkpoint.gguf_out import write_gguf
from llama3_scratch.checkpoint.hf import read_hf
from llama3_scratch.checkpoint.hf_out import write_hf
from llama3_scratch.checkpoint.load import load
from llama3_scratch.checkpoint.meta import read_meta, write_meta
from llama3_scratch.checkpoint.peft import read_peft
from llama3_scratch.config import Config, expected
from llama3_scratch.errors import FileError
from llama3_scratch.inference.fast_forward import FastForward
from llama3_scratch.model import attend, block, forward, fused_block
from llama3_scratch.native import kernels
from llama3_scratch.native.decode import NativeDecode, fast_decode
from llama3_scratch.params.lora import stack
from llama3_scratch.params.quantize import FORMS, quantize
from llama3_scratch.stored import Params, Tiles, stored
from llama3_scratch.system.memory import memory_plan
from llama3_scratch.trace import watch
from tests import tiny
from tests.batches import ragged_rows
from tests.checkpoint.llama_cpp import greedy, llama_cpp
from tests.compare import DiffersError, check
from tests.forms import plain
from tests.hf_reference import doubled, hf_model, their_model, wide

# D=48 L=3 H=6 G=2 (R=3) V=67 F=40, and K=22 (J=11): H·K=132, G·K=44
CONFIG = replace(tiny.CONFIG, n_layers=3, head_dim=22)
# For forms in tiles and groups of 64: D=128 H=6 G=2 V=80 F=192, and K=32: H·K=192, G·K=64
TILED = Config(128, 2, 6, 2, 80, 192, rope_scaling=tiny.CONFIG.rope_scaling, max_seq_len=4096, head_dim=32)
F64 = 1e-9
T = 60


@pytest.fixture(scope="module")
def wanted():
    with wide(), torch.no_grad():
        return hf_model(tiny.params(CONFIG, dtype=torch.float64), CONFIG)(tiny.tokens(1, T)).logits


def ours(config: Config = CONFIG, params: Params | None = None, **how) -> torch.Tensor:
    params = tiny.params(CONFIG, dtype=torch.float64) if params is None else params
    return forward(tiny.tokens(1, T), params, config, block=block, **how)


def test_shapes_and_sizes():
    shapes = expected(CONFIG)
    assert shapes["layers.2.attention.wq.weight"] == (132, 48) and shapes["layers.2.attention.wo.weight"] == (48, 132)
    assert shapes["layers.2.attention.wk.weight"] == shapes["layers.2.attention.wv.weight"] == (44, 48)
    assert CONFIG.kv_bytes(10) == 2 * 3 * 44 * 10 * 2
    wider = memory_plan(replace(CONFIG, head_dim=44), context=100)
    assert (
        wider.cache == 2 * memory_plan(CONFIG, context=100).cache
        and wider.activations > memory_plan(CONFIG, context=100).activations
    )


@pytest.mark.parametrize("layer", [block, fused_block])
def test_logits_are_transformers(wanted, layer):
    params = tiny.params(CONFIG, dtype=torch.float64)
    check(forward(tiny.tokens(1, T), params, CONFIG, block=layer), wanted, F64)


def over_the_usual_width(q_BTGRK, *rest):
    return attend(q_BTGRK * math.sqrt(q_BTGRK.shape[-1] / (CONFIG.dim / CONFIG.n_heads)), *rest)


def usual_frequencies(config, dtype, device="cpu"):
    exponents_J = torch.arange(config.head_dim // 2).to(dtype) * 2 / (config.dim / config.n_heads)
    return 1 / config.rope_theta**exponents_J


@pytest.mark.parametrize(
    "mistake", ["scores over dim / n_heads", "RoPE of dim / n_heads", "heads cut at dim / n_heads"]
)
def test_a_mistake_is_seen(wanted, monkeypatch, mistake):
    params = tiny.params(CONFIG, dtype=torch.float64)
    if mistake.startswith("scores"):
        monkeypatch.setattr(model, "attend", over_the_usual_width)
        made = forward(
            tiny.tokens(1, T), params, CONFIG, block=lambda *args, **kw: block(*args, attend=over_the_usual_width, **kw)
        )
    elif mistake.startswith("RoPE"):
        monkeypatch.setattr(model, "rope_frequencies", usual_frequencies)
        made = ours()
    else:  # q's rows in heads of 8 where they are of 22: the first three values of what should be one head
        order = torch.arange(132).view(6, 22).roll(1, 0).flatten()
        made = ours(params=params | {"layers.0.attention.wq.weight": params["layers.0.attention.wq.weight"][order]})
    with pytest.raises(DiffersError):
        check(made, wanted, 1000 * F64)


CACHES = {
    "f32": lambda: Cache(T),
    "paged": lambda: ragged_rows(CONFIG, T, 1, dtype=torch.float64),
    "sliding": lambda: SlidingCache(T + 8, CONFIG, window=T),
}


@pytest.mark.parametrize("cache", CACHES)
def test_cached_is_full(wanted, cache):
    kept, params = CACHES[cache](), tiny.params(CONFIG, dtype=torch.float64)
    tokens_BT = tiny.tokens(1, T)
    pieces = [
        forward(piece, params, CONFIG, cache=kept) for piece in (tokens_BT[:, :40], *tokens_BT[:, 40:].split(1, 1))
    ]
    check(torch.cat(pieces, 1), wanted, F64)


@pytest.mark.skipif(kernels.library() is None, reason="the kernels weren't built: no C compiler")
@pytest.mark.parametrize("form", [None, *FORMS])
@pytest.mark.parametrize("kept", [Slots, Bf16Slots, Int8Slots, Int4Slots])
@pytest.mark.parametrize("config", [CONFIG, TILED], ids=["odd", "tiled"])
def test_the_kernels_do_as_torch_does(form, kept, config):
    params = tiny.params(config)
    matrices = [name for name, tensor in params.items() if tensor.ndim == 2]
    params = params if form is None else quantize(params, form)
    assert isinstance(fast_decode(params, config), NativeDecode) == (form != "nf4" or config is CONFIG)
    fast, tokens_BT = FastForward(params, config, dtype=torch.float32), tiny.tokens(2, 24, config)

    def run():
        cache = Cache(32, keys=kept, values=kept)
        with torch.no_grad():
            return torch.cat(
                [fast.logits(piece, cache) for piece in (tokens_BT[:, :20], *tokens_BT[:, 20:].split(1, 1))], 1
            )

    native = run()
    kernels.choose(kernels.TORCH)
    try:
        torchs = run()
    finally:
        kernels.choose()
    # Tiles take their inputs in 16 bits; a number on the border between two integers of a cache falls either way.
    exact = kept is Slots and not any(
        isinstance(stored(params, name.removesuffix(".weight")), Tiles) for name in matrices
    )
    check(native, torchs, 2e-5 if exact else 1e-3 if kept is Slots else 0.1)
    check(forward(tokens_BT, plain(params), config), forward(tokens_BT, params, config, dtype=torch.float64), 1e-9)


def test_the_tracer_holds_every_shape_against_its_name():
    params = tiny.params(CONFIG)
    with watch() as steps:
        forward(tiny.tokens(1, 7), params, CONFIG, block=block)
    shapes = {step.name: step.shape for step in steps}
    assert shapes["q_BTHK"] == (1, 7, 6, 22) and shapes["out_BTGRK"] == (1, 7, 2, 3, 22)


# Files


def same(found: Params, params: Params) -> bool:
    return found.keys() == params.keys() and all(found[name].equal(tensor) for name, tensor in params.items())


@pytest.mark.parametrize("tied", [False, True])
def test_transformers_own_folder(tmp_path, tied):
    """As its save_pretrained writes it, read here; and ours, read there."""
    transformers = pytest.importorskip("transformers", reason="the parity extra: pip install -e '.[parity]'")
    config = replace(CONFIG, tied=tied)
    params = tiny.params(config)
    theirs = hf_model(params, config)
    theirs.save_pretrained(tmp_path / "theirs")
    found, weights = read_hf(tmp_path / "theirs")
    assert found == replace(config, max_seq_len=131_072) and same(weights, params)
    write_hf(tmp_path / "ours", params, config, None)
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["head_dim"] == 22
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "ours").state_dict()
    assert all(loaded[name].equal(tensor) for name, tensor in theirs.state_dict().items())


@pytest.mark.parametrize("shards", [1, 2])
def test_metas_folder_says_it_in_a_field_of_ours(tmp_path, shards, caplog):
    config = replace(CONFIG, vocab_size=68)
    params = tiny.params(config)
    write_meta(tmp_path / "m", params, config, None, shards=shards)
    stated = json.loads((tmp_path / "m" / "params.json").read_text())
    assert stated["head_dim"] == 22
    found, weights = read_meta(tmp_path / "m")
    assert found == config and same(weights, params)
    assert not caplog.records
    write_meta(tmp_path / "usual", tiny.params(), tiny.CONFIG, None)
    assert "head_dim" not in json.loads((tmp_path / "usual" / "params.json").read_text())
    del stated["head_dim"]
    (tmp_path / "m" / "params.json").write_text(json.dumps(stated))
    with pytest.raises(FileError):
        read_meta(tmp_path / "m")


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_gguf_says_it_as_llama_cpp_reads_it(tmp_path, kind):
    pytest.importorskip("gguf", reason="the gguf package, an extra, writes the file")
    config = replace(TILED, vocab_size=512, rope_scaling=None)
    params = tiny.params(config, std=0.06)
    tokenizer = tiny.llama_cpp_tokenizer()
    path = tmp_path / "model.gguf"
    write_gguf(path, params, config, tokenizer, kind=kind)
    found, weights, _ = read_gguf(path)
    assert found == config
    if kind == "F32":
        assert same(weights, params)
    n = 40 if kind == "F32" else 8
    rest = iter(greedy([1, 2, 3], weights, config, n))
    theirs = llama_cpp(path, [1, 2, 3], n)[0]  # without bytes that make no whole character
    assert len(theirs) > n / 4 and all(token in rest for token in theirs)


def test_gguf_whose_widths_disagree_is_refused(tmp_path):
    gguf = pytest.importorskip("gguf", reason="the gguf package, an extra, writes the file")
    for key, number, said in (
        ("llama.attention.value_length", 16, "value_length is 16, expected llama.attention.key_length = 22"),
        ("llama.rope.dimension_count", 8, "dimension_count is 8, expected llama.attention.key_length = 22"),
    ):
        write_gguf(tmp_path / "m.gguf", tiny.params(CONFIG), CONFIG, None, kind="F32")
        reader = gguf.GGUFReader(tmp_path / "m.gguf", "r+")
        reader.fields[key].parts[-1][0] = number
        reader.data.flush()
        with pytest.raises(FileError, match=said):
            read_gguf(tmp_path / "m.gguf")


def test_hf_tensors_of_another_width_are_named(tmp_path):
    write_hf(tmp_path / "m", tiny.params(CONFIG), CONFIG, None)
    path = tmp_path / "m" / "config.json"
    for head_dim in (None, 16, ...):
        config = json.loads(path.read_text()) | {"head_dim": head_dim}
        if head_dim is ...:
            del config["head_dim"]
        path.write_text(json.dumps(config))
        with pytest.raises(
            FileError, match=r"q_proj.weight: shape \[132, 48\].*config.json's num_attention_heads, head_dim"
        ):
            read_hf(tmp_path / "m")


def test_from_layout_to_layout_it_stays_the_same_model(tmp_path, capsys):
    params = tiny.params(replace(CONFIG, vocab_size=272))
    config = replace(CONFIG, vocab_size=272)
    write_hf(tmp_path / "hf", params, config, tiny.tokenizer())
    for source, target, layout in (("hf", "meta", "meta"), ("meta", "m.gguf", "gguf"), ("m.gguf", "again", "hf")):
        assert convert.main([str(tmp_path / source), str(tmp_path / target), "--to", layout]) == 0
        found = load(tmp_path / target)
        assert found.config == config and same(found.params, params)
        capsys.readouterr()
        assert describe.main([str(tmp_path / target), "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["config"]["head_dim"] == 22 and told["n_parameters"] == sum(p.numel() for p in params.values())
    assert describe.main([str(tmp_path / "meta")]) == 0
    assert "6 of queries, 2 of keys and values, each 22 wide" in capsys.readouterr().out


def test_the_parity_verb(tmp_path, capsys):
    pytest.importorskip("transformers", reason="the parity extra: pip install -e '.[parity]'")
    config = replace(CONFIG, vocab_size=272)
    write_hf(tmp_path / "hf", tiny.params(config), config, tiny.tokenizer())
    assert parity.main([str(tmp_path / "hf"), "--length", "40"]) == 0
    assert "same likeliest token: 100.0%" in capsys.readouterr().out


def test_an_adapter_of_pefts(tmp_path):
    params = tiny.params(CONFIG)
    theirs = their_model(params, CONFIG)
    theirs.save_pretrained(tmp_path)
    made = stack(params, read_peft(tmp_path, CONFIG))
    tokens_BT = tiny.tokens(2, 30)
    with torch.no_grad(), wide():
        wanted = theirs.double()(tokens_BT).logits
    check(forward(tokens_BT, doubled(made), CONFIG), wanted, 1e-6)
