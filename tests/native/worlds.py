"""Weights in every form, wild enough for a wrong sum to show, and the layers in torch beside them."""

from __future__ import annotations

from contextlib import contextmanager

import torch

from llama3_scratch.cache import NO_CACHE, Slots
from llama3_scratch.caches.quantized import Bf16Slots, Int4Slots, Int8Slots
from llama3_scratch.config import Config
from llama3_scratch.init import init
from llama3_scratch.model import forward
from llama3_scratch.native import kernels
from llama3_scratch.params.quantize import FORMS, quantize
from llama3_scratch.stored import Params
from tests import tiny
from tests.forms import quantised

# Every dimension a different number, in whole tiles: D=96 H=6 G=2 (R=3) K=16 F=160 V=112
TILED = Config(96, 3, 6, 2, 112, 160, rope_scaling=tiny.CONFIG.rope_scaling, max_seq_len=4096)
WIDE = Config(384, 1, 6, 3, 112, 160, max_seq_len=4096)  # heads of 64: two groups of a cache


def one(form: str, weight: torch.Tensor) -> Params:
    """The weight "w" in a form."""
    plain = {"f32": weight, "bf16": weight.bfloat16(), "f16": weight.half()}
    if form in plain:
        return {"w.weight": plain[form]}
    if form == "int8 rows":
        return quantised({"w.weight": weight}, group=0, bits=8, only=("w",))
    if form == "int8 groups of 8":
        return quantised({"w.weight": weight}, group=8, bits=8, only=("w",))
    made = FORMS[{"int4": "int4-sym", "int4 with mins": "int4"}.get(form, form)].stored(weight)
    return {f"w.{part}": tensor for part, tensor in made.items()}


ROW_FORMS = ["f32", "bf16", "f16", "int8 rows", "int8 groups of 8"]
TILE_FORMS = ["int8", "int4", "int4 with mins"]


def rounded(x: torch.Tensor) -> torch.Tensor:
    """x as the kernels give it to weights in tiles: 16 bits with a scale for 32."""
    grouped = x.unflatten(-1, (-1, 32))
    scales = grouped.abs().amax(-1, keepdim=True) / (127 * 256)
    return ((grouped / scales).nan_to_num(0).round() * scales).flatten(-2)


@contextmanager
def without_kernels():
    """Torch computes."""
    level = kernels.chosen()
    kernels.choose(kernels.TORCH)
    try:
        yield
    finally:
        kernels.choose(level)


def plain(tokens_BT, params, config, *, cache=NO_CACHE):
    """`forward` in f32 with no kernel in it."""
    with without_kernels():
        return forward(tokens_BT, params, config, cache=cache, dtype=torch.float32)


WEIGHTS = {
    "f32": lambda params: params,
    "bf16": lambda params: {name: weight.bfloat16() for name, weight in params.items()},
    "f16": lambda params: {name: weight.half() for name, weight in params.items()},
    "int8 rows": lambda params: quantised(params, group=0, bits=8, only=("wq", "wk", "wv", "wo", "w1", "w2", "w3")),
    "int8": lambda params: quantize(params, "int8"),
    "int4": lambda params: quantize(params, "int4"),
}


def wild(config: Config) -> Params:
    return init(config, seed=0, std=0.12, norm_std=0.2)


KEPT = {"as it comes": Slots, "bf16": Bf16Slots, "int8": Int8Slots, "int4": Int4Slots}
