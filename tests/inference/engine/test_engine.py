"""The engine: whatever company a request has, it gets what it gets alone, and no page is lost."""

from __future__ import annotations

import random

import pytest
import torch

from llama3_scratch.caches.paged import PagedCache
from llama3_scratch.errors import UsageError
from llama3_scratch.inference.engine.engine import Engine
from llama3_scratch.inference.fast_forward import FastForward
from llama3_scratch.inference.requests import Failure, Request
from llama3_scratch.inference.sample import NonFiniteError, sampler
from llama3_scratch.native import kernels
from tests import tiny
from tests.forms import with_adaptors
from tests.inference.engine.engines import BASE, CACHES, CONFIG, PROMPTS, WEIGHTS, alone, choose, engine, needs_kernels


def run_schedule(seed: int, cache: str) -> Engine:
    """A schedule at random: requests come and go, the pool is small, the prompts come in pieces."""
    draw = random.Random(seed)
    form = draw.choice(WEIGHTS)
    running = engine(
        form,
        cache,
        pages=draw.choice([5, 6, 7, 9, 40]),
        max_rows=draw.choice([1, 2, 3, 8, 16]),
        prefill_tokens=draw.choice([1, 7, 40, 64, 100, 512]),
        prefill_tokens_beside=draw.choice([1, 13, 64, 128]),
    )
    coming = [
        (draw.randrange(len(PROMPTS)), draw.choice([None, 1, 2]), draw.choice([1, 5, 24, 70]))
        for _ in range(draw.randint(2, 12))
    ]
    open_: dict[Request, tuple[int, int | None, int]] = {}
    said: dict[Request, list[tuple[int, torch.Tensor]]] = {}
    while coming or running.unfinished:
        while coming and (draw.random() < 0.4 or not running.unfinished):
            prompt, how, n = coming.pop()
            request = Request(PROMPTS[prompt], choose(how), n, salt=draw.choice(["", "", "a"]))
            running.add(request)
            open_[request], said[request] = (prompt, how, n), []
        if open_ and draw.random() < 0.03:
            gone = draw.choice(list(open_))
            running.cancel(gone)
            del open_[gone]
        for event in running.step():
            assert event.request in open_, "a request that was cancelled says nothing more"
            said[event.request].append((event.token, event.logits_V))
            if event.finish_reason:
                prompt, how, n = open_.pop(event.request)
                wanted = alone(form, cache, prompt, how, n)
                got = said[event.request]
                assert [token for token, _ in got] == [token for token, _ in wanted]
                assert all(torch.equal(a, b) for (_, a), (_, b) in zip(got, wanted, strict=True))
        pool = running.pool
        assert pool.free + pool.cached + pool.held == pool.pages
        assert running.stats.running or not pool.held
    assert not open_
    return running


@needs_kernels
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("seeds", [range(40), pytest.param(range(40, 200), marks=pytest.mark.slow)], ids=["40", "200"])
def test_a_requests_bits_are_those_it_has_alone(cache, seeds):
    """Alone, in any company, in any chunks, on a shared beginning and after being computed anew: the same bits."""
    done = [run_schedule(seed, cache) for seed in seeds]
    assert sum(one.stats.preemptions for one in done) and sum(one.stats.cached_tokens for one in done)


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("native", [pytest.param(True, marks=needs_kernels), False], ids=["C", "torch"])
def test_float_weights_say_the_same_in_company(cache, native):
    level = kernels.chosen()
    if not native:
        kernels.choose(kernels.TORCH)
    try:
        model = FastForward(tiny.params(CONFIG, std=0.1), CONFIG, dtype=torch.float32)

        def answers(prompts, **options):
            pool = PagedCache(CONFIG, 60, keys=CACHES[cache], values=CACHES[cache])
            said = [[] for _ in prompts]
            requests = [Request(prompt, sampler(), 10, row=row) for row, prompt in enumerate(prompts)]
            for event in Engine(model, pool, **options).run(requests):
                said[event.row].append(event.token)
            return said

        wanted = [answers([prompt])[0] for prompt in PROMPTS]
        together = [answers(PROMPTS), answers(PROMPTS, max_rows=3, prefill_tokens=50, prefill_tokens_beside=20)]
        # A number of a short cache that lies between two integers may become either.
        same = [a == b for got in together for a, b in zip(got, wanted, strict=True)]
        assert all(same) if cache == "floats" else sum(same) >= 0.8 * len(same)
    finally:
        kernels.choose(level)


