"""A cached run gives the logits of a plain one: whatever the weights' form, the chunks, the rows' lengths."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch

from llama3_scratch.cache import GROWTH_SLOTS, NO_CACHE, Cache
from llama3_scratch.caches.paged import PagedRows
from llama3_scratch.errors import UsageError
from llama3_scratch.model import block, forward, fused_block
from llama3_scratch.stored import Params
from tests import tiny
from tests.batches import ragged_rows
from tests.compare import check
from tests.forms import FORMS, fitting

CONFIG = replace(tiny.CONFIG, n_layers=2)
T = 66
TOLERANCE = {"f64": 1e-12}  # of the activations' dtype, f32 for all others


@pytest.fixture(autouse=True)
def exact_products(torch_only):
    """The kernels round the inputs of weights in tiles, each time a little differently."""


@functools.cache
def made(form: str) -> Params:
    return FORMS[form](tiny.params(fitting(form, CONFIG)))


def dtype_of(form: str) -> torch.dtype:
    return torch.float64 if form == "f64" else torch.float32


@functools.cache
def uncached(form: str) -> torch.Tensor:
    return forward(tiny.tokens(2, T), made(form), fitting(form, CONFIG), dtype=dtype_of(form), block=block)


def run(form: str, cache: Cache, pieces: list[int], layer=block, *, start: int = 0) -> torch.Tensor:
    """logits_BTV of the tokens from `start` on, given in pieces of these lengths."""
    outs = []
    for length in pieces:
        piece = tiny.tokens(2, T)[:, start : start + length]
        outs.append(forward(piece, made(form), fitting(form, CONFIG), cache=cache, block=layer, dtype=dtype_of(form)))
        start += length
    return torch.cat(outs, dim=1)


CACHES = {
    "uniform": lambda limit, form: Cache(limit),
    "paged": lambda limit, form: ragged_rows(fitting(form, CONFIG), limit, 2, dtype=dtype_of(form)),
}
CHUNKS = {"whole": [T], "sevens": [7] * 9 + [3], "64 first": [64, 1, 1], "steps at the end": [T - 8, *[1] * 8]}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layer", [block, fused_block])
@pytest.mark.parametrize("make", CACHES.values(), ids=CACHES.keys())
@pytest.mark.parametrize("pieces", CHUNKS.values(), ids=CHUNKS.keys())
def test_chunks_equal_one_call(form, layer, make, pieces):
    check(run(form, make(T, form), pieces, layer), uncached(form), TOLERANCE.get(form, 2e-5))


@pytest.mark.parametrize("form", ["f64", "adaptors on int4"])
@pytest.mark.parametrize("make", CACHES.values(), ids=CACHES.keys())
def test_one_token_at_a_time_from_the_first(form, make):
    check(run(form, make(T, form), [1] * T, fused_block), uncached(form), TOLERANCE.get(form, 2e-5))


@pytest.mark.parametrize("form", FORMS)
def test_fused_without_a_cache(form):
    got = forward(
        tiny.tokens(2, T), made(form), fitting(form, CONFIG), cache=NO_CACHE, block=fused_block, dtype=dtype_of(form)
    )
    check(got, uncached(form), TOLERANCE.get(form, 2e-5))


@pytest.mark.parametrize("form", ["f64", "int4"])
def test_f219_rewind_and_continue_equals_a_fresh_run(form):
    cache = Cache(T)
    run(form, cache, [40])
    cache.rewind(13)
    assert cache.length == 13
    check(run(form, cache, [20, 1, 1], start=13), uncached(form)[:, 13:35], TOLERANCE.get(form, 2e-5))
    cache.rewind(0)
    check(run(form, cache, [T]), uncached(form), TOLERANCE.get(form, 2e-5))


@pytest.mark.parametrize("length", [-1, 6])
def test_rewind_only_to_what_was_seen(length):
    cache = Cache(8)
    run("f32", cache, [5])
    with pytest.raises(UsageError, match=rf"^can't rewind a cache of 5 tokens to {length}$"):
        cache.rewind(length)


def test_f218_a_full_cache_refuses():
    cache = Cache(10)
    run("f32", cache, [7, 3])
    with pytest.raises(UsageError, match=r"^the cache holds 10 tokens, 10 are in and 1 more were given$"):
        run("f32", cache, [1], start=10)
    assert cache.length == 10
    cache.rewind(9)
    run("f32", cache, [1], start=9)


def test_it_grows_by_blocks_up_to_its_limit():
    cache = Cache(GROWTH_SLOTS + 10)
    assert cache.n_bytes == 0
    run("f32", cache, [1])
    assert cache.n_bytes == CONFIG.kv_bytes(GROWTH_SLOTS, batch=2, element_bytes=4)
    tokens_BT = tiny.tokens(2, GROWTH_SLOTS + 10)
    cache.rewind(0)
    wanted = forward(tokens_BT, made("f32"), CONFIG)
    pieces = [
        forward(piece, made("f32"), CONFIG, cache=cache) for piece in tokens_BT.split([GROWTH_SLOTS - 1, 2, 9], dim=1)
    ]
    assert cache.n_bytes == CONFIG.kv_bytes(GROWTH_SLOTS + 10, batch=2, element_bytes=4)
    check(torch.cat(pieces, dim=1), wanted, 2e-5)


LENGTHS = [9, 1, 23, 16]


def ragged(padding: int, layer=block) -> tuple[torch.Tensor, torch.Tensor, PagedRows]:
    """A batch of prompts of LENGTHS, padded with one token, then three steps each: (prefill, steps, cache)."""
    params = made("f64")
    texts = [tiny.tokens(1, length + 3, seed=length)[0] for length in LENGTHS]
    prompts_BT = torch.full((len(LENGTHS), max(LENGTHS)), padding)
    for row, (text, length) in enumerate(zip(texts, LENGTHS, strict=True)):
        prompts_BT[row, :length] = text[:length]
    cache = ragged_rows(CONFIG, 64, len(LENGTHS), dtype=torch.float64)
    prefill = forward(prompts_BT, params, CONFIG, cache=cache, block=layer)
    cache.lengths = torch.tensor(LENGTHS)
    steps = [
        forward(torch.stack([text[length + i] for text, length in zip(texts, LENGTHS, strict=True)])[:, None],
                params, CONFIG, cache=cache, block=layer)
        for i in range(3)
    ]  # fmt: skip
    return prefill, torch.cat(steps, dim=1), cache


@pytest.mark.parametrize("layer", [block, fused_block])
def test_a_ragged_batch_equals_each_prompt_alone(layer):
    prefill, steps, cache = ragged(0, layer)
    assert cache.lengths.tolist() == [length + 3 for length in LENGTHS]
    for row, length in enumerate(LENGTHS):
        alone = forward(tiny.tokens(1, length + 3, seed=length), made("f64"), CONFIG, block=layer)[0]
        check(prefill[row, :length], alone[:length], 1e-12)
        check(steps[row], alone[length:], 1e-12)


def test_f223_padding_is_never_attended():
    """Whatever token pads, every logit of a real token is the same to the last bit."""
    (prefill, steps, _), (other_prefill, other_steps, _) = ragged(0), ragged(66)
    assert torch.equal(steps, other_steps)
    for row, length in enumerate(LENGTHS):
        assert torch.equal(prefill[row, :length], other_prefill[row, :length])
    assert not torch.equal(prefill, other_prefill)  # the padding's own logits do differ


def test_rows_can_be_any_of_the_pools_sequences():
    _, _, cache = ragged(0)
    pages = cache.page_table_BP.tolist()
    some = cache.pool.rows([pages[3], pages[1]], [19, 4])
    token = torch.tensor([[5], [6]])
    got = forward(token, made("f64"), CONFIG, cache=some, block=block)
    for row, length in enumerate((16, 1)):
        text = torch.cat([tiny.tokens(1, length + 3, seed=length), token[row : row + 1]], dim=1)
        check(got[row, 0], forward(text, made("f64"), CONFIG)[0, -1], 1e-12)


@pytest.mark.parametrize("layer", [block, fused_block])
def test_nothing_leaks_from_slots_that_nobody_wrote(layer):
    """Memory that torch hands out uninitialised is filled with NaN here, and 0 · NaN would be NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(1).isnan()
        prefill, steps, _ = ragged(0, layer)
    finally:
        torch.use_deterministic_algorithms(False)
    assert prefill.isfinite().all() and steps.isfinite().all()
