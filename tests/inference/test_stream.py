"""The token loop: the same tokens with and without a cache, in any chunking, alone and in a batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from llama3_scratch.cache import Cache, Slots
from llama3_scratch.caches.quantized import Bf16Slots, Int4Slots, Int8Slots
from llama3_scratch.errors import UsageError
from llama3_scratch.inference.sample import NonFiniteError, sampler
from llama3_scratch.model import block, forward
from tests import tiny
from tests.batches import stream_all

PROMPTS = [[5, 9, 2], [1], list(range(40)), [7] * 11]
N = 24


def run(prompts, *, params=None, config=tiny.CONFIG, sampling=None, **options):
    rows: list[list[int]] = [[] for _ in prompts]
    reasons = {}
    options = {"max_tokens": N} | options
    for step in stream_all(
        prompts,
        params or tiny.params(config),
        config,
        samplers=[sampler(**(sampling or {})) for _ in prompts],
        **options,
    ):
        rows[step.row].append(step.token)
        reasons[step.row] = step.finish_reason
    return rows, reasons


def uncached(prompt, n=N):
    ids = list(prompt)
    params = tiny.params()
    for _ in range(n):
        ids.append(int(forward(torch.tensor([ids]), params, tiny.CONFIG)[0, -1].argmax()))
    return ids[len(prompt) :]


def test_greedy_equals_the_full_forward_at_every_step():
    rows, reasons = run([PROMPTS[2]])
    assert rows == [uncached(PROMPTS[2])]
    assert reasons == {0: "length"}


@pytest.mark.parametrize("chunk", [1, 3, 7, 512])
def test_any_chunking_alone_or_in_a_batch_gives_the_same_tokens(chunk):
    wanted = [uncached(prompt) for prompt in PROMPTS]
    assert [run([prompt], chunk=chunk)[0][0] for prompt in PROMPTS] == wanted
    assert run(PROMPTS, prefill_tokens=chunk, prefill_tokens_beside=1 + chunk // 2)[0] == wanted


def test_the_readable_block_gives_the_same_tokens():
    assert run(PROMPTS[:2], block=block)[0] == run(PROMPTS[:2])[0]


def test_a_batch_has_the_logits_of_the_prompts_alone():
    params = tiny.params(std=0.1)  # tamer: wild weights amplify the rounding that this bounds
    options = {"samplers": [sampler()] * 4, "max_tokens": 6}
    together = {(s.row, i): s.logits_V for i, s in enumerate(stream_all(PROMPTS, params, tiny.CONFIG, **options))}
    for row, prompt in enumerate(PROMPTS):
        alone = [s.logits_V for s in stream_all([prompt], params, tiny.CONFIG, samplers=[sampler()], max_tokens=6)]
        batch = [logits for (r, _), logits in together.items() if r == row]
        for a, b in zip(alone, batch, strict=True):
            assert (a - b).abs().max() <= 1e-5 * a.std()


def test_f182_prompts_with_the_same_seed_draw_as_if_alone():
    sampling = {"temperature": 1.0, "seed": 11, "top_p": 0.95}
    alone = [run([prompt], sampling=sampling)[0][0] for prompt in (PROMPTS[0], PROMPTS[0], PROMPTS[1])]
    assert run([PROMPTS[0], PROMPTS[0], PROMPTS[1]], sampling=sampling)[0] == alone
    assert alone[0] == alone[1]


def test_rows_that_stop_leave_the_batch_and_the_others_go_on_unchanged():
    whole = [uncached(prompt) for prompt in PROMPTS]
    stops = {0: whole[0][3], 2: whole[2][9]}
    rows, reasons = run(PROMPTS, stop=lambda row, token: stops.get(row) == token)
    for row, tokens in enumerate(whole):
        end = tokens.index(stops[row]) + 1 if row in stops else N
        assert rows[row] == tokens[:end]
    assert reasons == {0: "stop", 1: "length", 2: "stop", 3: "length"}


def test_f114_a_prompt_as_long_as_the_context_is_refused_not_cut():
    with pytest.raises(UsageError, match="prompt 40 tokens, limit 39"):
        run(PROMPTS, max_seq_len=40)


def test_f115_f218_the_context_ends_the_answer_with_length():
    rows, reasons = run([PROMPTS[2]], max_seq_len=45)
    assert rows == [uncached(PROMPTS[2])[:5]]
    assert reasons == {0: "length"}


def test_no_tokens_and_unknown_tokens_are_refused():
    with pytest.raises(UsageError, match="no tokens"):
        run([[]])
    with pytest.raises(UsageError, match="token 67 in the prompt, the model's vocabulary has 67"):
        run([[67]])


def test_f219_a_cache_that_holds_the_beginning_is_continued():
    cache = Cache(100)
    whole = run([PROMPTS[2]], cache=cache)[0][0]
    assert cache.length == len(PROMPTS[2]) + N - 1
    cache.rewind(25)
    assert run([PROMPTS[2]], cache=cache)[0][0] == whole


def test_f021_a_bad_weight_is_named_at_the_first_logit_that_shows_it():
    params = tiny.params()
    params["layers.3.feed_forward.w2.weight"][1, 2] = float("nan")
    with pytest.raises(
        NonFiniteError, match=r"first in layers\.3 at position 0; layers\.3\.feed_forward\.w2\.weight holds NaN"
    ):
        run([[1, 2]], params=params)
    with pytest.raises(NonFiniteError, match=r"first in layers\.3 at position 0; layers\.3\.feed_forward\.w2"):
        run([[1, 2], [3]], params=params)


def test_f133_float16_that_overflows_names_the_layer_and_the_remedy():
    params = tiny.params(dtype=torch.float16)
    params["layers.2.attention.wv.weight"] *= 30_000
    with pytest.raises(
        NonFiniteError, match=r"first in layers\.2 at position 0; float16 overflows there, take `dtype=float32`"
    ):
        run([[1, 2]], params=params, dtype=torch.float16)


@pytest.mark.parametrize("form", [Slots, Bf16Slots, Int8Slots, Int4Slots])
def test_f216_a_bad_number_is_named_by_layer_and_position(form):
    params = tiny.params()
    params["tok_embeddings.weight"][9, 3] = float("nan")
    with pytest.raises(NonFiniteError, match=r"first in layers\.0 at position 2; tok_embeddings\.weight holds NaN"):
        run([[5, 2, 9, 4]], params=params, cache=Cache(64, keys=form, values=form))


@pytest.mark.parametrize("form", [Slots, Bf16Slots, Int8Slots, Int4Slots])
@pytest.mark.parametrize("part", [0, 1])
def test_f216_a_bad_number_that_only_the_cache_holds_is_named_too(form, part):
    cache = Cache(100, keys=form, values=form)
    run([PROMPTS[0]], cache=cache)
    kept = cache.layers["layers.2.attention"][part]
    with torch.inference_mode():
        kept.put((slice(None), slice(5, 6)), kept.get(6)[:, 5:] * torch.nan)
    with pytest.raises(NonFiniteError, match=r"first in the cache of layers\.2\.attention at position 5; begin anew"):
        run([PROMPTS[2]], cache=cache)


FORMS = {"bf16": (Bf16Slots, Bf16Slots), "int8": (Int8Slots, Int8Slots), "int4 values": (Int8Slots, Int4Slots)}


@pytest.mark.parametrize("keys, values", FORMS.values(), ids=FORMS)
def test_f218_f219_f220_f223_caches_in_short_forms(keys, values):
    """In f64 every prompt's answer is the same alone, in a batch, in chunks and continued; and it ends with length."""
    params = {name: weight.double() for name, weight in tiny.params().items()}

    def answers(prompts, cache, **options):
        return run(prompts, params=params, cache=cache, dtype=torch.float64, **options)

    alone = [answers([prompt], Cache(100, keys=keys, values=values))[0][0] for prompt in PROMPTS]
    for chunk in (5, 512):
        together = answers(PROMPTS, None, forms=(keys, values), max_seq_len=100, prefill_tokens=chunk)
        assert together == (alone, dict.fromkeys(range(4), "length"))
    cache = Cache(45, keys=keys, values=values)
    assert answers([PROMPTS[2]], cache, max_seq_len=45) == ([alone[2][:5]], {0: "length"})
    cache.rewind(25)
    assert answers([PROMPTS[2]], cache, max_seq_len=45)[0] == [alone[2][:5]]


