"""Rows that join a batch and leave it at any time get what each prompt gets alone: the ground of an engine."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache as remembered

import pytest
import torch

from llama3_scratch.cache import Cache, Slots
from llama3_scratch.caches.quantized import Bf16Slots, Int4Slots, Int8Slots
from llama3_scratch.caches.ragged import RaggedCache
from llama3_scratch.caches.sliding import SlidingCache
from llama3_scratch.checkpoint.load import load
from llama3_scratch.errors import UsageError
from llama3_scratch.inference.answers import answers
from llama3_scratch.inference.prefill import prefill, step
from llama3_scratch.inference.sample import sampler
from llama3_scratch.inference.stream import stream
from llama3_scratch.model import fused_block
from llama3_scratch.native import kernels
from llama3_scratch.native.decode import FastForward
from tests import tiny
from tests.compare import check

CONFIG = replace(tiny.CONFIG, n_layers=2)
FORMS = {
    "floats": (Slots, Slots),
    "bf16": (Bf16Slots, Bf16Slots),
    "int8": (Int8Slots, Int8Slots),
    "int4": (Int4Slots, Int4Slots),
    "keys int8, values int4": (Int8Slots, Int4Slots),
}
PROMPTS = [tiny.tokens(1, length, CONFIG, seed=length)[0].tolist() for length in (3, 1, 40, 11, 19, 2, 7, 28, 5, 13)]


def model(dtype: torch.dtype, *, native: bool) -> FastForward:
    """In f64 and by torch alone a row's numbers don't depend on the others but for rounding of the last digits."""
    params = {name: weight.to(dtype) for name, weight in tiny.params(CONFIG).items()}
    return FastForward(params, CONFIG, dtype=dtype, block=None if native else fused_block)


@remembered
def alone(form: str, native: bool, dtype: torch.dtype) -> list[tuple[list[int], torch.Tensor]]:
    """Each prompt's twenty next tokens with the logits that gave them, in a cache of its own."""
    keys, values = FORMS[form]
    found = []
    with torch.inference_mode():
        for prompt in PROMPTS:
            cache = RaggedCache(90, 1, keys=keys, values=values)
            one = model(dtype, native=native)
            logits_1TV, ids, seen = prefill(one, cache, [prompt]), [], []
            for _ in range(20):
                seen.append(logits_1TV[0, -1])
                ids.append(int(seen[-1].argmax()))
                logits_1TV = step(one, cache, [ids[-1:]])
            found.append((ids, torch.stack(seen)))
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("native", "dtype"),
    [
        (False, torch.float64),
        pytest.param(
            True, torch.float32, marks=pytest.mark.skipif(kernels.library() is None, reason="the kernels weren't built")
        ),
    ],
    ids=["torch in f64", "C"],
)
def test_rows_that_join_and_leave_at_random_say_what_each_says_alone(form, native, dtype, seed):
    keys, values = FORMS[form]
    generator, fast = random.Random(seed), model(dtype, native=native)
    wanted = alone(form, native, dtype)
    cache = RaggedCache(90, 0, keys=keys, values=values)
    rows: list[int] = []  # the prompt in each row of the cache
    said: dict[int, list[int]] = {}
    waiting = generator.sample(range(len(PROMPTS)), len(PROMPTS))

    def take(prompt, logits_V):
        ids, logits_NV = wanted[prompt]
        check(logits_V, logits_NV[len(said[prompt])], 1e-11 if dtype == torch.float64 else 2e-3)
        said[prompt].append(int(logits_V.argmax()))
        assert said[prompt] == ids[: len(said[prompt])]

    with torch.inference_mode():
        while waiting or rows:
            if waiting and (not rows or generator.random() < 0.4):
                joining = [waiting.pop() for _ in range(min(len(waiting), generator.randint(1, 3)))]
                fresh = cache.fresh(len(joining))
                logits_BTV = prefill(fast, fresh, [PROMPTS[prompt] for prompt in joining], chunk=8)
                replaced = generator.sample(range(len(rows)), min(len(rows), generator.randint(0, len(joining))))
                places = [*replaced, *range(len(rows), len(rows) + len(joining) - len(replaced))]
                cache.insert(places, fresh)
                rows += [-1] * (len(joining) - len(replaced))
                for place, prompt, logits_TV in zip(places, joining, logits_BTV, strict=True):
                    rows[place], said[prompt] = prompt, []
                    take(prompt, logits_TV[-1])
            going = [row for row, prompt in enumerate(rows) if len(said[prompt]) < 20 and generator.random() < 0.95]
            if len(going) < len(rows):
                generator.shuffle(going)
                cache.keep(going)
                rows = [rows[row] for row in going]
            if rows:
                for prompt, logits_TV in zip(rows, step(fast, cache, [said[row][-1:] for row in rows]), strict=True):
                    take(prompt, logits_TV[-1])
    assert len(said) == len(PROMPTS) and max(map(len, said.values())) > 5


