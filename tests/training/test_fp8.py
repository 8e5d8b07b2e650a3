"""fp8, emulated: its numbers are those of the formats' definitions and of torch's own fp8 product."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from llama3_scratch.data.batches import Batch
from llama3_scratch.init import init
from llama3_scratch.linear import linear
from llama3_scratch.model import fused_block
from llama3_scratch.training.fp8 import BACKWARD, FORWARD, Fp8Linear, in_fp8, rounded, scaled
from llama3_scratch.training.loss import next_token_loss, recomputed
from tests.small_training import CONFIG, PLAN, training
from tests.small_training import data as data  # the fixture


@pytest.mark.parametrize(("dtype", "digits", "largest", "smallest"), [(FORWARD, 3, 448, -9), (BACKWARD, 2, 57344, -16)])
def test_the_formats(dtype, digits, largest, smallest):
    assert torch.finfo(dtype).max == largest
    assert torch.tensor(2.0**smallest).to(dtype).float() == 2.0**smallest
    assert torch.tensor(2.0 ** (smallest - 2)).to(dtype).float() == 0
    x = torch.linspace(1, 2, 1000)
    errors = (x.to(dtype).float() - x).abs()
    assert errors.max() == pytest.approx(2.0 ** -(digits + 1), rel=0.05)


@pytest.mark.parametrize("dtype", [FORWARD, BACKWARD])
def test_the_largest_number_comes_through_whatever_its_size(dtype):
    for size in (1e-12, 1.0, 3e20):
        x = torch.randn(40) * size
        largest = x.abs().argmax()
        assert rounded(x, dtype)[largest] == pytest.approx(x[largest].item(), rel=1e-6)
        assert (rounded(x, dtype) - x).abs().max() < 0.13 * size * x.abs().max() / size
    assert rounded(torch.zeros(3), dtype).tolist() == [0, 0, 0]


def test_the_product_is_that_of_torchs_own_fp8():
    x, weight = torch.randn(16, 64), torch.randn(32, 64)
    (x8, x_scale), (weight8, weight_scale) = scaled(x, FORWARD), scaled(weight, FORWARD)
    wanted = torch._scaled_mm(x8, weight8.T, scale_a=x_scale, scale_b=weight_scale, out_dtype=torch.float32)
    torch.testing.assert_close(Fp8Linear.apply(x, weight), wanted, rtol=1e-6, atol=1e-6)


def test_gradients_are_products_of_what_was_rounded():
    x, weight = torch.randn(2, 5, 8, requires_grad=True), torch.randn(3, 8, requires_grad=True)
    out, grad = Fp8Linear.apply(x, weight), torch.randn(2, 5, 3)
    out.backward(grad)
    grad8 = rounded(grad, BACKWARD)
    x8, weight8 = rounded(x.detach(), FORWARD), rounded(weight.detach(), FORWARD)
    torch.testing.assert_close(out, F.linear(x8, weight8))
    torch.testing.assert_close(x.grad, grad8 @ weight8)
    torch.testing.assert_close(weight.grad, torch.einsum("btr,btc->rc", grad8, x8))


def test_only_a_layers_products_are_rounded():
    params = init(CONFIG, seed=0)
    batch = Batch(*(torch.randint(258, (2, 9)) for _ in range(2)), torch.zeros(2, 9, dtype=torch.long))
    plain = next_token_loss(params, CONFIG, batch)
    seen = []

    def watched(x_BTD, params, name, config, **state):
        seen.append(
            linear(x_BTD, params, f"{name}.attention.wq").equal(F.linear(x_BTD, params[f"{name}.attention.wq.weight"]))
        )
        return fused_block(x_BTD, params, name, config, **state)

    assert next_token_loss(params, CONFIG, batch, wrap=lambda layer: watched) == plain
    assert next_token_loss(params, CONFIG, batch, wrap=lambda layer: in_fp8(layer)) != plain
    assert all(seen), "outside of the layer F.linear is what it was"


def test_recomputing_gives_the_same_gradients():
    batch = Batch(*(torch.randint(258, (2, 9)) for _ in range(2)), torch.zeros(2, 9, dtype=torch.long))
    found = []
    for wrap in (in_fp8, lambda layer: recomputed(in_fp8(layer))):
        params = {name: weight.requires_grad_() for name, weight in init(CONFIG, seed=0).items()}
        next_token_loss(params, CONFIG, batch, wrap=wrap).backward()
        found.append(params["layers.0.attention.wq.weight"].grad)
    assert torch.equal(*found) and found[0].abs().max() > 0


def test_a_loss_falls_nearly_as_in_f32(data):
    losses = {}
    for dtype in ("f32", "fp8"):
        ours = training(data, replace(PLAN, steps=40, lr=1e-2, warmup=5, dtype=dtype))
        losses[dtype] = [ours.advance().loss for _ in range(40)]
    assert losses["fp8"] != losses["f32"] and losses["fp8"][-1] == pytest.approx(losses["f32"][-1], rel=0.1)
