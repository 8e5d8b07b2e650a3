"""Against Meta's own code in f32: logits, cached steps, the RoPE table; and Meta's layout in 1 to 8 shards."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch

from llama3_scratch.cache import Cache
from llama3_scratch.checkpoint.meta import read_meta, write_meta
from llama3_scratch.config import OFFICIAL, Config, RopeScaling
from llama3_scratch.model import block, forward, fused_block, rms_norm, rotations
from tests import shapes, tiny
from tests.compare import check
from tests.meta_reference import meta_model, transformer

TOLERANCE = 2e-5  # f32 against f32
T = 512


@pytest.fixture(scope="module")
def meta():
    with meta_model() as module:
        yield module


def as_meta_scales(config: Config) -> Config:
    return replace(config, rope_scaling=config.rope_scaling and RopeScaling(8.0))


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_logits(meta, name):
    config, multiple_of, multiplier = shapes.SHAPES[name]
    config = as_meta_scales(config)
    params, tokens_BT = shapes.params(config), tiny.tokens(1, T, config)
    wanted = transformer(meta, params, config, multiple_of, multiplier, max_seq_len=T)(tokens_BT, 0)
    for layer in (block, fused_block):
        check(forward(tokens_BT, params, config, block=layer), wanted, TOLERANCE, layer.__name__)


def test_cached_steps(meta):
    config, multiple_of, multiplier = shapes.SHAPES["3.1-8b"]
    params, tokens_BT = shapes.params(config), tiny.tokens(2, T + 8, config)
    model, cache = transformer(meta, params, config, multiple_of, multiplier, max_seq_len=T + 8), Cache(T + 8)
    start = 0
    for step in (T - 12, 7, 5, *[1] * 8):
        piece = tokens_BT[:, start : start + step]
        check(forward(piece, params, config, cache=cache), model(piece, start), TOLERANCE, f"position {start}")
        start += step


def test_bf16_norm_is_bit_equal(meta):
    config = replace(tiny.CONFIG, norm_eps=1e-5)
    params = tiny.params(config, dtype=torch.bfloat16)
    x_BTD, weight = 4 * params["tok_embeddings.weight"][None], params["norm.weight"]
    theirs = meta.RMSNorm(config.dim, eps=config.norm_eps)
    theirs.weight.data = weight
    assert torch.equal(rms_norm(x_BTD, {"norm.weight": weight}, "norm", config), theirs(x_BTD))


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaled"])
@pytest.mark.parametrize("name", ["llama3.1-8b", "llama3.2-1b"])  # head width 128 and 64
def test_rope_table_is_bit_equal_over_the_whole_context(meta, name, scaled):
    config = replace(OFFICIAL[name], rope_scaling=RopeScaling(8.0) if scaled else None)
    wanted = meta.precompute_freqs_cis(config.head_dim, 131_072, config.rope_theta, scaled)
    table = rotations(torch.arange(131_072)[None], config, torch.float32)[0]
    assert torch.equal(torch.view_as_real(table), torch.view_as_real(wanted))
    scattered = torch.tensor([[0], [1], [8191], [8192], [80_000], [131_071]])  # as one-token steps ask
    one_by_one = torch.cat([rotations(position[None], config, torch.float32)[0] for position in scattered])
    assert torch.equal(torch.view_as_real(one_by_one), torch.view_as_real(wanted[scattered[:, 0]]))


def test_sys_modules_is_as_before():
    def ours():
        return {name: id(module) for name, module in sys.modules.items() if name.startswith(("fairscale", "llama_"))}

    before = ours()
    with meta_model() as module:
        assert module.Transformer
        assert ours() != before
    assert {name: ours().get(name) for name in before} == before
    assert not any(name.startswith("fairscale") for name in ours().keys() - before.keys())


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("shards", [1, 2, 4, 8])
def test_shards_merge_bit_equal(tmp_path, shards, tied):
    config = Config(128, 2, 16, 8, 64, 96, rope_scaling=RopeScaling(8.0), max_seq_len=131_072, tied=tied)
    params = shapes.params(config, dtype=torch.bfloat16)
    write_meta(tmp_path / "model", params, config, None, shards=shards)
    assert len(list((tmp_path / "model").glob("consolidated.*.pth"))) == shards
    found, read = read_meta(tmp_path / "model")
    assert found == config
    assert read.keys() == params.keys()
    assert all(torch.equal(read[name], params[name]) and read[name].dtype == torch.bfloat16 for name in params)
    assert (read["output.weight"] is read["tok_embeddings.weight"]) == tied
    tokens_BT = tiny.tokens(1, 33, config)
    assert torch.equal(forward(tokens_BT, read, config), forward(tokens_BT, params, config))


def test_shards_are_cut_as_metas_layers_expect(tmp_path):
    """Rows of wq, w1 and output, columns of wo and w2: what each rank of Meta's parallel layers holds."""
    config = Config(128, 1, 16, 8, 64, 96)
    params = shapes.params(config)
    write_meta(tmp_path / "model", params, config, None, shards=4)
    second = torch.load(tmp_path / "model" / "consolidated.01.pth", weights_only=True)
    rows = {"attention.wq": 32, "attention.wk": 16, "attention.wv": 16, "feed_forward.w1": 24, "feed_forward.w3": 24}
    for part, step in rows.items():
        name = f"layers.0.{part}.weight"
        assert torch.equal(second[name], params[name][step : 2 * step]), name
    for part, step in {"attention.wo": 32, "feed_forward.w2": 24}.items():
        name = f"layers.0.{part}.weight"
        assert torch.equal(second[name], params[name][:, step : 2 * step]), name
    for name in ("tok_embeddings.weight", "output.weight"):
        assert torch.equal(second[name], params[name][16:32]), name
    assert torch.equal(second["norm.weight"], params["norm.weight"])