@pytest.mark.parametrize("batch", [1, 2, 3, 9])
@pytest.mark.parametrize("form", ["floats", "int8"])
def test_prompts_that_wait_for_a_row_are_answered_as_alone(form, batch):
    keys, values = FORMS[form]
    params = {name: weight.double() for name, weight in tiny.params(CONFIG).items()}
    ends = [3, 1, 20, 7, 7, 2, 15, 1, 4, 20]
    cache = RaggedCache(90, batch, keys=keys, values=values)
    said: list[list[int]] = [[] for _ in PROMPTS]
    reasons = {}
    options = {"samplers": [sampler()] * len(PROMPTS), "max_tokens": 20}
    for one in stream(
        PROMPTS, params, CONFIG, cache=cache, stop=lambda row, _: len(said[row]) + 1 == ends[row], **options
    ):
        said[one.row].append(one.token)
        reasons[one.row] = one.finish_reason
        assert cache.batch <= batch
    wanted = alone(form, False, torch.float64)
    assert said == [ids[:n] for (ids, _), n in zip(wanted, ends, strict=True)]
    assert set(reasons.values()) == {"stop"}


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


def test_what_cannot_be_inserted_is_refused():
    cache = RaggedCache(20, 2)
    fast = model(torch.float32, native=False)
    with torch.inference_mode():
        prefill(fast, cache, [[1, 2], [3]])
        one = cache.fresh(1)
        prefill(fast, one, [[4, 5, 6]])
        for rows in ([3], [-1], [0, 1], []):
            with pytest.raises(UsageError, match="1 rows go into as many of a cache of 2, or right behind them"):
                cache.insert(rows, one)
        cache.insert([2], one)
        assert cache.lengths.tolist() == [2, 1, 3] and cache.length == 3
        with pytest.raises(UsageError, match="the cache holds 2 tokens, a row of 3 was given"):
            RaggedCache(2, 1).insert([0], one)
        with pytest.raises(UsageError, match="of the same form"):
            RaggedCache(20, 1, keys=Int8Slots).insert([0], one)


CACHES = {
    "uniform": lambda: Cache(60),
    "int8": lambda: Cache(60, keys=Int8Slots, values=Int8Slots),
    "sliding": lambda: SlidingCache(16, CONFIG, window=8),
    "ragged": lambda: RaggedCache(60, 3),
    "ragged int4": lambda: RaggedCache(60, 3, keys=Int4Slots, values=Int4Slots),
}


@pytest.mark.parametrize("make", CACHES.values(), ids=CACHES)
def test_all_tensors_are_on_the_weights_device(make):
    """`meta` stands for an accelerator: torch refuses to mix it with the processor's tensors."""
    params = {name: weight.to("meta") for name, weight in tiny.params(CONFIG).items()}
    fast, cache = FastForward(params, CONFIG, dtype=torch.float32), make()
    prompts = PROMPTS[3:6] if cache.batch else PROMPTS[3:4]
    with torch.inference_mode():
        logits_BTV = prefill(fast, cache, prompts, chunk=4)
        assert logits_BTV.device.type == "meta" and logits_BTV.shape == (len(prompts), 1, CONFIG.vocab_size)
        if cache.batch:
            fresh = cache.fresh(2)
            prefill(fast, fresh, PROMPTS[:2])
            cache.insert([1, 3], fresh)
            cache.keep([3, 0])
            prompts = prompts[:2]
        for _ in range(8):
            assert step(fast, cache, [[5]] * len(prompts)).device.type == "meta"
    assert all(kept.values.device.type == "meta" for layer in cache.layers.values() for kept in layer)
