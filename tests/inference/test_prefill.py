"""Prompts and steps by the fast way, and whole answers to many prompts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from llama3_scratch.cache import Cache
from llama3_scratch.caches.quantized import Int4Slots, Int8Slots
from llama3_scratch.caches.sliding import SlidingCache
from llama3_scratch.checkpoint.load import load
from llama3_scratch.inference.answers import answers
from llama3_scratch.inference.fast_forward import FastForward
from llama3_scratch.inference.prefill import prefill, step
from llama3_scratch.inference.sample import sampler
from tests import tiny
from tests.batches import ragged_rows

CONFIG = replace(tiny.CONFIG, n_layers=2)


def test_answers_come_in_their_prompts_order(tmp_path):
    checkpoint = load(tiny.folder(tmp_path / "model"), needs_tokenizer=True)
    prompts = [[10 + i] * (1 + i) for i in range(7)]
    samplers = lambda: [sampler(temperature=1.0, seed=seed) for seed in range(7)]  # noqa: E731
    whole = answers(prompts, checkpoint, max_tokens=30, samplers=samplers())
    done: list[int] = []
    for batch in (1, 2, 5):
        assert (
            answers(prompts, checkpoint, max_tokens=30, samplers=samplers(), batch=batch, on_done=done.append) == whole
        )
    assert sorted(done) == sorted([*range(7)] * 3)
    assert answers([], checkpoint, max_tokens=3) == []


CACHES = {
    "uniform": lambda: Cache(60),
    "int8": lambda: Cache(60, keys=Int8Slots, values=Int8Slots),
    "sliding": lambda: SlidingCache(16, CONFIG, window=8),
}


@pytest.mark.parametrize("make", CACHES.values(), ids=CACHES)
def test_all_tensors_are_on_the_weights_device(make):
    """`meta` stands for an accelerator: torch refuses to mix it with the processor's tensors."""
    params = {name: weight.to("meta") for name, weight in tiny.params(CONFIG).items()}
    fast, cache = FastForward(params, CONFIG, dtype=torch.float32), make()
    prompt = tiny.tokens(1, 11, CONFIG)[0].tolist()
    with torch.inference_mode():
        logits_BTV = prefill(fast, cache, [prompt], chunk=4)
        assert logits_BTV.device.type == "meta" and logits_BTV.shape == (1, 1, CONFIG.vocab_size)
        for _ in range(8):
            assert step(fast, cache, [[5]]).device.type == "meta"
    assert all(slots.values.device.type == "meta" for layer in cache.layers.values() for slots in layer)


@pytest.mark.parametrize("forms", [{}, {"keys": Int4Slots, "values": Int8Slots}], ids=["floats", "int4 and int8"])
def test_pages_are_on_the_weights_device(forms):
    params = {name: weight.to("meta") for name, weight in tiny.params(CONFIG).items()}
    fast, rows = FastForward(params, CONFIG, dtype=torch.float32), ragged_rows(CONFIG, 90, 2, device="meta", **forms)
    with torch.inference_mode():
        for T in (70, 1, 1, 5):
            assert fast.hidden(tiny.tokens(2, T, CONFIG), rows).device.type == "meta"
