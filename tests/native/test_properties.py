"""Every function that the library exports, at random sizes, forms and threads, against torch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama3_scratch.cache import Cache
from llama3_scratch.caches.paged import PagedCache
from llama3_scratch.config import Config
from llama3_scratch.inference.fast_forward import FastForward
from llama3_scratch.init import init
from llama3_scratch.native import kernels, layout
from llama3_scratch.native.decode import Chunk
from llama3_scratch.stored import Params, stored
from tests.batches import ragged_rows
from tests.native.worlds import KEPT, ROW_FORMS, TILE_FORMS, WEIGHTS, one, plain, rounded

pytestmark = pytest.mark.skipif(kernels.library() is None, reason="the kernels weren't built: no C compiler")

THREADS = st.sampled_from([1, 2, 3, 4, 7, 16, 32, 33, 64, 64])
random = settings(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, print_blob=True)


@pytest.fixture(autouse=True)
def as_before():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    kernels.choose()


def use(level: str, threads: int) -> None:
    """These kernels, or those below where the processor hasn't them, on so many threads."""
    if kernels.choose(level) is None:
        kernels.choose(kernels.LEVELS[0])
    torch.set_num_threads(threads)


def near(ours: torch.Tensor, wanted: torch.Tensor, limit: float) -> None:
    off = (ours.double() - wanted.double()).abs().max() / wanted.double().std().clamp_min(1e-3)
    assert off <= limit, f"off by {off:.1e} std, allowed {limit:.0e}"


