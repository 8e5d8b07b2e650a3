"""The cache that never ends: what it keeps when it's full, where that stands then, and how the model goes on."""

from __future__ import annotations

import pytest
import torch

from llama3_scratch import load
from llama3_scratch.cache import Cache, Slots
from llama3_scratch.caches.quantized import Bf16Slots, Int4Slots, Int8Slots
from llama3_scratch.caches.sliding import SlidingCache
from llama3_scratch.errors import UsageError
from llama3_scratch.inference.sample import sampler
from llama3_scratch.model import forward, rotate, rotations
from tests import tiny
from tests.batches import stream_all

CONFIG = tiny.CONFIG
NAME = "layers.0.attention"


def unturned(length: int) -> torch.Tensor:
    """Keys before RoPE: k_BTGK in f64."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, length, 2, 8, generator=generator, dtype=torch.float64)


def turned(k_BTGK: torch.Tensor, first: int) -> torch.Tensor:
    positions_BT = torch.arange(first, first + k_BTGK.shape[1])[None]
    return rotate(k_BTGK, rotations(positions_BT, CONFIG, torch.float64))


@pytest.mark.parametrize("sinks", [0, 4])
def test_a_kept_key_is_turned_as_if_it_had_been_seen_where_it_stands_now(sinks):
    """RoPE by p, then by −shift, is RoPE by p − shift: to the last digits of f64, over several slides."""
    plain_BTGK, cache = unturned(60), SlidingCache(20, CONFIG, window=9, sinks=sinks)
    seen: list[int] = []  # which token stands in each slot
    for token in range(60):
        position = int(cache.positions(1, torch.device("cpu")))
        if cache.length < len(seen):
            seen = [*seen[:sinks], *seen[-9:]]
        assert position == cache.length == len(seen) == cache.span(1) - 1
        k_BTGK = plain_BTGK[:, token : token + 1]
        cache.extend(NAME, turned(k_BTGK, position), k_BTGK)
        cache.advance(1)
        seen.append(token)
        keys, values = (kept.get(cache.length) for kept in cache.layers[NAME])
        torch.testing.assert_close(keys, turned(plain_BTGK[:, seen], 0), rtol=0, atol=1e-12)
        assert torch.equal(values, plain_BTGK[:, seen])
    assert cache.dropped == 60 - cache.length > 30
    assert seen[:sinks] == list(range(sinks)) and seen[-9:] == list(range(51, 60))


@pytest.mark.parametrize("form", [Bf16Slots, Int8Slots, Int4Slots])
def test_short_forms_slide_too_and_are_rounded_once_more(form):
    plain_BTGK, cache = unturned(25), SlidingCache(20, CONFIG, window=9, keys=form, values=form)
    fresh = Cache(20, keys=form, values=form)
    for start, stop in ((0, 20), (20, 25)):
        first = int(cache.positions(stop - start, torch.device("cpu"))[0, 0])
        cache.extend(NAME, turned(plain_BTGK[:, start:stop], first), plain_BTGK[:, start:stop])
        cache.advance(stop - start)
    kept_BTGK = plain_BTGK[:, [*range(4), *range(11, 25)]]
    fresh.extend(NAME, turned(kept_BTGK, 0), kept_BTGK)
    (keys, values), (wanted_keys, wanted_values) = cache.layers[NAME], fresh.layers[NAME]
    assert torch.equal(values.get(18), wanted_values.get(18)), "values move as they are"
    step = {Bf16Slots: 2 / 256, Int8Slots: 1 / 127, Int4Slots: 1 / 7}[form]
    off = (keys.get(18) - wanted_keys.get(18)).norm(dim=-1) / wanted_keys.get(18).norm(dim=-1)
    assert 0 < off.max() <= 1.5 * step and off[:, :4].max() == 0


def test_nothing_slides_before_the_cache_is_full():
    tokens_BT = tiny.tokens(1, 20)
    cache = SlidingCache(20, CONFIG, window=9)
    pieces = [forward(piece, tiny.params(), CONFIG, cache=cache) for piece in tokens_BT.split(7, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, 1), forward(tokens_BT, tiny.params(), CONFIG), rtol=1e-3, atol=1e-3)
    assert (cache.dropped, cache.length) == (0, 20)
    forward(tokens_BT[:, :1], tiny.params(), CONFIG, cache=cache)
    assert (cache.dropped, cache.length) == (7, 14)


@pytest.mark.parametrize("window, sinks", [(0, 4), (16, 4), (10, 10), (5, -1)])
def test_bad_sizes_are_refused(window, sinks):
    with pytest.raises(UsageError, match=r"^a sliding cache of 20 slots keeps .* a slot or more left for new ones$"):
        SlidingCache(20, CONFIG, window=window, sinks=sinks)


def test_more_tokens_than_it_can_make_room_for_are_refused():
    cache = SlidingCache(20, CONFIG, window=9)
    forward(tiny.tokens(1, 18), tiny.params(), CONFIG, cache=cache)
    with pytest.raises(UsageError, match=r"^the cache holds 20 tokens, 13 are in and 8 more were given$"):
        forward(tiny.tokens(1, 8), tiny.params(), CONFIG, cache=cache)


@pytest.mark.parametrize("form", [Slots, Int8Slots])
def test_an_answer_goes_on_past_the_context_until_max_tokens(form):
    cache = SlidingCache(30, CONFIG, window=12, keys=form, values=form)
    options = {"samplers": [sampler()], "max_tokens": 100, "max_seq_len": 30}
    steps = list(stream_all([[1, 2, 3]], tiny.params(), CONFIG, cache=cache, **options))
    assert len(steps) == 100 and steps[-1].finish_reason == "length"
    assert all(step.logits_V.isfinite().all() for step in steps)
    assert cache.dropped + cache.length == 102 and cache.length <= 30
    before = list(stream_all([[1, 2, 3]], tiny.params(), CONFIG, **options))
    assert len(before) == 27, "without it the context ends the answer"
    assert [step.token for step in before] == [step.token for step in steps[:27]] or form is Int8Slots


@pytest.mark.slow
def test_sinks_keep_the_real_model_in_its_mind(smollm2):
    """Mean loss of 600 tokens, one at a time through 128 slots: with four sinks hardly worse than with all in sight."""
    checkpoint = load(smollm2)
    text = tiny.data("wikitext2.txt").read_text(encoding="utf-8")[:6000]
    assert checkpoint.tokenizer is not None
    ids = checkpoint.tokenizer.encode(text, bos=False, eos=False)[:600]

    def loss(cache):
        logits = [
            forward(torch.tensor([[id]]), checkpoint.params, checkpoint.config, cache=cache, dtype=torch.float32)[0]
            for id in ids[:-1]
        ]
        return float(torch.nn.functional.cross_entropy(torch.cat(logits)[128:], torch.tensor(ids[129:])))

    with torch.inference_mode():
        whole = loss(Cache(600))
        with_sinks, without = (loss(SlidingCache(128, checkpoint.config, window=60, sinks=n)) for n in (4, 0))
    assert whole < with_sinks < whole + 0.5 < without
