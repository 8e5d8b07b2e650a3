"""The kernels in C equal torch on every form, with every instruction set that this processor has."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch

from llama3_scratch import linear as linear_module
from llama3_scratch.cache import NO_CACHE, Cache, Slots
from llama3_scratch.caches.paged import PagedCache
from llama3_scratch.caches.quantized import Int4Slots, Int8Slots
from llama3_scratch.errors import UsageError
from llama3_scratch.inference.fast_forward import FastForward
from llama3_scratch.inference.sample import sampler
from llama3_scratch.linear import linear, matmul
from llama3_scratch.model import decode, embed, forward, fused_block
from llama3_scratch.native import kernels
from llama3_scratch.native.decode import Chunk, NativeDecode, fast_decode
from llama3_scratch.params.quantize import quantize
from llama3_scratch.stored import Floats, Tiles, stored
from tests import tiny
from tests.batches import ragged_rows, stream_all
from tests.compare import check, difference
from tests.forms import with_adaptors
from tests.native.worlds import (
    KEPT,
    ROW_FORMS,
    TILE_FORMS,
    TILED,
    WEIGHTS,
    WIDE,
    one,
    plain,
    rounded,
    wild,
    without_kernels,
)

pytestmark = pytest.mark.skipif(kernels.library() is None, reason="the kernels weren't built: no C compiler")


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 9, 16])
@pytest.mark.parametrize(("rows", "columns"), [(1, 8), (17, 40), (48, 96), (35, 200)])
@pytest.mark.parametrize("form", ROW_FORMS)
def test_products_with_rows(level, form, rows, columns, n):
    generator = torch.Generator().manual_seed(rows + n)
    weight, x = torch.randn(rows, columns, generator=generator), torch.randn(n, columns, generator=generator)
    params = one(form, weight)
    exact = x.double() @ stored(params, "w").floats(slice(None), torch.float64).T
    out = kernels.matmul(x, stored(params, "w"))
    assert out is not None
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 9, 16, 33])
@pytest.mark.parametrize(("rows", "columns"), [(16, 32), (48, 96), (112, 320)])
@pytest.mark.parametrize("form", TILE_FORMS)
def test_products_with_tiles(level, form, rows, columns, n):
    generator = torch.Generator().manual_seed(rows + n)
    weight, x = torch.randn(rows, columns, generator=generator), torch.randn(n, columns, generator=generator)
    x[0, 32:64] = 0  # a group without a scale
    params = one(form, weight)
    floats = stored(params, "w").floats(slice(None), torch.float64)
    out = kernels.matmul(x, stored(params, "w"))
    assert out is not None
    check(out, rounded(x.double()) @ floats.T, 1e-4)
    assert 1e-6 < difference(out, x.double() @ floats.T) < 5e-4, "the inputs are rounded, and no more"


@pytest.mark.parametrize("form", TILE_FORMS)
def test_rows_of_tiles_are_torchs(form):
    parts = one(form, torch.randn(48, 96, generator=torch.Generator().manual_seed(1)))
    weight, index = stored(parts, "w"), torch.tensor([[0, 47, 17], [16, 15, 31]])
    found = kernels.rows(index, weight, torch.float32)
    assert found is not None and torch.equal(found, weight.floats(index, torch.float32))
    assert (
        kernels.rows(index, weight, torch.float64) is None
        and kernels.rows(index, Floats(torch.ones(99, 2)), torch.float32) is None
    )
    assert kernels.rows(index[:0], weight, torch.float32).shape == (0, 3, 96)
    for bad in (-1, 48):
        with pytest.raises(UsageError, match="of a weight that has 48"):
            kernels.rows(torch.tensor([0, bad]), weight, torch.float32)


@pytest.mark.parametrize("form", TILE_FORMS)
def test_extreme_integers_stay_exact(level, form):
    """Sums of products in 16 bits are near their limit: the largest weights times the largest inputs, both signs."""
    x = torch.cat((torch.ones(1, 64), -torch.ones(1, 64), torch.ones(1, 64)))
    x[2, ::2] = -1
    values = torch.tensor([-128, 127, -1, 0], dtype=torch.int8).repeat_interleave(16)[:, None].expand(64, 64)
    scales = torch.ones(4, 2, 16, dtype=torch.float16)
    if form == "int8":
        params = {"w.weight": torch.zeros(4, 2, 8, 16, 4, dtype=torch.int8), "w.int8_scales": scales}
        params["w.weight"] += values.reshape(4, 16, 2, 8, 4).permute(0, 2, 3, 1, 4)
    else:
        nibbles = torch.tensor([0x00, 0xFF, 0x0F, 0xF0], dtype=torch.uint8)[:, None, None, None, None]
        params = {"w.weight": nibbles.expand(4, 2, 4, 16, 4).contiguous(), "w.int4_scales": scales}
        if form == "int4 with mins":
            params["w.int4_mins"] = -scales
    floats = stored(params, "w").floats(slice(None), torch.float64)
    out = kernels.matmul(x, stored(params, "w"))
    assert out is not None
    torch.testing.assert_close(out.double(), x.double() @ floats.T, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", [*ROW_FORMS, *TILE_FORMS])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_comes_out_again(level, form, bad):
    """F216: a NaN must never be rounded away."""
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    x[1, 40] = bad
    out = kernels.matmul(x, stored(one(form, torch.ones(16, 64)), "w"))
    assert out is not None
    assert out[[0, 2]].isfinite().all() and not out[1].isfinite().any()


def test_bad_shapes_never_reach_the_kernels():
    weight = stored({"w.weight": torch.randn(16, 32)}, "w")
    with pytest.raises(UsageError, match="a weight of 32 columns can't take 31 numbers"):
        kernels.matmul(torch.randn(2, 31), weight)
    params = {"w.weight": torch.randn(32, 16).T}
    assert kernels.weight(stored(params, "w")) is None, "strides that aren't those of rows"
    x = torch.randn(2, 32)
    check(linear(x, params, "w"), x @ params["w.weight"].T, 1e-5)
    assert kernels.weight(Floats(torch.randn(4, 4, dtype=torch.float64))) is None
    tiles = stored(one("int8", torch.randn(16, 32)), "w")
    assert isinstance(tiles, Tiles)
    assert kernels.weight(replace(tiles, scales=tiles.scales.float())) is None
    assert kernels.weight(replace(tiles, scales=tiles.scales[:, :, :8])) is None


@pytest.mark.parametrize(
    "form", ["f32", "bf16", "f16", "int8 rows", "int8 groups of 8", "int8", "int4", "int4 with mins"]
)
def test_rows_of_an_embedding_in_any_form(form):
    params = one(form, torch.randn(48, 64))
    described = kernels.weight(stored(params, "w"))
    assert described is not None
    index, out = torch.tensor([47, 0, 17, 17]), torch.empty(4, 64)
    kernels.require().rows(described, 4, index.data_ptr(), out.data_ptr())
    check(out, stored(params, "w").floats(index, torch.float32), 1e-7)


def test_tokens_that_the_vocabulary_hasnt():
    model = FastForward(wild(TILED), TILED)
    for token in (-1, TILED.vocab_size):
        with pytest.raises(UsageError, match=f"tokens {token} to {token}, the vocabulary has {TILED.vocab_size}"):
            model.logits(torch.tensor([[token]]), Cache(9))


def test_kernels_leave_alone_what_torch_must_see():
    x, weight = torch.randn(2, 32), Floats(torch.randn(16, 32))
    assert kernels.fits(x, weight)
    assert not kernels.fits(x.requires_grad_(), weight)
    assert not kernels.fits(torch.randn(2, 32), Floats(torch.randn(16, 32, requires_grad=True)))
    assert not kernels.fits(torch.randn(2, 32).bfloat16(), weight)
    assert not kernels.fits(torch.randn(17, 32), weight), "torch is faster with many"
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        assert matmul(torch.randn(2, 32), weight).shape == (2, 16)
    assert counter.get_total_flops() == 2 * 2 * 16 * 32


def native(tokens_BT, params, config, *, cache=NO_CACHE):
    """`forward` in f32 with the layers in C, and of a few tokens the embedding and the head too."""
    return FastForward(params, config, dtype=torch.float32).logits(tokens_BT, cache)


@pytest.fixture
def calls(monkeypatch):
    """The names of the C functions that are called, as they are called."""
    called = []
    library = kernels.require()

    class Watched:
        def __getattr__(self, name):
            called.append(name)
            return getattr(library, name)

    monkeypatch.setattr(kernels, "require", Watched)
    return called


SIZES = {"odd sizes": tiny.CONFIG, "tiles": TILED}
SIZED = [(form, size) for size in SIZES for form in WEIGHTS if size == "tiles" or form not in ("int8", "int4")]


@pytest.mark.parametrize("form, size", SIZED)
@pytest.mark.parametrize("ragged", [False, True], ids=["uniform", "ragged"])
def test_layers_in_c_are_the_layers_in_torch(level, form, size, ragged, calls):
    config = SIZES[size]
    params = WEIGHTS[form](wild(config))
    tokens_BT = tiny.tokens(2, 300, config)

    def run(way):
        cache = ragged_rows(config, 400, 2) if ragged else Cache(400)
        plain(tokens_BT[:, :280], params, config, cache=cache)
        if ragged:
            cache.lengths = torch.tensor([280, 130])  # more than a chunk of attention, and less
        pieces = ((280, 281), (281, 284), (284, 285))
        return torch.cat([way(tokens_BT[:, a:b], params, config, cache=cache) for a, b in pieces], dim=1)

    ours = run(native)
    assert calls.count("decode") == 3
    # Weights in tiles meet rounded inputs; all else differs by the order of f32 sums alone.
    check(ours, run(plain), 1e-3 if form.startswith(("int8", "int4")) else 2e-5)


@pytest.mark.parametrize("config", [TILED, WIDE], ids=["heads of 16", "heads of 64"])
@pytest.mark.parametrize("values", KEPT)
@pytest.mark.parametrize("keys", KEPT)
def test_every_form_of_keys_with_every_form_of_values(level, keys, values, config, calls):
    """What C stores of a token is what torch stores of it, and each reads what the other has stored. Heads of whole
    registers: narrower ones are read in plain C at every level."""
    config = replace(config, n_layers=1)  # a second layer's keys would differ by the order of the first one's sums
    params = wild(config)
    tokens_BT = tiny.tokens(2, 86, config)

    def run(way):
        cache = ragged_rows(config, 400, 2, keys=KEPT[keys], values=KEPT[values])
        plain(tokens_BT[:, :80], params, config, cache=cache)
        cache.lengths = torch.tensor([80, 70])
        outs = [way(tokens_BT[:, at : at + 2], params, config, cache=cache) for at in (80, 82, 84)]
        last = int(cache.page_table_BP[0, 1])  # of the first row, in which its last tokens are
        return torch.cat(outs, dim=1), cache.pool.layers["layers.0.attention"], last

    (ours, stored, page), (theirs, wanted, _) = run(native), run(plain)
    assert calls.count("decode") == 3
    check(ours, theirs, 3e-2 if {"int4", "int8"} & {keys, values} else 3e-3 if "bf16" in (keys, values) else 2e-5)
    for mine, other in zip(stored, wanted, strict=True):
        for name, tensor in mine.tensors().items():
            if name == "scales" or tensor.dtype == torch.float32:
                torch.testing.assert_close(tensor, other.tensors()[name], rtol=1e-4, atol=1e-4)
            else:  # but for a few numbers between two integers, which a sum in another order sends to the other one
                assert (tensor != other.tensors()[name]).float().mean() < 2e-3
        assert mine.get(64)[page, 16:22].any(-1).all()


@pytest.mark.parametrize("keep", KEPT.values(), ids=KEPT)
@pytest.mark.parametrize("of", [0, 1], ids=["key", "value"])
@pytest.mark.parametrize("slot", [0, 3, 70, 79])
@pytest.mark.parametrize("config", [TILED, WIDE], ids=["heads of 16", "heads of 64"])
def test_f216_one_bad_number_in_a_cache_reaches_the_output(level, keep, of, slot, config, calls):
    """Wherever it stands in a chunk of slots: no maximum and no exponential may lose it."""
    params = wild(config)
    cache = Cache(99, keys=keep, values=keep)
    plain(tiny.tokens(1, 80, config), params, config, cache=cache)
    bad_BTGK = torch.ones(1, 1, config.n_kv_heads, config.head_dim)
    bad_BTGK[0, 0, 1, 5] = float("nan")
    last = f"layers.{config.n_layers - 1}.attention"
    cache.layers[last][of].put((slice(None), slice(slot, slot + 1)), bad_BTGK)
    assert not native(tiny.tokens(1, 1, config), params, config, cache=cache).isfinite().all()
    assert "decode" in calls


@pytest.mark.parametrize("kept", [Slots, Int8Slots, Int4Slots], ids=["f32", "int8", "int4"])
@pytest.mark.parametrize("ragged", [False, True], ids=["uniform", "ragged"])
def test_a_long_prompt_goes_through_c_where_weights_are_in_tiles(level, kept, ragged, calls):
    params = quantize(wild(TILED), "int8")
    tokens_BT = tiny.tokens(2, 230, TILED)

    def run(way):
        forms = {"keys": kept, "values": kept}
        cache = ragged_rows(TILED, 400, 2, **forms) if ragged else Cache(400, **forms)
        first = way(tokens_BT[:, :150], params, TILED, cache=cache)
        if ragged:
            cache.lengths = torch.tensor([150, 70])
        return torch.cat((first, way(tokens_BT[:, 150:], params, TILED, cache=cache)), dim=1)

    ours = run(native)
    assert calls.count("decode") == 2
    wanted = run(plain)
    off_BT = (ours - wanted).abs().mean(-1) / wanted.std()
    # A number near the edge between two integers may become either, and what follows from it differs by that step.
    assert off_BT.median() <= {Slots: 1e-4, Int8Slots: 5e-3, Int4Slots: 5e-2}[kept]
    assert off_BT.max() <= {Slots: 1e-3, Int8Slots: 0.03, Int4Slots: 0.4}[kept]


def test_rounded_inputs_are_all_that_differs_in_tiles(level, monkeypatch):
    """Torch with every input of a product rounded to int8 in groups of 32 is what the kernels compute."""
    params = quantize(wild(TILED), "int8")
    tokens_BT = tiny.tokens(1, 40, TILED)

    def run(way):
        cache = Cache(64)
        plain(tokens_BT[:, :39], params, TILED, cache=cache)
        return way(tokens_BT[:, 39:], params, TILED, cache=cache)

    ours = run(native)
    real = linear_module.matmul
    monkeypatch.setattr(linear_module, "matmul", lambda x, weight: real(rounded(x), weight))
    caches = Cache(64), Cache(64)
    # The prompt's keys come from inputs that weren't rounded, on both sides.
    with monkeypatch.context() as exact:
        exact.setattr(linear_module, "matmul", real)
        plain(tokens_BT[:, :39], params, TILED, cache=caches[0])
    # Not to the last digits: a sum that comes out otherwise in the last digit can round to the next integer.
    check(ours, plain(tokens_BT[:, 39:], params, TILED, cache=caches[0]), 5e-4)


def test_long_caches_are_read_in_chunks_that_add_up(level):
    config = replace(TILED, n_layers=1)
    params = wild(config)
    tokens_BT = tiny.tokens(1, 1025, config)

    def run(way):
        cache = Cache(2000)
        forward(tokens_BT[:, :1024], params, config, cache=cache)
        return way(tokens_BT[:, 1024:], params, config, cache=cache)

    check(run(native), run(plain), 2e-5)


def test_scores_of_any_size_overflow_nothing(level):
    """A softmax of scores in the thousands is a choice, in C too."""
    config = replace(TILED, n_layers=1)
    params = wild(config)
    for w in ("wq", "wk"):
        params[f"layers.0.attention.{w}.weight"] *= 50

    def run(way):
        cache = Cache(64)
        plain(tiny.tokens(1, 30, config)[:, :29], params, config, cache=cache)
        return way(tiny.tokens(1, 30, config)[:, 29:], params, config, cache=cache)

    check(run(native), run(plain), 1e-4)


def test_a_cache_may_change_hands_grow_and_lose_rows(level, calls):
    """Addresses are looked up anew whenever the tensors behind them are others."""
    params = wild(TILED)
    step = fast_decode(params, TILED)
    caches = [Cache(600), Cache(600)]
    tokens_BT = tiny.tokens(3, 300, TILED)
    for cache in caches:
        plain(tokens_BT[:, :254], params, TILED, cache=cache)

    def both(tokens_BT):
        x_BTD = embed(tokens_BT, params, "tok_embeddings")
        ours = step(x_BTD, params, TILED, cache=caches[0])
        with without_kernels():
            check(ours, decode(x_BTD, params, TILED, cache=caches[1]), 2e-5)

    for position in range(254, 259):  # past the first block of slots
        both(tokens_BT[:, position : position + 1])
    for cache in caches:
        cache.keep([2, 0])
    both(tokens_BT[[2, 0], 259:260])
    caches.reverse()
    both(tokens_BT[[2, 0], 260:261])
    assert calls.count("decode") == 7


def test_what_the_kernels_cant_do_goes_to_torch(monkeypatch, calls):
    params = wild(TILED)
    step = fast_decode(params, TILED)
    assert isinstance(step, NativeDecode)
    x_BTD = embed(tiny.tokens(2, 20, TILED), params, "tok_embeddings")
    wanted = decode(x_BTD, params, TILED)
    check(step(x_BTD, params, TILED), wanted, 1e-9)  # no cache
    check(step(x_BTD, params, TILED, cache=Cache(99)), wanted, 1e-5)  # too many tokens
    double = {name: weight.double() for name, weight in params.items()}
    check(step(x_BTD[:, :1].double(), double, TILED, cache=Cache(9)), wanted[:, :1], 1e-5)
    x_BTD.requires_grad_()
    assert step(x_BTD[:, :1], params, TILED, cache=Cache(9)).requires_grad
    assert "decode" not in calls
    assert fast_decode(with_adaptors(params), TILED) is decode
    assert fast_decode(with_adaptors(params, dora=True), TILED) is decode
    assert fast_decode(double, TILED) is decode
    assert fast_decode(params | {"layers.1.attention.wq.weight": torch.randn(48, 96)}, TILED) is decode
    monkeypatch.setattr(kernels, "library", lambda: None)
    assert fast_decode(params, TILED) is decode


@pytest.mark.parametrize("form", ["f32", "int8"])
def test_stream_takes_the_kernels_on_its_own(form, calls):
    params = WEIGHTS[form](wild(TILED))
    prompts = [tiny.tokens(1, length, TILED)[0].tolist() for length in (3, 11, 6)]

    def run(prompts, **more):
        options = {"samplers": [sampler() for _ in prompts], "max_tokens": 12, "dtype": torch.float32}
        return [(step.row, step.token) for step in stream_all(prompts, params, TILED, **options, **more)]

    together = run(prompts)
    assert calls.count("decode") >= 11 + (form == "int8"), "with tiles the prompts too"
    if form == "f32":
        assert together == run(prompts, block=fused_block)
    # Each row as if alone: inputs are rounded row by row.
    for row, prompt in enumerate(prompts):
        assert [token for of, token in together if of == row] == [token for _, token in run([prompt])]


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_any_number_of_threads(threads):
    before = torch.get_num_threads()
    weight, x = torch.randn(160, 96), torch.randn(3, 96)
    try:
        torch.set_num_threads(threads)
        for _ in range(50):
            check(matmul(x, Floats(weight)), x @ weight.T, 1e-5)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("form", ["int8", "f32"])
@pytest.mark.parametrize("tokens", [1, 5, 16, 20, 31])
def test_more_threads_than_tokens(form, tokens, calls):
    """Each thread's part of the attention is its own, however few or many the tokens are."""
    params, before = WEIGHTS[form](wild(TILED)), torch.get_num_threads()
    tokens_BT = tiny.tokens(1, 300 + tokens, TILED)
    try:
        torch.set_num_threads(32)
        for _ in range(20):
            caches = Cache(400), Cache(400)
            for cache in caches:
                plain(tokens_BT[:, :300], params, TILED, cache=cache)
            x_BTD = embed(tokens_BT[:, 300:], params, "tok_embeddings", dtype=torch.float32)
            ours = fast_decode(params, TILED)(x_BTD, params, TILED, cache=caches[0])
            with without_kernels():
                check(ours, decode(x_BTD, params, TILED, cache=caches[1]), 1e-3)
    finally:
        torch.set_num_threads(before)
    assert calls.count("decode") == (20 if form == "int8" or tokens <= kernels.MAX_FLOAT_INPUTS else 0)


