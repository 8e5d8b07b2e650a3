"""Every form in which a weight can lie in memory, made from plain weights, and what each means as plain floats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from llama3_scratch.config import Config
from llama3_scratch.params.lora import trainable
from llama3_scratch.params.quantize import quantize
from llama3_scratch.stored import FORM_KEYS as ENDS
from llama3_scratch.stored import NF4_LEVELS, Params, stored
from tests import tiny


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


def with_adaptors(params: Params, *, rank: int = 3, names: tuple[str, ...] = PROJECTIONS, dora: bool = False) -> Params:
    """A random low-rank adapter beside every projection, with `dora` of random magnitudes too."""
    generator = torch.Generator().manual_seed(11)
    made = dict(params)
    dtype = params["norm.weight"].dtype
    for name in params:
        if not name.endswith(tuple(f"{part}.weight" for part in names)):
            continue
        stem = name.removesuffix(".weight")
        rows, columns = stored(params, stem).shape
        made[f"{stem}.adaptor.A.weight"] = (0.2 * torch.randn(rank, columns, generator=generator)).to(dtype)
        made[f"{stem}.adaptor.B.weight"] = (0.2 * torch.randn(rows, rank, generator=generator)).to(dtype)
        made[f"{stem}.adaptor.scale"] = torch.tensor(0.5)
        if dora:
            made[f"{stem}.adaptor.magnitude"] = (1 + torch.rand(rows, generator=generator)).to(dtype)
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
    "int8-row": lambda params: quantize(params, "int8-row", embeddings="int8-row"),
    "int8 tiles": lambda params: quantize(params, "int8"),
    "int4 tiles": lambda params: quantize(params, "int4"),
    "int4-sym tiles": lambda params: quantize(params, "int4-sym", embeddings="int4-sym"),
    "nf4": lambda params: quantize(params, "nf4", embeddings="nf4"),
    "adaptors on nf4": lambda params: with_adaptors(quantize(params, "nf4")),
    "adaptors on int4 tiles": lambda params: with_adaptors(quantize(params, "int4")),
    "DoRA on f32": lambda params: with_adaptors(params, dora=True),
    "DoRA on nf4": lambda params: with_adaptors(quantize(params, "nf4"), dora=True),
}
_TILED = ("int8 tiles", "int4 tiles", "int4-sym tiles", "nf4")


def fitting(form: str, config: Config = tiny.CONFIG) -> Config:
    """`config`, or one like it with sizes that the form divides."""
    if not form.endswith(_TILED):
        return config
    sizes = {
        "dim": tiny.TILED.dim,
        "head_dim": None,
        "vocab_size": tiny.TILED.vocab_size,
        "hidden_dim": tiny.TILED.hidden_dim,
    }
    return replace(config, **sizes)


def plain(params: Params) -> Params:
    """The same model in plain f64 weights: integers times scales, adapters added in."""
    made: Params = {}
    for name, weight in params.items():
        stem = name.removesuffix(".weight")
        if not name.endswith(".weight") or ".adaptor." in name:
            continue
        dense = _dense(weight, {part: params[f"{stem}.{part}"] for part in ENDS if f"{stem}.{part}" in params})
        if f"{stem}.adaptor.A.weight" in params:
            down, up = params[f"{stem}.adaptor.A.weight"], params[f"{stem}.adaptor.B.weight"]
            dense = dense + params[f"{stem}.adaptor.scale"].double() * (up.double() @ down.double())
        if (magnitude := params.get(f"{stem}.adaptor.magnitude")) is not None:
            dense = dense / dense.square().sum(1, keepdim=True).sqrt() * magnitude.double()[:, None]
        made[name] = dense
    return made


def _dense(weight: Tensor, beside: dict[str, Tensor]) -> Tensor:
    """A weight's numbers by the words of `stored`'s docstring, a column at a time."""
    kinds = {"int8_scales", "int4_scales", "nf4_scales"} & set(beside)
    if not kinds:
        dense = weight.double()
        if "scales" in beside:
            scales = beside["scales"].double()
            dense = dense - widened(beside.get("zeros", torch.zeros_like(scales)), dense)
            dense = dense * widened(scales, dense)
        return dense
    (kind,) = kinds
    scales, mins = beside[kind].double(), beside.get("int4_mins")
    if kind == "nf4_scales":
        levels = torch.tensor(NF4_LEVELS, dtype=torch.float64)
        dense = torch.empty(weight.shape[0], 2 * weight.shape[1], dtype=torch.float64)
        dense[:, 0::2], dense[:, 1::2] = levels[(weight % 16).long()], levels[(weight // 16).long()]
        return dense * widened(scales, dense)
    columns = []
    for column in range(32 * weight.shape[1]):  # each of all rows: (tiles, 16)
        group, within = divmod(column, 32)
        scale = scales[:, group]
        if kind == "int8_scales":
            values = weight[:, group, within // 4, :, within % 4].double() * scale
        else:
            byte = weight[:, group, within % 16 // 4, :, within % 4]
            q = (byte % 16 if within < 16 else byte // 16).double()
            values = (q - 8) * scale if mins is None else q * scale + mins[:, group].double()
        columns.append(values.flatten())
    return torch.stack(columns, dim=1)


def widened(of_groups: Tensor, like: Tensor) -> Tensor:
    """One number a group → one a column."""
    return of_groups.double().repeat_interleave(like.shape[1] // of_groups.shape[1], dim=1)


def trained(params, seed=5):
    """As after some steps: A, B and magnitudes are random numbers of their own."""
    generator = torch.Generator().manual_seed(seed)
    made = dict(params)
    for name, tensor in trainable(params).items():
        noise = torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
        made[name] = tensor * (1 + 0.2 * noise) if name.endswith("magnitude") else 0.1 * noise
    return made