def test_f140_the_plan_counts_the_bytes_of_the_caches_form(monkeypatch):
    asked = []
    monkeypatch.setattr("llama3_scratch.inference.stream.require_memory", lambda plan, free: asked.append(plan.cache))
    for form in (Slots, Bf16Slots, Int8Slots, Int4Slots):
        run([PROMPTS[0]], cache=Cache(100, keys=form, values=form))
    vectors = 2 * 5 * 2 * 27  # keys and values, layers, heads, tokens; K = 8 in one group
    assert asked == [vectors * n_bytes for n_bytes in (32, 16, 12, 8)]


def test_bf16_weights_answer_in_float32():
    params = tiny.params(dtype=torch.bfloat16)
    wide = {name: tensor.float() for name, tensor in params.items()}
    assert run(PROMPTS, params=params, dtype=torch.float32)[0] == run(PROMPTS, params=wide)[0]


def test_f140_a_cache_grows_with_its_tokens_not_with_the_context():
    config = replace(tiny.CONFIG, max_seq_len=100_000)
    cache = Cache(config.max_seq_len)
    run([PROMPTS[0]], config=config, cache=cache)
    assert cache.n_bytes == config.kv_bytes(256, element_bytes=4)


def test_a_cache_of_ones_own_takes_a_longer_prompt():
    cache = Cache(100)
    run([PROMPTS[0]], cache=cache)
    with pytest.raises(UsageError, match="a prompt of 1 tokens, the cache holds 26 already; it must hold fewer"):
        run([PROMPTS[0][:1]], cache=cache)
