"""Training follows the device of the params: on torch's meta device, whose tensors mix with no other's, a step runs
through."""

from __future__ import annotations

import pytest
import torch

from llama3_scratch.data.batches import Batch
from llama3_scratch.evaluation import scoring
from llama3_scratch.init import init
from llama3_scratch.params.lora import attach, trainable
from llama3_scratch.stored import map_tensors
from llama3_scratch.training import loop, loss
from llama3_scratch.training.choices import TrainingPlan
from llama3_scratch.training.classifier import class_loss
from llama3_scratch.training.loop import Training
from tests import tiny


class OnCpu:
    """Batches as data makes them."""

    fingerprint = "these"

    def batch(self, index: int) -> Batch:
        tokens_BT = tiny.tokens(2, 9, tiny.CONFIG)
        return Batch(tokens_BT, tokens_BT.roll(-1, 1), torch.zeros_like(tokens_BT))

    def __len__(self) -> int:
        return 1


@pytest.fixture
def meta(monkeypatch):
    """The meta device, with what its tensors lack: numbers, and a fused optimizer."""
    monkeypatch.setattr(torch.Tensor, "item", lambda tensor: 1.0)
    monkeypatch.setattr(loop, "adamw", lambda tensors, **settings: torch.optim.AdamW([*tensors.values()], fused=False))
    return torch.device("meta")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", ["f32", "bf16", "fp8"])
@pytest.mark.parametrize("method", ["all", "adapters"])
def test_a_step_runs_where_the_params_are(meta, monkeypatch, packed, dtype, method):
    monkeypatch.setattr(loss, "several_documents", lambda documents_BT: packed)
    params = map_tensors(init(tiny.CONFIG, seed=0), lambda tensor: tensor.to(meta))
    if method == "adapters":
        params = attach(params, tiny.CONFIG, rank=2, alpha=4.0, seed=0)
    learning = list(params if method == "all" else trainable(params))
    ours = Training(params, tiny.CONFIG, learning, OnCpu(), TrainingPlan(2, 1e-3, accumulate=2, dtype=dtype))
    assert ours.device == meta and not ours.advance().skipped
    assert ours.validate(OnCpu()) > 0
    assert all(tensor.device == meta for tensor in ours.weights().values())


def test_a_classifiers_loss_is_where_its_params_are(meta):
    params = map_tensors(init(tiny.CONFIG, seed=0), lambda tensor: tensor.to(meta))
    params["score.weight"] = torch.ones(3, tiny.CONFIG.dim, device=meta)
    assert class_loss(params, tiny.CONFIG, OnCpu().batch(0).to(meta)).device == meta


def test_scores_are_computed_where_the_params_are(meta):
    params = map_tensors(init(tiny.CONFIG, seed=0), lambda tensor: tensor.to(meta))
    assert scoring.log_probabilities([1, 2, 3], params, tiny.CONFIG).device == meta
    asked = scoring.Asked([[1, 2, 3, 4], [1, 2, 5]], [2, 1], [5, 4], 0)
    assert scoring.choose(asked, params, tiny.CONFIG).plain == 0