@settings(random, max_examples=150)
@given(st.data())
def test_matmul_and_rows(data):
    draw = data.draw
    form = draw(st.sampled_from([*ROW_FORMS, *TILE_FORMS]))
    rows, columns = draw(st.integers(1, 130)), draw(st.integers(1, 260))
    if form in TILE_FORMS:
        rows, columns = -(-rows // 16) * 16, -(-columns // 32) * 32
    if form == "int8 groups of 8":
        columns = -(-columns // 8) * 8
    n, seed = draw(st.integers(0, 40)), draw(st.integers(0, 2**31))
    use(draw(st.sampled_from(kernels.LEVELS)), draw(THREADS))
    generator = torch.Generator().manual_seed(seed)
    weight = stored(one(form, torch.randn(rows, columns, generator=generator)), "w")
    x = torch.randn(columns, n, generator=generator).T if draw(st.booleans()) else torch.randn(n, columns)
    out = kernels.matmul(x, weight)
    floats = weight.floats(slice(None), torch.float64)
    assert out is not None and out.shape == (n, rows)
    if n:
        given_x = rounded(x.double()) if form in TILE_FORMS else x.double()
        limit = (columns**0.5) * (3e-4 if form in TILE_FORMS else 2e-5)
        assert (out.double() - given_x @ floats.T).abs().max() <= limit
    index = torch.randint(rows, (n, 2), generator=generator).T
    read = kernels.rows(index, weight, torch.float32)
    assert read is None if form in ROW_FORMS else torch.equal(read, weight.floats(index, torch.float32))
    described, out, first = kernels.weight(weight), torch.empty(n, columns), index[0].contiguous()
    kernels.require().rows(described, n, first.data_ptr(), out.data_ptr())
    assert torch.equal(out, weight.floats(first, torch.float32))


@pytest.mark.parametrize("level", kernels.LEVELS)
@pytest.mark.parametrize("form", TILE_FORMS)
@settings(random, max_examples=30)
@given(st.data())
def test_an_inputs_product_has_the_same_bits_in_any_company(level, form, data):
    """Alone or among others, in whatever place, in one call or in two; and AVX2's bits are AVX-512's."""
    if kernels.choose(level) is None:
        pytest.skip(f"this processor has no {level}")
    draw = data.draw
    rows, columns = 16 * draw(st.integers(1, 6)), 32 * draw(st.integers(1, 20))
    company, seed = draw(st.integers(2, 40)), draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    weight = stored(one(form, torch.randn(rows, columns, generator=generator)), "w")
    x = torch.randn(company + 1, columns, generator=generator)
    x *= 10.0 ** torch.randint(-3, 4, (company + 1, columns // 32), generator=generator).repeat_interleave(32, 1)
    cut = draw(st.integers(1, company))

    def products(x):
        torch.set_num_threads(draw(THREADS))
        out = kernels.matmul(x, weight)
        assert out is not None
        return out.view(torch.int32)

    together = products(x)
    assert torch.equal(torch.cat([products(x[i : i + 1]) for i in range(company + 1)]), together)
    assert torch.equal(torch.cat((products(x[:cut]), products(x[cut:]))), together)
    if level == "AVX-512":
        kernels.choose("AVX2")
        try:
            assert torch.equal(products(x), together)
        finally:
            kernels.choose(level)


MODELS: dict[tuple, tuple[Params, Config]] = {}


def model(form: str, heads: int, kv_heads: int, head_dim: int, layers: int) -> tuple[Params, Config]:
    """Seeded params of that form and those sizes, made once."""
    key = form, heads, kv_heads, head_dim, layers
    if key not in MODELS:
        config = Config(heads * head_dim, layers, heads, kv_heads, 112, 160, max_seq_len=4096)
        if form in ("int8", "int4") and heads * head_dim % 32:
            form = "f32"  # no whole tiles
        MODELS[key] = WEIGHTS[form](init(config, seed=1, std=0.12, norm_std=0.2)), config
    return MODELS[key]


@settings(random, max_examples=120)
@given(st.data())
def test_decode(data):
    """Some tokens after others, in rows that stand at other positions, to the end of the layers and to the logits."""
    draw = data.draw
    heads, kv_heads = draw(st.sampled_from([(1, 1), (2, 1), (6, 2), (5, 5), (8, 2)]))
    head_dim, layers = draw(st.sampled_from([2, 6, 16, 48, 64])), draw(st.integers(1, 2))
    forms_of_weights = [*sorted(WEIGHTS), "int8", "int8", "int4"]  # only these go through C in numbers
    params, config = model(draw(st.sampled_from(forms_of_weights)), heads, kv_heads, head_dim, layers)
    form = draw(st.sampled_from(sorted(KEPT))), draw(st.sampled_from(sorted(KEPT)))
    B, T, before = draw(st.integers(1, 3)), draw(st.integers(1, 24)), draw(st.integers(1, 400))
    level, threads, ragged = draw(st.sampled_from(kernels.LEVELS)), draw(THREADS), draw(st.booleans())
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    tokens_BT = torch.randint(config.vocab_size, (B, before + T), generator=generator)
    forms = {"keys": KEPT[form[0]], "values": KEPT[form[1]]}
    lengths_B = torch.randint(1, before + 1, (B,), generator=generator)

    def run(fast: bool):
        cache = ragged_rows(config, 500, B, **forms) if ragged else Cache(500, **forms)
        plain(tokens_BT[:, :before], params, config, cache=cache)
        if ragged:
            cache.lengths = lengths_B
        if fast:
            use(level, threads)
            out = FastForward(params, config, dtype=torch.float32).logits(tokens_BT[:, before:], cache)
            torch.set_num_threads(1)
            return out
        return plain(tokens_BT[:, before:], params, config, cache=cache)

    with torch.no_grad():
        ours, wanted = run(True), run(False)
    # Integers in weights or cache: a number on the border between two falls either way.
    short = {"int8", "int4"} & set(form) or "bf16" in form
    tiled = params["layers.0.attention.wq.weight"].ndim == 5
    off_BT = (ours - wanted).abs().mean(-1) / wanted.std()
    assert off_BT.median() <= (0.1 if short else 1e-3 if tiled else 3e-5)
    assert off_BT.max() <= (0.6 if short else 3e-3 if tiled else 2e-4)


@pytest.mark.parametrize("level", kernels.LEVELS)
@settings(random, max_examples=12)
@given(st.data())
def test_a_tokens_logits_have_the_same_bits_in_any_chunk(level, data):
    """Token by token, or in chunks of any size beside others': what attention does for many at once it does for one."""
    if kernels.choose(level) is None:
        pytest.skip(f"this processor has no {level}")
    draw = data.draw
    heads, kv_heads, head_dim = draw(st.sampled_from([(6, 2, 16), (3, 1, 64), (5, 5, 64), (8, 2, 48), (8, 1, 128)]))
    params, config = model("int8", heads, kv_heads, head_dim, 1)
    fast = FastForward(params, config, dtype=torch.float32)
    forms = KEPT[draw(st.sampled_from(sorted(KEPT)))], KEPT[draw(st.sampled_from(sorted(KEPT)))]
    lengths = draw(st.lists(st.integers(1, 150), min_size=1, max_size=3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    sequences = [torch.randint(config.vocab_size, (n,), generator=generator).tolist() for n in lengths]
    pages = [[3 * row, 3 * row + 2, 3 * row + 1] for row in range(len(sequences))]

    def run(sizes: st.SearchStrategy[int]):
        cache = PagedCache(config, 9, keys=forms[0], values=forms[1])
        done, logits = [0] * len(sequences), {}
        while any(at < len(tokens) for at, tokens in zip(done, sequences, strict=True)):
            use(level, draw(THREADS))
            rows = [row for row, tokens in enumerate(sequences) if done[row] < len(tokens)]
            ends = {row: min(len(sequences[row]), done[row] + draw(sizes)) for row in rows}
            chunks = [Chunk(sequences[row][done[row] : end], done[row], pages[row]) for row, end in ends.items()]
            for (row, end), logits_V in zip(ends.items(), fast.chunks(chunks, cache), strict=True):
                logits[row, end] = logits_V
                done[row] = end
        return logits, cache.layers["layers.0.attention"]

    with torch.inference_mode():
        one_by_one, wanted = run(st.just(1))
        in_chunks, found = run(st.integers(1, 90))
    for place, logits_V in in_chunks.items():
        assert torch.equal(logits_V, one_by_one[place]), place
    for ours, theirs in zip(found, wanted, strict=True):
        assert all(torch.equal(tensor, theirs.tensors()[name]) for name, tensor in ours.tensors().items())


@settings(random, max_examples=12)
@given(T=st.integers(1, 31), before=st.integers(100, 400), threads=st.sampled_from([32, 64]))
def test_the_same_call_gives_the_same_whatever_threads_come_first(T, before, threads):
    """A race shows in some of many calls."""
    params, config = model("int8", 6, 2, 16, 2)
    tokens_BT = torch.randint(config.vocab_size, (1, before + T), generator=torch.Generator().manual_seed(T))
    cache, wanted_cache = Cache(500), Cache(500)
    with torch.no_grad():
        for each in (cache, wanted_cache):
            plain(tokens_BT[:, :before], params, config, cache=each)
        wanted = plain(tokens_BT[:, before:], params, config, cache=wanted_cache)
        fast = FastForward(params, config, dtype=torch.float32)
        use(kernels.LEVELS[-1], threads)
        for _ in range(25):
            near(fast.logits(tokens_BT[:, before:], cache), wanted, 2e-2)
            cache.rewind(before)
        torch.set_num_threads(1)


def test_python_and_c_agree_on_every_number():
    assert layout.difference(kernels.require()) is None


def test_a_library_of_other_sources_is_refused(monkeypatch, caplog):
    monkeypatch.setitem(layout.SHARED, "CHUNK_SLOTS", 63)
    kernels.library.cache_clear()
    try:
        assert kernels.library() is None and kernels.chosen() is None
        assert "wasn't built from these sources (CHUNK_SLOTS is 64 there and 63 here)" in caplog.text
    finally:
        monkeypatch.undo()
        kernels.library.cache_clear()
        assert kernels.choose() is not None or kernels.LEVELS
