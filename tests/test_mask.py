"""What a token sees is the cache's or a caller's to say, and both attentions obey."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend

from llama3_scratch.cache import ALL, CAUSAL, NO_CACHE, Cache, NoCache, visible
from llama3_scratch.caches.paged import PagedRows
from llama3_scratch.caches.sliding import SlidingCache
from llama3_scratch.errors import UsageError
from llama3_scratch.inference.sample import sampler
from llama3_scratch.model import attend, attend_fused, block, forward, fused_block
from llama3_scratch.training.loss import document_mask
from tests import tiny
from tests.batches import ragged_rows, stream_all
from tests.compare import check

CONFIG = replace(tiny.CONFIG, n_layers=2)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 0.05}


def inputs(B: int, T: int, S: int, dtype: torch.dtype, seed: int):
    generator = torch.Generator().manual_seed(seed)
    q_BTGRK = torch.randn(B, T, 2, 3, 8, generator=generator).to(dtype)
    k_BSGK, v_BSGK = (torch.randn(B, S, 2, 8, generator=generator).to(dtype) for _ in "kv")
    seen_BTS = torch.rand(B, T, S, generator=generator) < torch.rand(1, generator=generator)
    seen_BTS[..., torch.randint(S, (1,), generator=generator)] = True  # a row that sees nothing has no mean
    return q_BTGRK, k_BSGK, v_BSGK, seen_BTS


@settings(deadline=None, max_examples=60)
@given(
    B=st.integers(1, 3),
    T=st.integers(1, 20),
    before=st.sampled_from([0, 0, 1, 9]),
    dtype=st.sampled_from(list(TOLERANCE)),
    seed=st.integers(0, 10**6),
)
def test_both_attentions_obey_any_mask(B, T, before, dtype, seed):
    q_BTGRK, k_BSGK, v_BSGK, seen_BTS = inputs(B, T, T + before, dtype, seed)
    for mask in (seen_BTS, seen_BTS[:1], CAUSAL, ALL):
        readable, fused = (attending(q_BTGRK, k_BSGK, v_BSGK, mask) for attending in (attend, attend_fused))
        check(fused, readable, TOLERANCE[dtype])
        as_tensor = visible(mask, T, T + before, q_BTGRK.device)
        check(attend_fused(q_BTGRK, k_BSGK, v_BSGK, as_tensor), readable, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("before", [0, 5])
def test_compiled_as_one_graph_too(dtype, before):
    torch._dynamo.reset()
    fast = torch.compile(attend_fused, fullgraph=True, backend="eager")
    *qkv, seen_BTS = inputs(2, 9, 9 + before, dtype, 0)
    for mask in (seen_BTS, CAUSAL, ALL):
        check(fast(*qkv, mask), attend(*qkv, mask), TOLERANCE[dtype])
    torch._dynamo.reset()


def prefix_mask(prefix: int, T: int) -> torch.Tensor:
    """A prefix language model's: the prefix's tokens see each other, what follows is causal (arXiv:1910.10683 §3.2)."""
    mask_BTS = torch.ones(1, T, T, dtype=torch.bool).tril()
    mask_BTS[:, :prefix, :prefix] = True
    return mask_BTS


MASKS = {
    "bidirectional": ALL,
    "prefix": prefix_mask(5, 12),
    "documents": document_mask(torch.tensor([[0] * 5 + [1] * 4 + [2] * 3, [0] * 12])),
    "causal": CAUSAL,
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_caller_says_what_each_token_sees(name, dtype):
    params = {key: weight.to(dtype) for key, weight in tiny.params(CONFIG, std=0.1).items()}
    tokens_BT, cache = tiny.tokens(2, 12), NoCache(MASKS[name])
    readable, fused = (forward(tokens_BT, params, CONFIG, cache=cache, block=layer) for layer in (block, fused_block))
    check(fused, readable, TOLERANCE[dtype])
    causal = forward(tokens_BT, params, CONFIG, cache=NO_CACHE)
    assert torch.equal(fused, causal) == (name == "causal")
    changed_BT = tokens_BT.clone()
    changed_BT[:, 4] = (changed_BT[:, 4] + 1) % CONFIG.vocab_size
    moved_BT = (forward(changed_BT, params, CONFIG, cache=cache) != fused).any(-1)
    seen_BT = visible(MASKS[name], 12, 12, tokens_BT.device)[..., 4].expand(2, 12)
    assert torch.equal(moved_BT, seen_BT) or (name == "prefix" and moved_BT.all()), (
        "what sees the token, directly or not"
    )


def test_a_mask_of_ones_own_compiles_with_the_whole_forward():
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    fast = torch.compile(forward, fullgraph=True, backend=counter)
    params = tiny.params(CONFIG)
    for mask in (MASKS["documents"], MASKS["documents"].flip(0), ALL):
        got, wanted = (f(tiny.tokens(2, 12), params, CONFIG, cache=NoCache(mask)) for f in (fast, forward))
        check(got, wanted, 2e-5)
    assert counter.frame_count <= 3
    torch._dynamo.reset()


def positions_rule(cache, T: int) -> torch.Tensor:
    """A query at position p sees the slots up to p."""
    device = torch.device("cpu")
    positions_BT = cache.positions(T, device)
    return torch.arange(cache.span(T)) <= positions_BT[..., None]


CACHES = {
    "none": lambda: NO_CACHE,
    "uniform": lambda: Cache(40),
    "sliding": lambda: SlidingCache(16, CONFIG, window=8),
    "paged": lambda: ragged_rows(CONFIG, 40, 3),
}


@pytest.mark.parametrize("make", CACHES.values(), ids=CACHES)
def test_every_cache_masks_by_position_and_makes_no_tensor_where_a_word_will_do(make):
    cache, params, device = make(), tiny.params(CONFIG), torch.device("cpu")
    for T in (6, 3, 1, 1, 5, 1):
        mask = cache.mask(T, device)
        shown = visible(mask, T, cache.span(T), device)
        wanted = positions_rule(cache, T)
        assert torch.equal(shown.expand_as(wanted), wanted)
        if cache is NO_CACHE or (T == 1 and isinstance(cache, Cache)):
            assert isinstance(mask, str)
        before = int(cache.lengths.max()) if isinstance(cache, PagedRows) else getattr(cache, "length", 0)
        tokens_BT = tiny.tokens(3, T, seed=T)
        forward(tokens_BT, params, CONFIG, cache=cache)
        if before == 0 and isinstance(cache, PagedRows):
            assert mask is CAUSAL
            cache.lengths = torch.tensor([6, 2, 4])


def test_one_token_and_a_fresh_prompt_hand_the_kernel_no_mask(monkeypatch):
    handed = []
    kernel = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F,
        "scaled_dot_product_attention",
        lambda *qkv, **options: (
            handed.append((options.get("attn_mask"), options.get("is_causal"))) or kernel(*qkv, **options)
        ),
    )
    for cache in (Cache(40), ragged_rows(CONFIG, 40, 2)):
        for T in (9, 1):
            forward(tiny.tokens(2, T), tiny.params(CONFIG), CONFIG, cache=cache)
    assert handed == [(None, True)] * 2 + [(None, False)] * 2 + [(None, True)] * 2 + [(None, False)] * 2


@pytest.mark.parametrize(
    "mask", [CAUSAL, ALL, torch.ones(1, 6, 6, dtype=torch.bool).tril()], ids=["causal", "all", "tensor"]
)
@pytest.mark.parametrize("attending", [attend, attend_fused])
def test_a_query_that_is_no_number_shows(attending, mask):
    q_BTGRK, k_BSGK, v_BSGK, _ = inputs(1, 6, 6, torch.float32, 3)
    q_BTGRK[0, 2] = torch.nan
    assert attending(q_BTGRK, k_BSGK, v_BSGK, mask).isnan().flatten(2).all(2).tolist() == [
        [False] * 2 + [True] + [False] * 3
    ]


class Window(Cache):
    """A caller's own cache: each token sees itself and the two before it."""

    def mask(self, tokens, device):
        slots_S = torch.arange(self.span(tokens), device=device)
        positions_BT1 = self.positions(tokens, device)[..., None]
        return (slots_S <= positions_BT1) & (slots_S > positions_BT1 - 3)


def test_the_token_loop_obeys_a_mask_of_a_callers_own_cache():
    params, prompt = tiny.params(CONFIG), tiny.tokens(1, 7)[0].tolist()
    answers = [
        [
            token.token
            for token in stream_all(
                [prompt], params, CONFIG, samplers=[sampler()], max_tokens=12, cache=cache, block=layer
            )
        ]
        for cache, layer in [(Window(50), None), (Window(50), block), (Cache(50), None)]
    ]
    assert answers[0] == answers[1] != answers[2]
    assert not Window.by_position
    assert SlidingCache.by_position


@pytest.mark.parametrize("mask", ["forward", torch.ones(1, 3, 3), torch.ones(3, 3, dtype=torch.bool)])
def test_a_mask_that_is_none_is_refused(mask):
    with pytest.raises(UsageError, match="a mask is 'causal', 'all' or booleans"):
        NoCache(mask)
