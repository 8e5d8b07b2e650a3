"""The model's own promises: axes as its names say, no dtype dropped, each part its formula, a golden story."""

from __future__ import annotations

import json
import math
import re
import sys
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from llama3_scratch import model
from llama3_scratch.cache import Cache
from llama3_scratch.checkpoint.llama2c import read_llama2c
from llama3_scratch.config import Config, RopeScaling
from llama3_scratch.model import attend, attend_fused, block, decode, embed, forward, fused_block, rms_norm, unembed
from tests import tiny
from tests.batches import ragged_rows
from tests.compare import check
from tests.forms import FORMS, fitting, plain

CONFIG = replace(tiny.CONFIG, n_layers=2)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_means_its_plain_weights(form, torch_only):
    config = fitting(form)
    params = FORMS[form](tiny.params(config))
    tokens_BT = tiny.tokens(2, 33)
    wanted = forward(tokens_BT, plain(params), config)
    check(forward(tokens_BT, params, config, dtype=torch.float64), wanted, 1e-12)
    logits_BTV = forward(tokens_BT, params, config, dtype=torch.float32)
    assert logits_BTV.dtype == torch.float32
    check(logits_BTV, wanted, 5e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_activations_give_f32_logits_near_the_exact_ones(dtype):
    params = {name: weight.to(dtype) for name, weight in tiny.params(CONFIG).items()}
    tokens_BT = tiny.tokens(2, 33)
    logits_BTV = forward(tokens_BT, params, CONFIG)
    assert logits_BTV.dtype == torch.float32
    wanted = forward(tokens_BT, plain(params), CONFIG)
    check(logits_BTV, wanted, 50 * torch.finfo(dtype).eps)


class NarrowFloats(TorchDispatchMode):
    """Collects every operation whose result is a float narrower than f64."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        result = operation(*arguments, **(options or {}))
        for out in result if isinstance(result, tuple | list) else (result,):
            narrow = (torch.float32, torch.float16, torch.bfloat16, torch.complex64)
            if isinstance(out, torch.Tensor) and out.dtype in narrow:
                self.found.append(f"{operation} gives {out.dtype}")
        return result


@pytest.mark.parametrize("layer", [block, fused_block])
@pytest.mark.parametrize("cache", [None, "uniform", "paged"])
@pytest.mark.parametrize("form", ["f64", "adaptors"])
def test_f64_stays_f64(layer, cache, form):
    params = tiny.params(CONFIG, dtype=torch.float64)
    if form == "adaptors":
        params = {n: t.double() for n, t in FORMS["adaptors on f32"](params).items()}
    caches = {None: model.NO_CACHE, "uniform": Cache(40), "paged": ragged_rows(CONFIG, 40, 2, dtype=torch.float64)}
    with NarrowFloats() as mode:
        forward(tiny.tokens(2, 9), params, CONFIG, cache=caches[cache], block=layer)
    # The fused kernel keeps its own bookkeeping of row sums in f32 on some builds, but never its result.
    assert not [found for found in mode.found if "scaled_dot_product" not in found]


SUFFIX = re.compile(r"_([BTSDHGNRKJFV1]+)")


def check_names(frame, config: Config, sizes: dict[str, set[int]]) -> None:
    """Every local tensor of a function of the model has the axes that its name ends in."""
    known = {"1": 1, "D": config.dim, "H": config.n_heads, "G": config.n_kv_heads, "K": config.head_dim}
    known |= {"R": config.n_heads // config.n_kv_heads, "J": config.head_dim // 2}
    known |= {"F": config.hidden_dim, "V": config.vocab_size}
    for name, value in frame.f_locals.items():
        if not isinstance(value, torch.Tensor) or (name, frame.f_code.co_name) == ("tokens", "forward"):
            continue  # what forward is given may have one axis or two
        suffix = SUFFIX.fullmatch(name[name.rfind("_") :])
        where = f"{frame.f_code.co_name}: {name} {list(value.shape)}"
        assert suffix, f"{where} says no axes"
        assert len(suffix[1]) == value.ndim, where
        for axis, length in zip(suffix[1], value.shape, strict=True):
            if axis in known:
                assert length == known[axis], f"{where}: {axis} is {known[axis]}"
            else:
                assert length in sizes[axis], f"{where}: {axis} is one of {sizes[axis]}"


@pytest.mark.parametrize("layer", [block, fused_block])
@pytest.mark.parametrize("ragged", [False, True], ids=["uniform", "ragged"])
def test_tensors_have_the_axes_that_their_names_say(layer, ragged):
    B, seen, T = 7, 11, 13  # none of the tiny world's sizes
    params, tokens_BT = tiny.params(), tiny.tokens(B, seen + T)
    cache = ragged_rows(tiny.CONFIG, 64, B) if ragged else Cache(64)
    forward(tokens_BT[:, :seen], params, tiny.CONFIG, cache=cache)
    # Without ragged rows positions, masks and rotations agree for all rows, and B is 1.
    sizes = {"B": {1, B}, "T": {T}, "S": {seen + T}, "N": {tiny.CONFIG.n_heads, tiny.CONFIG.n_kv_heads}}
    functions = []

    def profile(frame, event, _):
        if event == "return" and frame.f_code.co_filename == model.__file__ and frame.f_code.co_name.isidentifier():
            functions.append(frame.f_code.co_name)
            check_names(frame, tiny.CONFIG, sizes)

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        forward(tokens_BT[:, seen:], params, tiny.CONFIG, cache=cache, block=layer)
    finally:
        sys.setprofile(before)
    attending = "attend" if layer is block else "attend_fused"
    assert {"rms_norm", "rotate", attending, "attention", "swiglu", "block", "decode", "forward"} <= set(functions)


def test_rms_norm_is_its_formula():
    params, x_BTD = tiny.params(), torch.randn(2, 3, tiny.CONFIG.dim)
    for x in x_BTD.flatten(0, 1):
        root = math.sqrt(sum(value * value for value in x.tolist()) / len(x) + tiny.CONFIG.norm_eps)
        wanted = torch.tensor([value / root for value in x.tolist()]) * params["norm.weight"]
        check(rms_norm(x[None, None], params, "norm", tiny.CONFIG)[0, 0], wanted, 1e-6)


def test_rotation_turns_neighbouring_pairs():
    config = replace(tiny.CONFIG, rope_scaling=None)
    x_BTHK = torch.randn(1, 4, 2, config.head_dim, dtype=torch.float64)
    positions_BT = torch.tensor([[0, 1, 7, 4000]])
    got = model.rotate(x_BTHK, model.rotations(positions_BT, config, torch.float64))
    assert torch.equal(got[:, 0], x_BTHK[:, 0])
    for index, position in enumerate(positions_BT[0].tolist()):
        for pair in range(config.head_dim // 2):
            angle = position * config.rope_theta ** (-2 * pair / config.head_dim)
            first, second = x_BTHK[0, index, 1, 2 * pair : 2 * pair + 2].tolist()
            turned = (
                first * math.cos(angle) - second * math.sin(angle),
                first * math.sin(angle) + second * math.cos(angle),
            )
            check(got[0, index, 1, 2 * pair : 2 * pair + 2], torch.tensor(turned, dtype=torch.float64), 1e-9)


@pytest.mark.parametrize(("head_dim", "counts"), [(128, (29, 6, 29)), (64, (15, 3, 14))])
def test_scaling_leaves_blends_and_slows_as_many_pairs_as_published(head_dim, counts):
    config = Config(head_dim * 4, 1, 4, 2, 8, 8)
    scaled = replace(config, rope_scaling=RopeScaling(32.0))
    ratio = model.rope_frequencies(config, torch.float64) / model.rope_frequencies(scaled, torch.float64)
    kept, slowed = (ratio == 1).sum().item(), ((ratio - 32).abs() < 1e-9).sum().item()
    assert (kept, len(ratio) - kept - slowed, slowed) == counts


def test_divisors_are_the_same_as_the_scaling_they_come_from():
    """GGUF stores what the scaling does as one divisor a pair."""
    plain_freqs = model.rope_frequencies(replace(tiny.CONFIG, rope_scaling=None), torch.float64)
    wanted = model.rope_frequencies(tiny.CONFIG, torch.float64)
    divided = replace(tiny.CONFIG, rope_scaling=None, rope_divisors=tuple((plain_freqs / wanted).tolist()))
    check(model.rope_frequencies(divided, torch.float64), wanted, 1e-12)


@pytest.mark.parametrize("attending", [attend, attend_fused])
def test_attention_is_its_formula(attending):
    B, T, S, G, R, K = 2, 3, 5, 2, 3, 4
    generator = torch.Generator().manual_seed(2)
    q = torch.randn(B, T, G, R, K, generator=generator, dtype=torch.float64)
    k, v = (torch.randn(B, S, G, K, generator=generator, dtype=torch.float64) for _ in "kv")
    visible = torch.rand(B, T, S, generator=generator) < 0.5
    visible[..., 0] = True
    got = attending(q, k, v, visible)
    for b, t, g, r in torch.cartesian_prod(*(torch.arange(n) for n in (B, T, G, R))).tolist():
        slots = [s for s in range(S) if visible[b, t, s]]
        scores = [math.exp(float(q[b, t, g, r] @ k[b, s, g]) / math.sqrt(K)) for s in slots]
        wanted = sum(score / sum(scores) * v[b, s, g] for score, s in zip(scores, slots, strict=True))
        check(got[b, t, g, r], torch.as_tensor(wanted), 1e-12)


def test_no_token_sees_a_later_one():
    params, tokens_BT = tiny.params(CONFIG, dtype=torch.float64), tiny.tokens(1, 20)
    changed = tokens_BT.clone()
    changed[0, 12] = (changed[0, 12] + 1) % CONFIG.vocab_size
    before, after = (forward(t, params, CONFIG) for t in (tokens_BT, changed))
    check(after[:, :12], before[:, :12], 1e-13)
    assert ((after - before).abs().amax(-1) > 1e-6)[0, 12:].all()


def test_the_stack_in_its_three_parts():
    """embed, decode and unembed are what forward is made of; a wrapped block sees every layer by name, in order."""
    params, tokens_BT, names = tiny.params(), tiny.tokens(2, 9), []

    def wrapped(x_BTD, params, name, config, **state):
        names.append(name)
        return block(x_BTD, params, name, config, **state)

    x_BTD = embed(tokens_BT, params, "tok_embeddings")
    logits_BTV = unembed(decode(x_BTD, params, tiny.CONFIG, block=wrapped), params)
    assert names == [f"layers.{layer}" for layer in range(tiny.CONFIG.n_layers)]
    assert torch.equal(logits_BTV, forward(tokens_BT, params, tiny.CONFIG, block=block))


def test_gradients_reach_every_weight_through_the_fused_block():
    params, grads = tiny.params(CONFIG, dtype=torch.float64), []
    for layer in (block, fused_block):
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in params.items()}
        forward(tiny.tokens(2, 9), leaves, CONFIG, block=layer).logsumexp(-1).sum().backward()
        grads.append({name: leaf.grad for name, leaf in leaves.items()})
    for name in params:
        assert grads[0][name] is not None and grads[0][name].abs().max() > 0, name
        check(grads[1][name], grads[0][name], 1e-11, name)


@pytest.mark.parametrize("layer", [block, fused_block])
def test_stories260k_each_token_of_its_story_is_the_likeliest(layer):
    expected = json.loads(tiny.data("stories260k/expected.json").read_text())
    config, params = read_llama2c(tiny.data("stories260k/stories260K.bin"))
    story = expected["prompt_tokens"] + expected["tokens"]
    logits_BTV = forward(torch.tensor([story[:-1]]), params, config, block=layer)
    assert logits_BTV[0].argmax(-1).tolist() == expected["tokens"]


def test_stories260k_tells_its_golden_story():
    expected = json.loads(tiny.data("stories260k/expected.json").read_text())
    config, params = read_llama2c(tiny.data("stories260k/stories260K.bin"))
    cache, story = Cache(config.max_seq_len), list(expected["prompt_tokens"])
    for _ in expected["tokens"]:
        logits_BTV = forward(torch.tensor([story[cache.length :]]), params, config, cache=cache)
        story.append(int(logits_BTV[0, -1].argmax()))
    assert story == expected["prompt_tokens"] + expected["tokens"]
