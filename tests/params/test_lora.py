"""Adapters as params → params: what they add, what is trained, merging and undoing it, several on one weight."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import pytest
import torch

from llama3_scratch.checkpoint.check import check as check_names
from llama3_scratch.checkpoint.meta import read_meta, write_meta
from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.model import decode, forward
from llama3_scratch.native.decode import fast_decode
from llama3_scratch.params.lora import (
    PROJECTIONS,
    adapted,
    adapter,
    attach,
    detach,
    merge,
    stack,
    target_names,
    trainable,
    unmerge,
)
from llama3_scratch.params.quantize import dequantize, quantize
from llama3_scratch.stored import quantised, stored
from tests import tiny
from tests.compare import check
from tests.forms import FORMS, fitting, trained, with_adaptors

TOKENS_BT = tiny.tokens(2, 20)
WK = "layers.0.attention.wk"


def fresh(params=None, **options):
    return attach(params or tiny.params(), tiny.CONFIG, **({"rank": 4, "alpha": 8, "seed": 3} | options))


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("form", ["f32", "bf16", "int4", "nf4"])
def test_a_fresh_adapter_changes_nothing(form, dora):
    config = fitting(form)
    params = FORMS[form](tiny.params(config))
    made = attach(params, config, rank=4, alpha=8, dora=dora, seed=3)
    check_names(made, config, "here")
    assert all(made[name] is tensor for name, tensor in params.items())
    wanted = forward(TOKENS_BT, params, config, dtype=torch.float32)
    check(forward(TOKENS_BT, made, config, dtype=torch.float32), wanted, 1e-5)


def test_a_is_kaiming_uniform_as_pefts_and_seeded():
    made, again, other = fresh(rank=40), fresh(rank=40), fresh(rank=40, seed=4)
    down = made[f"{WK}.adaptor.A.weight"]
    bound = 1 / math.sqrt(tiny.CONFIG.dim)
    assert down.shape == (40, 48) and 0.99 * bound < down.abs().max() < bound
    assert down.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
    torch.manual_seed(0)
    theirs = torch.nn.init.kaiming_uniform_(torch.empty(40, 48), a=math.sqrt(5))
    assert theirs.std().item() == pytest.approx(down.std().item(), rel=0.05) and theirs.abs().max() < bound
    assert down.equal(again[f"{WK}.adaptor.A.weight"]) and not down.equal(other[f"{WK}.adaptor.A.weight"])
    assert not made[f"{WK}.adaptor.B.weight"].any()


def test_the_scale_is_alpha_over_rank_or_over_its_root():
    assert fresh(rank=4, alpha=6)[f"{WK}.adaptor.scale"].item() == 1.5
    assert fresh(rank=4, alpha=6, rslora=True)[f"{WK}.adaptor.scale"].item() == 3


def test_a_magnitude_is_each_rows_length():
    params = tiny.params()
    wanted = torch.linalg.vector_norm(params[f"{WK}.weight"], dim=1)
    check(fresh(params, dora=True)[f"{WK}.adaptor.magnitude"], wanted, 1e-6)


def test_targets_by_metas_names_and_hugging_faces():
    config = replace(tiny.CONFIG, n_layers=2)
    wanted = ["layers.0.attention.wq", "layers.0.feed_forward.w2", "layers.1.attention.wq", "layers.1.feed_forward.w2"]
    assert target_names(["w2", "wq"], config) == target_names(["q_proj", "down_proj"], config)
    assert set(target_names(["w2", "wq"], config)) == set(wanted)
    assert target_names(["lm_head"], config) == target_names(["output"], config) == ["output"]
    assert len(target_names(PROJECTIONS, config)) == 14


@pytest.mark.parametrize(
    "options, said",
    [
        ({"targets": ["wx"]}, "no weight 'wx' takes an adapter, expected wq, q_proj, wk, k_proj,"),
        ({"targets": ["embed_tokens"]}, "embed_tokens: an embedding is looked up, not multiplied by"),
        ({"targets": ["tok_embeddings"]}, "tok_embeddings: an embedding is looked up"),
        ({"targets": []}, "an adapter of no weights; name some of wq, wk"),
        ({"rank": 0}, "rank is at least 1, got 0"),
        ({"alpha": 0}, "alpha is a positive number, got 0"),
        ({"alpha": -1}, "alpha is a positive number, got -1"),
        ({"alpha": math.nan}, "alpha is a positive number, got nan"),
        ({"params": fresh(targets=["wk"])}, f"{WK}: has an adapter already; merge or detach it first"),
    ],
)
def test_refused(options, said):
    with pytest.raises(UsageError, match=said):
        fresh(**options)


def test_trainable_is_the_adapters_and_nothing_else():
    params = tiny.params()
    made = fresh(params, targets=["wq", "output"], dora=True)
    parts = ("A.weight", "B.weight", "magnitude")
    names = [*(f"layers.{layer}.attention.wq" for layer in range(5)), "output"]
    assert set(trainable(made)) == {f"{name}.adaptor.{part}" for name in names for part in parts}
    assert set(adapter(made)) == set(trainable(made)) | {f"{name}.adaptor.scale" for name in names}
    assert adapted(made) == names
    assert detach(made) == params


@pytest.mark.parametrize("form", ["nf4", "int4 tiles", "f32"])
@pytest.mark.parametrize("dora", [False, True])
def test_training_moves_adapters_alone_on_any_form(form, dora):
    """QLoRA: gradients go through a weight in 4 bits to the adapters beside it, and a step lowers the loss."""
    config = fitting(form)
    params = attach(FORMS[form](tiny.params(config)), config, rank=4, alpha=8, dora=dora, seed=3)
    learnt = trainable(params)
    for tensor in learnt.values():
        tensor.requires_grad_()
    optimizer = torch.optim.Adam(learnt.values(), lr=0.01)
    tokens_BT = tiny.tokens(2, 20, config)

    def loss():
        logits_BTV = forward(tokens_BT[:, :-1], params, config, dtype=torch.float32)
        return torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT[:, 1:].flatten())

    before = loss()
    before.backward()
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in learnt.values())
    optimizer.step()
    assert loss() < before - 0.01


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("targets", [PROJECTIONS, ("wk", "output")])
def test_f208_merged_and_beside_are_the_same(dora, targets):
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        made = trained(fresh(tiny.params(std=0.15, dtype=dtype), targets=targets, dora=dora))
        wanted = forward(TOKENS_BT, made, tiny.CONFIG)
        merged = merge(made)
        assert set(merged) == set(tiny.params()) and merged[f"{WK}.weight"].dtype == dtype
        check(forward(TOKENS_BT, merged, tiny.CONFIG), wanted, tolerance)
    assert not forward(TOKENS_BT, detach(made), tiny.CONFIG).allclose(wanted, atol=1e-2)


def test_f208_unmerge_restores_within_f32_eps():
    made = trained(fresh(targets=(*PROJECTIONS, "output")))
    back = unmerge(merge(made), adapter(made))
    assert set(back) == set(detach(made))
    for name, tensor in detach(made).items():
        off = (back[name] - tensor).abs().max().item()
        assert off <= 2 * torch.finfo(torch.float32).eps * max(1, tensor.abs().max().item()), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_f208_merging_into_short_floats_warns_of_rounding(dtype, caplog):
    made = trained(fresh(tiny.params(dtype=dtype)))
    merged = merge(made)
    assert merged[f"{WK}.weight"].dtype == dtype
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(f"merging rounds to {str(dtype)[6:]}, which adds an error of ")
    wide = merge(made, dtype=torch.float32)[f"{WK}.weight"]
    assert wide.dtype == torch.float32 and merged[f"{WK}.weight"].equal(wide.to(dtype))
    exact = (
        made[f"{WK}.weight"].double()
        + 2 * made[f"{WK}.adaptor.B.weight"].double() @ made[f"{WK}.adaptor.A.weight"].double()
    )
    check(wide, exact, 1e-6)


def test_merging_beyond_what_f16_holds_is_refused():
    made = trained(fresh(tiny.params(dtype=torch.float16), targets=["wk"]))
    made[f"{WK}.adaptor.scale"] = torch.tensor(1e6)
    with pytest.raises(UsageError, match=rf"{WK}: merged it reaches .*, too much for float16"):
        merge(made)


def test_f208_merging_f32_is_silent(caplog):
    made = trained(fresh())
    unmerge(merge(made), adapter(made))
    assert not caplog.records


def test_an_unmerged_dora_is_refused_for_the_lengths_are_lost():
    made = trained(fresh(dora=True))
    with pytest.raises(UsageError, match=r"layers.0.attention.wq: DoRA can't be unmerged, the rows' own norms"):
        unmerge(merge(made), adapter(made))


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("form", ["int8", "int4", "nf4"])
def test_merging_into_integers_makes_floats_of_those_weights(form, dora, caplog):
    base = quantize(tiny.params(tiny.TILED), form)
    made = trained(attach(base, tiny.TILED, rank=4, alpha=8, targets=["wq", "w2"], dora=dora, seed=3))
    merged = merge(made)
    [record] = caplog.records
    assert "layers.0.attention.wq, layers.0.feed_forward.w2 and 8 more are turned into floats" in record.getMessage()
    assert stored(merged, "layers.0.attention.wq").name == "float32"
    assert stored(merged, WK).name == form and quantised(merged)
    check_names(merged, tiny.TILED, "here")
    wanted = forward(TOKENS_BT, merge(dequantize(made, torch.float32)), tiny.TILED, dtype=torch.float64)
    check(forward(TOKENS_BT, made, tiny.TILED, dtype=torch.float64), wanted, 1e-5)
    check(forward(TOKENS_BT, merged, tiny.TILED, dtype=torch.float64), wanted, 1e-5)
    said = "DoRA can't be unmerged" if dora else f"stored as {form}, so nothing was merged"
    with pytest.raises(UsageError, match=f"layers.0.attention.wq: {said}"):
        unmerge(base, adapter(made))


def test_f209_an_adapter_of_a_tied_head_is_not_merged():
    config = replace(tiny.CONFIG, tied=True)
    made = trained(attach(tiny.params(config, std=0.15), config, rank=2, alpha=4, targets=["wq", "lm_head"], seed=1))
    with pytest.raises(FileError, match=r"output: its weight is the embedding's too \(tied\)") as caught:
        merge(made)
    assert caught.value.exit_code == 3
    untied = {**made, "output.weight": made["output.weight"].clone()}
    check(forward(TOKENS_BT, merge(untied), tiny.CONFIG), forward(TOKENS_BT, made, config), 1e-5)


@pytest.mark.parametrize("alphas", [(8, 8, 8), (8, 3, 20)])
def test_f211_stacked_adapters_add_up_in_any_order(alphas):
    params = tiny.params(dtype=torch.float64)
    ranks, targets = (2, 3, 4), (["wq", "w1"], ["wq", "wk"], ["wq", "output"])
    each = [
        adapter(trained(fresh(params, rank=rank, alpha=alpha * rank / 4, targets=its), seed=rank))
        for rank, alpha, its in zip(ranks, alphas, targets, strict=True)
    ]
    one_by_one = params
    for its in each:
        one_by_one = merge(stack(one_by_one, its))
    wanted = forward(TOKENS_BT, one_by_one, tiny.CONFIG)
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        made = stack(params, *(each[index] for index in order))
        assert made["layers.0.attention.wq.adaptor.A.weight"].shape == (9, 48)
        assert made["layers.0.attention.wk.adaptor.A.weight"].shape == (3, 48)
        check(forward(TOKENS_BT, made, tiny.CONFIG), wanted, 1e-12)
    assert stack(stack(params, each[0]), each[1]).keys() == stack(params, *each[:2]).keys()


def test_f211_dora_does_not_add_up_on_one_weight():
    params = tiny.params()
    dora, plain, elsewhere = (
        adapter(fresh(params, dora=dora, targets=[target]))
        for dora, target in ((True, "wk"), (False, "wk"), (True, "wq"))
    )
    for pair in ((dora, plain), (plain, dora), (dora, dora)):
        with pytest.raises(UsageError, match=f"{WK}: two adapters of which one is DoRA don't add up"):
            stack(params, *pair)
    assert len(stack(params, dora, elsewhere)) == len(params) + 2 * 5 * 4


@pytest.mark.parametrize("dora", [False, True])
def test_a_merged_model_goes_through_c_as_it_would_without_adapters(dora):
    config = tiny.TILED
    made = with_adaptors(tiny.params(config), dora=dora)
    assert fast_decode(made, config) is decode
    assert type(fast_decode(merge(made), config)) is type(fast_decode(detach(made), config))


def test_metas_folder_keeps_magnitudes(tmp_path):
    made = trained(fresh(dora=True))
    write_meta(tmp_path / "out", made, tiny.CONFIG, None)
    _, read = read_meta(tmp_path / "out")
    check(forward(TOKENS_BT, read, tiny.CONFIG), forward(TOKENS_BT, made, tiny.CONFIG), 1e-6)
