"""The parity check can see: each of these mistakes, put into our side, makes it fail by a factor of a thousand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from llama3_scratch import model
from tests import tiny
from tests.compare import DiffersError, check
from tests.hf_reference import hf_model, wide
from tests.mutations import (
    CONFIG,
    MUTATIONS,
    T,
    ours,
)

TOLERANCE, MARGIN = 1e-9, 1000.0


@pytest.fixture(scope="module")
def wanted() -> Tensor:
    with wide(), torch.no_grad():
        return hf_model(tiny.params(dtype=torch.float64), CONFIG)(tiny.tokens(1, T)).logits


def test_without_a_mistake(wanted):
    check(ours(tiny.params(dtype=torch.float64), CONFIG), wanted, TOLERANCE)


@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS.keys())
def test_mistake_is_seen(wanted, monkeypatch, mutation):
    params, config = mutation(monkeypatch, tiny.params(dtype=torch.float64), CONFIG)
    with pytest.raises(DiffersError):
        check(ours(params, config), wanted, MARGIN * TOLERANCE)


def test_untied_head_is_seen():
    config = replace(CONFIG, tied=True)
    params = tiny.params(config, dtype=torch.float64)
    with wide(), torch.no_grad():
        wanted = hf_model(params, config)(tiny.tokens(1, T)).logits
    check(ours(params, config), wanted, TOLERANCE)
    untied = params | {"output.weight": tiny.params(seed=7, dtype=torch.float64)["output.weight"]}
    with pytest.raises(DiffersError):
        check(ours(untied, config), wanted, MARGIN * TOLERANCE)


def test_norm_weight_before_the_cast_is_seen():
    pytest.importorskip("transformers", reason="the parity extra: pip install -e '.[parity]'")
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    x_BTD = tiny.params()["tok_embeddings.weight"][None].bfloat16()
    params = {"norm.weight": tiny.params()["norm.weight"].bfloat16()}
    theirs = LlamaRMSNorm(CONFIG.dim, CONFIG.norm_eps).bfloat16()
    theirs.weight.data = params["norm.weight"]
    check(model.rms_norm(x_BTD, params, "norm", CONFIG), theirs(x_BTD), 0.0)
    too_late = model.rms_norm(x_BTD.float(), {"norm.weight": params["norm.weight"].float()}, "norm", CONFIG).bfloat16()
    with pytest.raises(DiffersError):
        check(too_late, theirs(x_BTD), MARGIN * TOLERANCE)