def test_a_beginning_that_is_being_computed_is_waited_for_and_computed_once(monkeypatch):
    computed = []
    chunks = FastForward.chunks
    monkeypatch.setattr(
        FastForward,
        "chunks",
        lambda self, given, cache: (
            computed.append(sum(len(chunk.tokens) for chunk in given)) or chunks(self, given, cache)
        ),
    )
    one = engine(prefill_tokens=50, prefill_tokens_beside=50)
    requests = [Request([*BASE, row], sampler(), 1, row=row) for row in range(8)]
    for _ in one.run(requests):
        pass
    assert [request.cached_tokens for request in requests] == [0] + [200] * 7
    assert sum(computed) == 201 + 7
    assert one.stats.prompt_tokens == 8 * 201 and one.stats.cached_tokens == 7 * 200


@needs_kernels
@pytest.mark.parametrize("cache", CACHES)
def test_a_page_that_begins_alike_is_copied_and_its_owner_keeps_it(cache):
    """Three conversations that part in the middle of a page, one after the other and while the first goes on."""
    shared = BASE[:100]  # a page and 36 tokens, of which 32 are known
    one = engine("int8", cache)
    prompts = [[*shared, *end] for end in ([1, 2, 3], [4], [5, 6])]
    requests = [Request(prompt, sampler(), 40, row=row) for row, prompt in enumerate(prompts)]
    said: list[list[int]] = [[], [], []]
    one.add(requests[0])
    for _ in range(5):
        said[0] += [event.token for event in one.step()]
    for request in requests[1:]:
        one.add(request)
    while one.unfinished:
        for event in one.step():
            said[event.row].append(event.token)
    assert [request.cached_tokens for request in requests] == [0, 96, 96]
    for prompt, got in zip(prompts, said, strict=True):
        fresh = engine("int8", cache).run([Request(prompt, sampler(), 40)])
        assert [event.token for event in fresh] == got
    again = Request([*prompts[0], *said[0], 7], sampler(), 1)  # and its answer is known
    assert len(list(one.run([again]))) == 1 and again.cached_tokens == 136


def test_whoever_waits_goes_on_when_the_one_ahead_is_cancelled():
    one = engine(prefill_tokens=50)
    first, second = (Request([*BASE, row], sampler(), 2, row=row) for row in range(2))
    one.add(first)
    one.add(second)
    one.step()
    assert (one.stats.running, one.stats.waiting) == (1, 1)
    one.cancel(first)
    events = [event for _ in range(8) for event in one.step()]
    assert [event.request for event in events] == [second, second] and not one.unfinished


def test_other_salts_and_adapters_share_nothing():
    one = engine()
    for salt in ("", "a", ""):
        request = Request(BASE, sampler(), 1, salt=salt)
        assert len(list(one.run([request]))) == 1
    assert request.cached_tokens == 192 and one.stats.cached_tokens == 192


def test_several_adapters_answer_in_one_batch_over_one_base():
    base = tiny.params(CONFIG)
    adapted = {name: with_adaptors(base, rank=rank) for name, rank in (("a", 3), ("b", 2))}
    models = {name: FastForward(params, CONFIG, dtype=torch.float32) for name, params in adapted.items()}
    assert all(adapted["a"][name] is tensor for name, tensor in base.items()), "one base in memory"
    plain = FastForward(base, CONFIG, dtype=torch.float32)
    make = lambda: Engine(plain, PagedCache(CONFIG, 40), adapters=models)  # noqa: E731
    ask = lambda adapter, row=0: Request(PROMPTS[3], sampler(), 8, adapter=adapter, row=row)  # noqa: E731
    wanted = [[event.token for event in make().run([ask(name)])] for name in (None, "a", "b")]
    assert wanted[0] != wanted[1] != wanted[2]
    said = [[], [], []]
    for event in make().run([ask(name, row) for row, name in enumerate((None, "a", "b"))]):
        said[event.row].append(event.token)
    assert said == wanted
    with pytest.raises(UsageError, match=r"no adapter 'c' here, there are: a, b"):
        make().add(ask("c"))


