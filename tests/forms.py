"""Every form in which a weight can lie in memory, made from plain weights, and what each means as plain floats."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from llama3_scratch.linear import Params


def quantised(params: Params, *, group: int, bits: int, zeros: bool = False, only: tuple[str, ...]) -> Params:
    """The matrices named in `only` as integers of `bits` bits with one scale for `group` columns (0: for a row)."""
    made: Params = {}
    for name, weight in params.items():
        stem = name.removesuffix(".weight")
        if weight.ndim != 2 or not stem.endswith(only):
            made[name] = weight
            continue
        grouped = weight.float().unflatten(1, (-1, group or weight.shape[1]))
        low, high = grouped.amin(-1), grouped.amax(-1)
        top = 2 ** (bits - 1) - 1
        scales = (high - low) / (2 * top) if zeros else grouped.abs().amax(-1) / top
        middle = (-(high + low) / 2 / scales).round() if zeros else torch.zeros_like(scales)
        integers = (grouped / scales[..., None] + middle[..., None]).round().clamp(-top - 1, top)
        made[name] = integers.flatten(1).to(torch.int8)
        made[f"{stem}.scales"] = scales
        if zeros:
            made[f"{stem}.zeros"] = middle
    return made


PROJECTIONS = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")


def with_adaptors(params: Params, *, rank: int = 3, names: tuple[str, ...] = PROJECTIONS) -> Params:
    """A random low-rank adapter beside every projection."""
    generator = torch.Generator().manual_seed(11)
    made = dict(params)
    dtype = params["norm.weight"].dtype
    for name in params:
        if not name.endswith(tuple(f"{part}.weight" for part in names)):
            continue
        stem, (rows, columns) = name.removesuffix(".weight"), params[name].shape
        made[f"{stem}.adaptor.A.weight"] = (0.2 * torch.randn(rank, columns, generator=generator)).to(dtype)
        made[f"{stem}.adaptor.B.weight"] = (0.2 * torch.randn(rows, rank, generator=generator)).to(dtype)
        made[f"{stem}.adaptor.scale"] = torch.tensor(0.5)
    return made


def _int4(params: Params) -> Params:
    """As in Meta's int4 release of 3.2: int4 projections in groups, int8 rows of embedding and head."""
    params = quantised(params, group=8, bits=4, only=PROJECTIONS)
    return quantised(params, group=0, bits=8, only=("tok_embeddings", "output"))


FORMS: dict[str, Callable[[Params], Params]] = {
    "f32": dict,
    "f64": lambda params: {name: weight.double() for name, weight in params.items()},
    "bf16": lambda params: {name: weight.bfloat16() for name, weight in params.items()},
    "f16": lambda params: {name: weight.half() for name, weight in params.items()},
    "int4": _int4,
    "int4 with zeros": lambda params: quantised(params, group=8, bits=4, zeros=True, only=PROJECTIONS),
    "adaptors on f32": with_adaptors,
    "adaptors on bf16": lambda params: with_adaptors({name: weight.bfloat16() for name, weight in params.items()}),
    "adaptors on int4": lambda params: with_adaptors(_int4(params)),
}


def plain(params: Params) -> Params:
    """The same model in plain f64 weights: integers times scales, adapters added in."""
    made: Params = {}
    for name, weight in params.items():
        stem = name.removesuffix(".weight")
        if not name.endswith(".weight") or ".adaptor." in name:
            continue
        dense = weight.double()
        if f"{stem}.scales" in params:
            scales = params[f"{stem}.scales"].double()
            dense = dense - widened(params.get(f"{stem}.zeros", torch.zeros_like(scales)), dense)
            dense = dense * widened(scales, dense)
        if f"{stem}.adaptor.A.weight" in params:
            down, up = params[f"{stem}.adaptor.A.weight"], params[f"{stem}.adaptor.B.weight"]
            dense = dense + params[f"{stem}.adaptor.scale"].double() * (up.double() @ down.double())
        made[name] = dense
    return made


def widened(of_groups: Tensor, like: Tensor) -> Tensor:
    """One number a group → one a column."""
    return of_groups.double().repeat_interleave(like.shape[1] // of_groups.shape[1], dim=1)
