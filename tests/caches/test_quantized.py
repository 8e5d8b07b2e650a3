"""Keys and values in bf16, int8 and int4: what is stored, what comes out, and how little the logits change."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from llama3_scratch import load
from llama3_scratch.cache import Cache, Slots
from llama3_scratch.caches.paged import PagedRows
from llama3_scratch.caches.quantized import Bf16Slots, Int4Slots, Int8Slots, group_size, hadamard, vector_bytes
from llama3_scratch.errors import UsageError
from llama3_scratch.model import block, forward, fused_block
from llama3_scratch.native import kernels
from llama3_scratch.native.decode import NativeDecode, fast_decode
from llama3_scratch.stored import Params
from tests import tiny
from tests.batches import ragged_rows
from tests.compare import check, difference
from tests.forms import FORMS

CONFIG = replace(tiny.CONFIG, n_layers=2)
INTEGERS = [Int8Slots, Int4Slots]
# keys, values, and how far logits may be from those of a full cache in a tiny world of tamer weights
CACHES = {
    "bf16": (Bf16Slots, Bf16Slots, 0.005),
    "int8": (Int8Slots, Int8Slots, 0.02),
    "int4": (Int4Slots, Int4Slots, 0.3),
    "int8 and int4 in groups of 2": (Int8Slots, partial(Int4Slots, group=2), 0.12),
    "int4 values": (Slots, Int4Slots, 0.3),
}
T = 66


def kept(form, x_BTGK: torch.Tensor, **options):
    made = form(x_BTGK, **options)
    made.grow(x_BTGK.shape[1] + 2)
    made.put((slice(None), slice(0, x_BTGK.shape[1])), x_BTGK)
    return made


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("form", "group"), [(Int8Slots, 32), (Int8Slots, 8), (Int4Slots, 32), (Int4Slots, 8)])
def test_every_number_is_within_half_a_step(form, group, dtype):
    x_BTGK = normal(2, 5, 3, 64).to(dtype)
    got_BSGK = kept(form, x_BTGK, group=group).get(5)
    assert got_BSGK.dtype == dtype
    before, after = x_BTGK.float(), got_BSGK.float()
    if form is Int4Slots:
        before, after = hadamard(before), hadamard(after)
    step = before.unflatten(-1, (-1, group)).abs().amax(-1, keepdim=True) / form.top
    off = (after - before).unflatten(-1, (-1, group)).abs()
    slack = 1e-5 if dtype != torch.bfloat16 else form.top / 256  # bf16 rounds what comes out
    assert (off <= step * (0.5 + slack)).all()
    assert (off.amax(-1, keepdim=True) > 0.2 * step).any(), "it does round"


def test_int8_is_what_the_formula_says():
    x_BTGK = torch.tensor([[[[127.0, -1.0, 0.4, 63.6, 2.0, 0.5, -2.0, 1.0]]]])
    made = kept(Int8Slots, x_BTGK, group=4)
    assert made.values[0, 0, 0].tolist() == [127, -1, 0, 64, 127, 32, -127, 64]
    assert made.scales[0, 0, 0].tolist() == pytest.approx([1.0, 2 / 127])


def test_int4_packs_the_halves_of_a_group_below_and_above():
    x_BTGK = torch.tensor([[[[7.0, -7.0, 3.0, 0.0, 14.0, 2.0, -4.0, -14.0]]]])
    made = kept(Int4Slots, hadamard(x_BTGK), group=4)
    assert made.head_dim == 8 and made.values.dtype == torch.uint8
    assert [hex(byte) for byte in made.values[0, 0, 0].tolist()] == ["0xbf", "0x81", "0x6f", "0x19"]
    assert made.scales[0, 0, 0].tolist() == pytest.approx([1, 2])
    torch.testing.assert_close(hadamard(made.get(1)), x_BTGK)


@pytest.mark.parametrize("width", [64, 8, 48, 6])
def test_spreading_is_a_hadamard_matrix_its_own_inverse_and_keeps_dot_products(width):
    q, k = normal(2, 5, width).double()
    torch.testing.assert_close(hadamard(hadamard(q)), q, rtol=0, atol=1e-12)
    torch.testing.assert_close((hadamard(q) * hadamard(k)).sum(-1), (q * k).sum(-1), rtol=0, atol=1e-12)
    matrix, piece = hadamard(torch.eye(width).double()), width & -width
    assert torch.equal(matrix, matrix.T)
    whole = torch.block_diag(*[torch.ones(piece, piece)] * (width // piece)).double() / piece**0.5
    torch.testing.assert_close(matrix.abs(), whole, rtol=0, atol=1e-12)


def test_a_number_that_stands_out_leaves_the_others_alone():
    x_BTGK = normal(1, 50, 2, 64)
    x_BTGK[..., 5] += 30
    others = [i for i in range(64) if i != 5]

    def off(y_BSGK):
        return float((y_BSGK - x_BTGK)[..., others].pow(2).mean().sqrt())

    plain = x_BTGK.unflatten(-1, (-1, 32))
    scales = plain.abs().amax(-1, keepdim=True) / 7
    assert off(kept(Int4Slots, x_BTGK).get(50)) < 0.5 * off(((plain / scales).round() * scales).flatten(-2))


@pytest.mark.parametrize("form", INTEGERS)
def test_f214_a_group_of_zeros_comes_out_as_zeros(form):
    x_BTGK = normal(1, 2, 1, 64)
    x_BTGK[:, 0] = 0
    got_BSGK = kept(form, x_BTGK).get(4)
    assert got_BSGK[:, 0].eq(0).all() and got_BSGK[:, 1].any()
    assert got_BSGK[:, 2:].eq(0).all(), "slots that nobody wrote"


@pytest.mark.parametrize("value", [3.0, -0.007, 1e30])
@pytest.mark.parametrize("form", INTEGERS)
def test_f215_a_constant_group_comes_out_as_it_went_in(form, value):
    x_BTGK = torch.full((1, 1, 1, 32), value)
    torch.testing.assert_close(kept(form, x_BTGK).get(1), x_BTGK, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("form", [*INTEGERS, Bf16Slots, Slots])
def test_f216_what_is_no_number_comes_out_again(form, bad):
    x_BTGK = normal(1, 3, 1, 64)
    x_BTGK[0, 1, 0, 40] = bad
    got_BSGK = kept(form, x_BTGK).get(3)
    assert not got_BSGK[0, 1, 0, 40].isfinite()
    assert got_BSGK[0, [0, 2]].isfinite().all()
    assert got_BSGK[0, 1, 0, :32].isfinite().all() or form is Int4Slots, "which has spread it"


@pytest.mark.parametrize("value", [-0.0, 1e-45, -1e-40, 1e-38, 1e-36])
@pytest.mark.parametrize("form", INTEGERS)
def test_f217_negative_zeros_and_denormals_come_out_as_nearly_nothing(form, value):
    x_BTGK = torch.full((1, 1, 1, 32), value)
    assert (kept(form, x_BTGK).get(1) - x_BTGK).abs().max() <= 2e-36
    x_BTGK[..., 0] = 1.0
    torch.testing.assert_close(kept(form, x_BTGK).get(1), x_BTGK, rtol=1e-6, atol=1e-6)


def test_f213_a_group_must_divide_the_head():
    assert [group_size(width) for width in (64, 128, 48, 8)] == [32, 32, 48, 8]
    for form in INTEGERS:
        with pytest.raises(UsageError, match=r"^a group must divide the head's width, which is 64, got 48$"):
            form(torch.zeros(1, 0, 1, 64), group=48)
    with pytest.raises(UsageError, match="must be even"):
        Int4Slots(torch.zeros(1, 0, 1, 6), group=3)
    assert kept(Int8Slots, normal(1, 1, 1, 6), group=3).scales.shape == (1, 3, 1, 2)


def test_bytes_are_those_of_the_tensors():
    forms = {Slots: 256, Bf16Slots: 128, Int8Slots: 72, Int4Slots: 40, partial(Int4Slots, group=16): 48}
    assert {form: vector_bytes(form, 64, torch.float32) for form in forms} == forms
    cache = Cache(512, keys=Int8Slots, values=Int4Slots)
    forward(tiny.tokens(2, 5), tiny.params(), tiny.CONFIG, cache=cache)
    assert cache.n_bytes == 2 * 256 * 5 * 2 * (8 + 4 + 4 + 4), "rows, slots, layers, heads; K = 8 and a scale each"


def run(params: Params, cache: Cache, pieces: list[int], layer=block, dtype=torch.float64, start: int = 0):
    """logits_BTV of the tokens from `start` on, given in pieces of these lengths."""
    outs = []
    for length in pieces:
        piece = tiny.tokens(2, T)[:, start : start + length]
        outs.append(forward(piece, params, CONFIG, cache=cache, block=layer, dtype=dtype))
        start += length
    return torch.cat(outs, dim=1)


def cache_of(form: str, *, ragged: bool = False, limit: int = T) -> Cache | PagedRows:
    keys, values, _ = CACHES[form]
    if ragged:
        return ragged_rows(CONFIG, limit, 2, keys=keys, values=values, dtype=torch.float64)
    return Cache(limit, keys=keys, values=values)


@pytest.mark.parametrize("form", CACHES)
@pytest.mark.parametrize("weights", FORMS)
@pytest.mark.parametrize("ragged", [False, True], ids=["uniform", "ragged"])
@pytest.mark.parametrize("pieces", [[7] * 9 + [3], [T - 8, *[1] * 8]], ids=["sevens", "steps at the end"])
def test_f220_chunks_equal_one_call(form, weights, ragged, pieces):
    """In f64, where nothing but a number on the border between two integers could come out otherwise."""
    params = FORMS[weights](tiny.params(CONFIG))
    whole = run(params, cache_of(form), [T])
    check(run(params, cache_of(form, ragged=ragged), pieces, fused_block), whole, 1e-5)


@pytest.mark.parametrize("form", CACHES)
def test_the_logits_are_near_those_of_a_full_cache(form):
    params = FORMS["f64"](tiny.params(CONFIG, std=0.1))
    off = difference(run(params, cache_of(form), [T]), run(params, Cache(T), [T]))
    assert 1e-4 < off < CACHES[form][2]


@pytest.mark.parametrize("form", CACHES)
def test_f219_rewind_and_continue_equals_a_fresh_run(form):
    params = FORMS["f64"](tiny.params(CONFIG))
    cache = cache_of(form)
    run(params, cache, [40])
    cache.rewind(13)
    check(run(params, cache, [20, 1, 1], start=13), run(params, cache_of(form), [35])[:, 13:35], 1e-5)


@pytest.mark.parametrize("form", CACHES)
def test_f218_a_full_cache_refuses(form):
    params, cache = FORMS["f64"](tiny.params(CONFIG)), cache_of(form, limit=10)
    run(params, cache, [7, 3])
    with pytest.raises(UsageError, match=r"^the cache holds 10 tokens, 10 are in and 1 more were given$"):
        run(params, cache, [1], start=10)
    assert cache.length == 10


@pytest.mark.parametrize("form", CACHES)
def test_f223_padding_is_never_attended(form):
    """Whatever token pads the shorter row, all logits of real tokens are the same to the last bit."""
    params, (keys, values, _) = FORMS["f64"](tiny.params(CONFIG)), CACHES[form]
    outs = []
    for padding in (0, 66):
        tokens_BT = tiny.tokens(2, 23)
        tokens_BT[1, 9:] = padding
        cache = ragged_rows(CONFIG, 64, 2, keys=keys, values=values, dtype=torch.float64)
        prefill = forward(tokens_BT, params, CONFIG, cache=cache, block=block)
        cache.lengths = torch.tensor([23, 9])
        step = forward(torch.tensor([[5], [6]]), params, CONFIG, cache=cache, block=block)
        one = cache.pool.rows(cache.page_table_BP[1:].tolist(), [10])
        alone = forward(torch.tensor([[7]]), params, CONFIG, cache=one, block=block)
        outs.append((prefill[0], prefill[1, :9], step, alone, prefill[1, 9:]))
    *same, (ours, others) = zip(*outs, strict=True)
    assert all(torch.equal(a, b) for a, b in same) and not torch.equal(ours, others)


@pytest.mark.skipif(kernels.library() is None, reason="the kernels weren't built: no C compiler")
@pytest.mark.parametrize("level", kernels.LEVELS)
@pytest.mark.parametrize("form", CACHES)
def test_the_kernels_store_the_same_bytes(form, level):
    """One step in C and one in torch, after a prompt in torch: equal stores but for ties, and near logits."""
    if kernels.choose(level) is None:
        kernels.choose()
        pytest.skip(f"this processor has no {level}")
    params = tiny.params(CONFIG, std=0.12)
    step = fast_decode(params, CONFIG)
    assert isinstance(step, NativeDecode)
    ours, torchs = (cache_of(form) for _ in range(2))
    try:
        for cache in (ours, torchs):
            run(params, cache, [60], dtype=torch.float32)
        x_BTD = params["tok_embeddings.weight"][tiny.tokens(2, 3)]
        got = step(x_BTD, params, CONFIG, cache=ours)
        kernels.choose(kernels.TORCH)
        wanted = step(x_BTD, params, CONFIG, cache=torchs)
    finally:
        kernels.choose()
    check(got, wanted, 0.02 if form != "int4 values" else 0.05)
    for name, layer in ours.layers.items():
        for a, b in zip(layer, torchs.layers[name], strict=True):
            assert torch.equal(a.get(31), b.get(31)), "the prompt"
            assert a.values.dtype == b.values.dtype
            x, y = a.get(63).double(), b.get(63).double()
            near = (x - y).abs() <= 1e-5 * y.abs() + 1e-6
            assert near.double().mean() > 0.999 and x[:, 60:].any()


@pytest.mark.skipif(kernels.library() is None, reason="the kernels weren't built: no C compiler")
@pytest.mark.parametrize("form", INTEGERS)
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, 1e-40, 1e-36, torch.nan, torch.inf, 3e38])
def test_f214_f216_f217_the_kernels_store_odd_numbers_as_torch_does(form, value):
    """Keys and values that are one number throughout, brought about by a norm and weights of just that."""
    config = replace(CONFIG, n_layers=1, n_heads=6, n_kv_heads=2)
    params = tiny.params(config)
    for w in ("wk", "wv"):
        params[f"layers.0.attention.{w}.weight"] = torch.zeros(16, 48)
        params[f"layers.0.attention.{w}.weight"][:, 0] = value
    params["layers.0.attention_norm.weight"] = torch.ones(48)
    x_BTD = torch.zeros(1, 1, 48)
    x_BTD[..., 0] = 48**-0.5 * 1e3  # its norm is √48 · e₀, so that keys and values are √48 · value
    ours, torchs = (Cache(8, keys=form, values=form) for _ in range(2))
    step = fast_decode(params, config)
    assert isinstance(step, NativeDecode)
    step(x_BTD, params, config, cache=ours)
    kernels.choose(kernels.TORCH)
    try:
        step(x_BTD, params, config, cache=torchs)
    finally:
        kernels.choose()
    for a, b in zip(ours.layers["layers.0.attention"], torchs.layers["layers.0.attention"], strict=True):
        assert torch.equal(a.values, b.values)
        torch.testing.assert_close(a.scales, b.scales, rtol=1e-6, atol=1e-44, equal_nan=True)


@pytest.mark.slow
def test_int8_changes_the_real_models_distribution_by_less_than_a_thousandth(smollm2):
    """Mean KL divergence in nats of every next token of 1,024, each half after its own beginning."""
    checkpoint = load(smollm2)
    text = tiny.data("wikitext2.txt").read_text(encoding="utf-8")[:8000]
    assert checkpoint.tokenizer is not None
    windows_BT = torch.tensor(checkpoint.tokenizer.encode(text, bos=False, eos=False)[:1024]).view(2, 512)

    def logprobs(**forms):
        cache = Cache(512, **forms)
        return forward(windows_BT, checkpoint.params, checkpoint.config, cache=cache, dtype=torch.float32).log_softmax(
            -1
        )

    with torch.inference_mode():
        full = logprobs()

        def divergence(**forms):
            return float((full.exp() * (full - logprobs(**forms))).sum(-1).mean())

        assert divergence(keys=Bf16Slots, values=Bf16Slots) < 1e-4
        assert 1e-5 < divergence(keys=Int8Slots, values=Int8Slots) < 1e-3
        assert divergence(values=Int8Slots) < 1e-4
        assert 1e-3 < divergence(values=Int4Slots) < 0.012
        assert 0.01 < divergence(keys=Int4Slots) < 0.08, "0.2 without the spreading"