@pytest.mark.parametrize("when", ["in the queue", "in its prompt", "in its answer"])
def test_pages_of_a_cancelled_request_are_back_at_once(when):
    one = engine(max_rows=2, prefill_tokens=64, prefill_tokens_beside=16)
    stays, goes = Request(PROMPTS[1], sampler(), 30), Request(BASE, sampler(), 30)
    one.add(stays)
    one.step()
    held = one.stats.pages_held
    for _ in range(2 if when == "in the queue" else 0):
        one.add(Request(PROMPTS[0], sampler(), 30))
    one.add(goes)
    for _ in range({"in the queue": 1, "in its prompt": 3, "in its answer": 16}[when]):
        events = one.step()
    assert any(event.request is goes for event in events) == (when == "in its answer")
    one.cancel(goes)
    assert one.stats.pages_held == held + (1 if when == "in the queue" else 0)
    wanted = [token for token, _ in alone("int8", "floats", 1, None, 30)]
    rest = [event.token for _ in range(40) for event in one.step() if event.request is stays]
    assert wanted[-len(rest) :] == rest


def test_a_long_prompt_stalls_nobody_longer_than_a_step(monkeypatch):
    sizes = []
    chunks = FastForward.chunks
    monkeypatch.setattr(
        FastForward,
        "chunks",
        lambda self, given, cache: sizes.append([len(chunk.tokens) for chunk in given]) or chunks(self, given, cache),
    )
    one = engine(prefill_tokens=100, prefill_tokens_beside=24)
    short = [Request(PROMPTS[1], sampler(), 30, row=row) for row in range(2)]
    for request in short:
        one.add(request)
    one.step()
    long = Request(BASE, sampler(), 3)
    one.add(long)
    while long not in (answered := {event.request for event in one.step()}):
        assert answered == set(short)
    assert all(sum(size) <= 2 + 24 for size in sizes[1:]) and len(sizes) == 1 + 9


def test_what_could_never_be_answered_is_refused():
    one = engine(pages=2)
    for prompt, said in (
        ([], "no tokens"),
        ([5] * 128, "prompt 128 tokens, limit 127"),
        ([3, 80], "token 80 in the prompt, the model's vocabulary has 80"),
        ([-1], "token -1 in the prompt"),
    ):
        with pytest.raises(UsageError, match=said):
            one.add(Request(prompt, sampler(), 5))
    with pytest.raises(UsageError, match="`max_tokens`"):
        one.add(Request([1], sampler(), 0))
    assert not one.unfinished
    events = list(one.run([Request([5] * 127, sampler(), 99)]))
    assert [event.finish_reason for event in events] == ["length"]


def test_the_pool_is_the_context_of_whoever_is_alone():
    one = engine(pages=2)
    events = list(one.run([Request([5] * 100, sampler(), 10_000)]))
    assert len(events) == 28 and events[-1].finish_reason == "length"


def test_what_fails_fails_alone():
    def broken(logits_V, seen):
        raise ValueError("a grammar that has no way on")

    one = engine()
    requests = [Request(PROMPTS[1], how, 5, row=row) for row, how in enumerate((sampler(), broken, sampler()))]
    for request in requests:
        one.add(request)
    events = [event for _ in range(9) for event in one.step()]
    (failure,) = [event for event in events if isinstance(event, Failure)]
    assert failure.request is requests[1] and "no way on" in str(failure.error)
    assert [sum(event.request is request for event in events) for request in requests] == [5, 1, 5]
    assert one.stats.pages_held == 0


def test_a_bad_weight_is_named():
    params = dict(tiny.params(CONFIG))
    params["layers.1.feed_forward.w2.weight"] = params["layers.1.feed_forward.w2.weight"].clone()
    params["layers.1.feed_forward.w2.weight"][1, 2] = float("nan")
    one = Engine(FastForward(params, CONFIG), PagedCache(CONFIG, 4))
    with pytest.raises(NonFiniteError, match=r"first in layers\.1 at position 0; layers\.1\.feed_forward\.w2\.weight"):
        list(one.run([Request([1, 2], sampler(), 3), Request([4], sampler(), 3)]))
    assert not one.unfinished


def test_whoever_stops_listening_cancels_the_rest():
    one = engine()
    events = one.run([Request(PROMPTS[1], sampler(), 50) for _ in range(3)])
    next(events)
    events.close()
    assert not one.unfinished and one.stats.pages_held == 0


@pytest.mark.parametrize("option", ["max_rows", "prefill_tokens"])
def test_options_that_make_no_sense(option):
    with pytest.raises(UsageError, match=f"`{option}`: expected 1 or more, got 0"):
        engine(**{option: 0})
    with pytest.raises(UsageError, match="at least a page"):
        PagedCache(CONFIG, 0)
