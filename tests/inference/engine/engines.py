"""Engines over a tiny model, and what each prompt is answered without company."""

from __future__ import annotations

from dataclasses import replace
from functools import cache as remembered

import pytest
import torch

from llama3_scratch.cache import Slots
from llama3_scratch.caches.paged import PagedCache
from llama3_scratch.caches.quantized import Bf16Slots, Int4Slots, Int8Slots
from llama3_scratch.config import Config
from llama3_scratch.inference.engine.engine import Engine
from llama3_scratch.inference.fast_forward import FastForward
from llama3_scratch.inference.requests import Request
from llama3_scratch.inference.sample import sampler
from llama3_scratch.native import kernels
from llama3_scratch.params.quantize import quantize
from llama3_scratch.stored import Params
from tests import tiny

CONFIG = replace(tiny.TILED, n_layers=2)
CACHES = {"floats": Slots, "bf16": Bf16Slots, "int8": Int8Slots, "int4": Int4Slots}
WEIGHTS = ("int8", "int4", "int4-sym")
BASE = tiny.tokens(1, 200, CONFIG, seed=3)[0].tolist()
# Beginnings in common of no page, one, one and a bit, two and three; a prompt of one token, and of whole pages.
PROMPTS = [
    BASE[:length] + tiny.tokens(1, more, CONFIG, seed=length + more)[0].tolist()
    for length, more in ((0, 1), (0, 9), (64, 1), (64, 30), (70, 3), (128, 0), (129, 20), (150, 64), (192, 8), (200, 0))
]
needs_kernels = pytest.mark.skipif(kernels.library() is None, reason="the kernels weren't built: no C compiler")


@remembered
def params_in(form: str) -> Params:
    return quantize(tiny.params(CONFIG), form) if form in WEIGHTS else tiny.params(CONFIG)


@remembered
def model_in(form: str) -> FastForward:
    return FastForward(params_in(form), CONFIG, dtype=torch.float32)


def engine(form: str = "int8", cache: str = "floats", *, pages: int = 40, config: Config = CONFIG, **options) -> Engine:
    kind = CACHES[cache]
    return Engine(model_in(form), PagedCache(config, pages, keys=kind, values=kind), **options)


@remembered
def alone(form: str, cache: str, prompt: int, seed: int | None, n: int) -> list[tuple[int, torch.Tensor]]:
    """Tokens and logits of an answer without company."""
    request = Request(PROMPTS[prompt], choose(seed), n)
    return [(event.token, event.logits_V) for event in engine(form, cache).run([request])]


def choose(seed: int | None):
    return sampler() if seed is None else sampler(temperature=1.5, top_p=0.95, seed=seed)