class Doubled(Slots):
    """A form of one's own, which C doesn't know."""

    def put(self, index, x_BTGK):
        super().put(index, 2 * x_BTGK)

    def get(self, span):
        return super().get(span) / 2


class Counting(Cache):
    """A cache that keeps things in a way of its own."""

    by_position = False
    extended = 0

    def extend(self, name, k_BTGK, v_BTGK):
        self.extended += 1
        return super().extend(name, k_BTGK, v_BTGK)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Cache(64, keys=Doubled),
        lambda: Cache(64, values=Doubled),
        lambda: Counting(64),
        lambda: strided(Cache(64)),
    ],
    ids=["keys of one's own", "values of one's own", "a cache of one's own", "other strides"],
)
def test_a_cache_that_c_doesnt_know_goes_to_torch(make, calls):
    params = wild(TILED)
    tokens_BT = tiny.tokens(2, 9, TILED)
    cache, wanted = make(), Cache(64)
    for each in (cache, wanted):
        plain(tokens_BT[:, :8], params, TILED, cache=each)
    model = FastForward(params, TILED, dtype=torch.float32)
    check(model.logits(tokens_BT[:, 8:], cache), plain(tokens_BT[:, 8:], params, TILED, cache=wanted), 1e-5)
    assert "decode" not in calls and cache.length == 9


