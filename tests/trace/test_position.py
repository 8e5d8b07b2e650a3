"""One position, looked into in one pass: the same numbers as the trace of the whole pass has."""

from __future__ import annotations

import pytest
import torch

from llama3_scratch.compare.tensor_names import ATTENTION_WEIGHTS, LAYER_OUTPUT
from llama3_scratch.model import block, forward
from llama3_scratch.params.quantize import quantize
from llama3_scratch.trace import position
from llama3_scratch.trace.tracer import watch
from llama3_scratch.trace.views import likeliest
from tests import tiny


@pytest.fixture(scope="module", params=["float", "int8"])
def params(request):
    made = tiny.params()
    return made if request.param == "float" else quantize(made, "int8-row")


@pytest.fixture(scope="module")
def traced(params):
    tokens_BT = tiny.tokens(1, 33)
    with torch.inference_mode(), watch(keep=lambda step: True) as steps:
        logits_BTV = forward(tokens_BT, params, tiny.CONFIG, block=block)
    return tokens_BT[0].tolist(), steps, logits_BTV


def test_the_lens_is_the_heads_choice_after_each_layer(params, traced):
    tokens, steps, logits_BTV = traced
    shares_LV = position.lens(tokens, params, tiny.CONFIG)
    assert shares_LV.shape == (tiny.CONFIG.n_layers, tiny.CONFIG.vocab_size)
    torch.testing.assert_close(shares_LV[-1], logits_BTV[0, -1].softmax(-1), rtol=1e-3, atol=1e-5)
    outputs = [step.value for step in steps if LAYER_OUTPUT.matches(step)]
    for layer, x_BTD in enumerate(outputs):
        ids, values = likeliest(x_BTD[:, -1:], params, tiny.CONFIG, 5)
        torch.testing.assert_close(shares_LV[layer][ids[0, 0]], values[0, 0], rtol=1e-3, atol=1e-5)


def test_attention_is_the_last_querys_weights(params, traced):
    tokens, steps, _ = traced
    weights_LHS = position.attention(tokens, params, tiny.CONFIG)
    assert weights_LHS.shape == (tiny.CONFIG.n_layers, tiny.CONFIG.n_heads, len(tokens))
    torch.testing.assert_close(weights_LHS.sum(-1), torch.ones(tiny.CONFIG.n_layers, tiny.CONFIG.n_heads))
    expected = [step.value[0, :, :, -1].flatten(0, 1) for step in steps if ATTENTION_WEIGHTS.matches(step)]
    torch.testing.assert_close(weights_LHS, torch.stack(expected), rtol=1e-3, atol=1e-5)
