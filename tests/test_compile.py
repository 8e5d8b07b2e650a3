"""torch.compile takes the whole forward as one graph, whatever weights are stored as, and lengths don't add up."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import llama3_scratch as l3
from llama3_scratch.cache import NO_CACHE, Cache
from tests import forms, tiny

CONFIG = replace(tiny.CONFIG, n_layers=1)
LENGTHS = (5, 7, 11, 1, 30, 16, 17, 1, 2)  # the kernels in C would take those up to 16
MOST = 3  # graphs: the first length alone, any length, and 1, which torch takes for a constant


@pytest.fixture(autouse=True)
def forgotten():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(backend: str = "eager"):
    counter = CompileCounterWithBackend(backend)
    return torch.compile(l3.forward, fullgraph=True, backend=counter), counter


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "form", ["f32", *(pytest.param(form, marks=pytest.mark.slow) for form in ("bf16", "int8-row", "adaptors on f32"))]
)
def test_lengths_share_their_graphs(form):
    fast, counter = compiled()
    params = forms.FORMS[form](tiny.params(CONFIG))
    for length in LENGTHS:
        tokens_BT = tiny.tokens(2, length)
        wanted_BTV = l3.forward(tokens_BT, params, CONFIG, dtype=torch.float32)
        torch.testing.assert_close(fast(tokens_BT, params, CONFIG, dtype=torch.float32), wanted_BTV, rtol=0, atol=2e-4)
    assert counter.frame_count <= MOST


def test_the_readable_block_compiles_too_and_lists_are_taken():
    fast, counter = compiled()
    params = tiny.params(CONFIG)
    for length in (4, 6):
        ids = tiny.tokens(1, length)[0].tolist()
        torch.testing.assert_close(fast(ids, params, CONFIG, block=l3.block), l3.forward(ids, params, CONFIG))
    assert counter.frame_count <= MOST


@pytest.mark.slow
def test_gradients_are_the_same():
    fast, _ = compiled("aot_eager")
    grads = []
    for forward in (l3.forward, fast):
        params = {name: tensor.clone().requires_grad_() for name, tensor in tiny.params(CONFIG).items()}
        forward(tiny.tokens(2, 9), params, CONFIG).square().mean().backward()
        grads.append({name: tensor.grad for name, tensor in params.items()})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=1e-4, atol=1e-6)


def test_a_step_with_a_cache_compiles():
    fast, counter = compiled()
    params, tokens_BT = tiny.params(CONFIG), tiny.tokens(1, 14)
    cache = Cache(64)
    parts = [fast(part, params, CONFIG, cache=cache) for part in tokens_BT.split([5, *[1] * 9], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), l3.forward(tokens_BT, params, CONFIG, cache=NO_CACHE))
    assert counter.frame_count <= 4


@pytest.mark.slow
@pytest.mark.parametrize("form", ["f32", "int4"])
def test_the_default_backend_gives_the_same_logits(form):
    """In a process of its own: the compiler wants setuptools' distutils, and other tests may have loaded Python's."""
    code = f"from tests.test_compile import compare_default_backend as c; c({form!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def compare_default_backend(form: str) -> None:
    fast, counter = compiled("inductor")
    params = forms.FORMS[form](tiny.params(CONFIG))
    for length in LENGTHS[:5]:
        tokens_BT = tiny.tokens(2, length)
        torch.testing.assert_close(
            fast(tokens_BT, params, CONFIG), l3.forward(tokens_BT, params, CONFIG), rtol=0, atol=2e-4
        )
    assert counter.frame_count <= MOST
