"""Against Hugging Face transformers: logits, every layer's hidden state and all gradients, in f64 and in f32."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from llama3_scratch import model
from llama3_scratch.cache import NoCache
from llama3_scratch.config import OFFICIAL, RopeScaling
from llama3_scratch.model import block, forward, fused_block, rope_frequencies
from tests import shapes, tiny
from tests.compare import check
from tests.hf_reference import hf_config, hf_model, hf_name, to_hf, wide

F64, F32 = 1e-9, 2e-5  # tolerances, in standard deviations


@pytest.fixture
def in_f64():
    with wide():
        yield


@pytest.fixture(scope="module")
def _tiny_hf():
    with wide():
        return hf_model(tiny.params(dtype=torch.float64), tiny.CONFIG)


@pytest.fixture
def tiny_hf(in_f64, _tiny_hf):
    return _tiny_hf


class Offset(NoCache):
    """A prompt that begins at a later position than 0."""

    def __init__(self, offset: int) -> None:
        super().__init__()
        self.offset = offset

    def positions(self, tokens, device):
        return self.offset + super().positions(tokens, device)


def recorded(layer, seen):
    def wrapped(x_BTD, params, name, config, **state):
        seen.append(layer(x_BTD, params, name, config, **state))
        return seen[-1]

    return wrapped


@pytest.mark.parametrize(
    ("T", "layer"), [(1, block), (5, block), (64, block), (513, block), (513, fused_block), (2048, fused_block)]
)
def test_logits_and_hidden_states_in_f64(tiny_hf, T, layer):
    params, tokens_BT = tiny.params(dtype=torch.float64), tiny.tokens(1 if T > 512 else 2, T)
    seen: list[torch.Tensor] = []
    logits_BTV = forward(tokens_BT, params, tiny.CONFIG, block=recorded(layer, seen))
    with torch.no_grad():
        theirs = tiny_hf(tokens_BT, output_hidden_states=True, use_cache=False)
    assert logits_BTV.dtype == torch.float64
    check(logits_BTV, theirs.logits, F64)
    # HF's list begins with the embedding and its last entry has been normed.
    normed = model.rms_norm(seen[-1], params, "norm", tiny.CONFIG)
    for index, (ours, wanted) in enumerate(zip([*seen[:-1], normed], theirs.hidden_states[1:], strict=True)):
        check(ours, wanted, F64, f"layers.{index}")


@pytest.mark.parametrize("offset", [8_000, 64_000, 130_000])
def test_far_positions_in_f64(tiny_hf, offset):
    params, tokens_BT = tiny.params(dtype=torch.float64), tiny.tokens(1, 65)
    logits_BTV = forward(tokens_BT, params, tiny.CONFIG, cache=Offset(offset), block=block)
    with torch.no_grad():
        positions = offset + torch.arange(65)[None]
        # Told of a mask, HF doesn't mistake late positions for the packed sequences of a training batch.
        mask = torch.full((1, 1, 65, 65), -torch.inf, dtype=torch.float64).triu(1)
        wanted = tiny_hf(tokens_BT, position_ids=positions, attention_mask=mask, use_cache=False).logits
    check(logits_BTV, wanted, F64)


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_shapes_in_f64(in_f64, name):
    config = shapes.SHAPES[name][0]
    params, tokens_BT = shapes.params(config, dtype=torch.float64), tiny.tokens(1, 128, config)
    with torch.no_grad():
        wanted = hf_model(params, config)(tokens_BT).logits
    check(forward(tokens_BT, params, config), wanted, F64)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_gradients_in_f64(in_f64, tied):
    config = replace(tiny.CONFIG, tied=tied, n_layers=3)
    params = tiny.params(config, dtype=torch.float64)
    tokens_BT = tiny.tokens(2, 40, config)
    theirs = hf_model(params, config)
    for tensor in params.values():
        tensor.requires_grad_()

    def loss(logits_BTV):
        return F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), tokens_BT[:, 1:].flatten())

    loss(forward(tokens_BT, params, config)).backward()
    loss(theirs(tokens_BT).logits).backward()
    wanted = {name: weight.grad for name, weight in theirs.named_parameters()}
    if tied:
        wanted["lm_head.weight"] = wanted["model.embed_tokens.weight"]
    grads = to_hf({name: tensor.grad for name, tensor in params.items()}, config)
    assert grads.keys() == wanted.keys()
    for name in params:
        check(grads[hf_name(name)], wanted[hf_name(name)], F64, name)


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_logits_in_f32_unpatched(name):
    config = shapes.SHAPES[name][0]
    params, tokens_BT = shapes.params(config), tiny.tokens(1, 512, config)
    with torch.no_grad():
        wanted = hf_model(params, config)(tokens_BT).logits
    check(forward(tokens_BT, params, config), wanted, F32)


@pytest.mark.parametrize("factor", [8.0, 32.0])
@pytest.mark.parametrize("name", ["llama3.1-8b", "llama3.2-1b"])  # head width 128 and 64
def test_rope_frequencies_and_table(name, factor):
    config = replace(OFFICIAL[name], rope_scaling=RopeScaling(factor))
    pytest.importorskip("transformers", reason="the parity extra: pip install -e '.[parity]'")
    from transformers.modeling_rope_utils import _compute_llama3_parameters

    inv_freq, attention_factor = _compute_llama3_parameters(hf_config(config), torch.device("cpu"))
    assert attention_factor == 1
    assert torch.equal(rope_frequencies(config, torch.float32), inv_freq)
    angles = torch.arange(131_072).float()[:, None] * inv_freq
    table = model.rotations(torch.arange(131_072)[None], config, torch.float32)[0]
    ulp = torch.finfo(torch.float32).eps  # of numbers from 1 to 2; these reach 1
    assert (table.real - angles.cos()).abs().max() <= ulp / 2
    assert (table.imag - angles.sin()).abs().max() <= ulp / 2