def strided(cache):
    """The cache, with room whose rows and slots lie the other way round."""
    for index in range(TILED.n_layers):
        like_BTGK = torch.zeros(2, 1, TILED.n_kv_heads, TILED.head_dim)
        for kept in cache.room(f"layers.{index}.attention", 64, like_BTGK):
            kept.values = kept.values.transpose(0, 1).contiguous().transpose(0, 1)
    return cache


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("keep", KEPT.values(), ids=KEPT)
def test_a_cache_of_other_rows_is_refused(rows, keep):
    params = wild(TILED)
    cache = Cache(64, keys=keep, values=keep)
    native(tiny.tokens(rows, 3, TILED), params, TILED, cache=cache)
    for way in (native, plain):
        with pytest.raises(UsageError, match=f"a cache of {rows} rows got 2; take one for each batch"):
            way(tiny.tokens(2, 1, TILED), params, TILED, cache=cache)
    assert cache.length == 3


def test_two_callers_at_once_wait_for_each_other():
    params = one("int8", torch.randn(160, 96))
    x = torch.randn(4, 96)
    wanted = matmul(x, stored(params, "w"))
    wrong = []

    def call():
        for _ in range(200):
            out = matmul(x, stored(params, "w"))
            if not torch.equal(out, wanted):
                wrong.append(out)

    callers = [threading.Thread(target=call) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_starts_threads_of_its_own():
    weight, x = Floats(torch.randn(160, 96)), torch.randn(1, 96)
    wanted = matmul(x, weight)
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(matmul(x, weight), wanted) else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_forks_while_others_compute_give_children_that_compute():
    """Each child is forked from amid the jobs of two threads; it may have to wait for one, and then has a pool."""
    params = WEIGHTS["int8"](wild(TILED))
    model = FastForward(params, TILED, dtype=torch.float32)
    tokens_BT, before = tiny.tokens(1, 5, TILED), torch.get_num_threads()
    ended, counts = threading.Event(), [0, 0]
    torch.set_num_threads(3)
    wanted = model.logits(tokens_BT, Cache(9))

    def compute(number):
        torch.set_num_threads(3)
        while not ended.is_set():
            model.logits(tokens_BT, Cache(9))
            counts[number] += 1

    callers = [threading.Thread(target=compute, args=(number,)) for number in range(2)]
    try:
        for caller in callers:
            caller.start()
        for _ in range(30):
            child = os.fork()
            if child == 0:
                os._exit(0 if torch.equal(model.logits(tokens_BT, Cache(9)), wanted) else 1)
            assert exit_code(child, 30) == 0
        assert min(counts) > 0
    finally:
        ended.set()
        for caller in callers:
            caller.join()
        torch.set_num_threads(before)
    assert torch.equal(model.logits(tokens_BT, Cache(9)), wanted)


def exit_code(child: int, seconds: float) -> int | None:
    """Of a child process; None, and it is killed, where it takes longer than that."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


@pytest.mark.skipif(kernels.chosen() is None, reason="the kernels weren't built: no C compiler")
def test_one_model_serves_threads_with_caches_of_their_own():
    """Threads that take turns at every bytecode, each with other rows, another length and another form of cache."""
    params = WEIGHTS["int8"](wild(TILED))
    kept = [KEPT["as it comes"], KEPT["int8"], KEPT["bf16"]]

    def told(model: FastForward, number: int) -> torch.Tensor:
        cache = Cache(1200, keys=kept[number], values=kept[number])
        tokens_BT = tiny.tokens(
            number + 1, 4 + 1030 * (number == 2), TILED
        )  # the last needs a longer table of rotations
        steps = [tokens_BT[:, :-4], *tokens_BT[:, -4:].split(1, dim=1)]
        return torch.cat([model.logits(step_BT, cache) for step_BT in steps if step_BT.shape[1]], dim=1)[:, -4:]

    wanted = [told(FastForward(params, TILED, dtype=torch.float32), number) for number in range(3)]
    wrong: list[object] = []

    def call(model: FastForward, number: int, together: threading.Barrier):
        together.wait()
        try:
            for _ in range(1 if number == 2 else 20):
                if not torch.equal(told(model, number), wanted[number]):
                    wrong.append(number)
        except Exception as error:
            wrong.append(error)

    switched = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(10):
            model, together = FastForward(params, TILED, dtype=torch.float32), threading.Barrier(3)
            callers = [threading.Thread(target=call, args=(model, number, together)) for number in range(3)]
            for caller in callers:
                caller.start()
            for caller in callers:
                caller.join()
    finally:
        sys.setswitchinterval(switched)
    assert not wrong


REPOINTED = {
    "data": lambda weight: setattr(weight, "data", 3 * weight.data),
    "set_": lambda weight: weight.set_((3 * weight).clone()),
    "the same memory, transposed": lambda weight: setattr(weight, "data", weight.data.T),
    "in place": lambda weight: weight.mul_(3),
}


def in_a_cache(model: FastForward, tokens_BT: torch.Tensor) -> torch.Tensor:
    return model.logits(tokens_BT, Cache(9))[0, -1]


def in_pages(model: FastForward, tokens_BT: torch.Tensor) -> torch.Tensor:
    return model.chunks([Chunk(tokens_BT[0].tolist(), 0, [1])], PagedCache(TILED, 2))[0]


@pytest.mark.skipif(kernels.chosen() is None, reason="the kernels weren't built: no C compiler")
@pytest.mark.parametrize("last", [in_a_cache, in_pages])
@pytest.mark.parametrize("length", [1, 4])
@pytest.mark.parametrize("how", REPOINTED)
def test_a_weight_with_other_memory_is_read_there_at_the_next_prompt(how, length, last):
    """A prompt of one token too."""
    params = dict(wild(TILED))
    square_DD = torch.randn(TILED.dim, TILED.dim, generator=torch.Generator().manual_seed(3)) / 10
    params["layers.1.attention.wo.weight"] = square_DD
    model = FastForward(params, TILED, dtype=torch.float32)
    tokens_BT = tiny.tokens(1, length, TILED)
    before = last(model, tokens_BT)
    with torch.no_grad():
        REPOINTED[how](square_DD)
    after = last(model, tokens_BT)
    check(after, plain(tokens_BT, params, TILED)[0, -1], 1e-4)
    assert difference(after, before) > 0.1


@pytest.mark.skipif(kernels.chosen() is None, reason="the kernels weren't built: no C compiler")
def test_params_that_others_change_are_noticed():
    """A tensor put in another's place at once, new memory of the same tensor at the next prompt."""
    config = replace(tiny.CONFIG, n_layers=1)
    params = dict(tiny.params(config))
    model = FastForward(params, config, dtype=torch.float32)
    tokens_BT = tiny.tokens(1, 3, config)

    def equal(T: int) -> bool:
        part_BT = tokens_BT[:, :T]
        return torch.allclose(model.logits(part_BT, Cache(9)), forward(part_BT, params, config), rtol=1e-3, atol=1e-3)

    with torch.inference_mode():
        assert equal(1) and equal(3)
        params["norm.weight"] = 3 * params["norm.weight"]
        assert equal(1)
        params["layers.0.ffn_norm.weight"].data = 5 * params["layers.0.ffn_norm.weight"]
        assert equal(3) and equal(1)
