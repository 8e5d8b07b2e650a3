"""Low-rank adapters beside the weights (LoRA, arXiv:2106.09685): params → params. What `linear` adds is trained.

Of a weight W (rows × columns) it makes W + scale · B · A, A (rank × columns) and B (rows × rank); with a magnitude
(DoRA, arXiv:2402.09353) each row of that sum gets this length. The weights stay as they're stored, in whatever form.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable

import torch
from torch import Tensor

from llama3_scratch.config import Config
from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.linear import norms_of, row_norms
from llama3_scratch.params.hf_layout import LAYER_MODULES
from llama3_scratch.stored import FORM_KEYS, Floats, Params, dtype_name, stored
from llama3_scratch.system.files import listed

log = logging.getLogger("llama3_scratch")

_MATRICES = {meta: hf for meta, hf in LAYER_MODULES.items() if "norm" not in meta}
PROJECTIONS = tuple(name.rpartition(".")[2] for name in _MATRICES)  # wq, wk, wv, wo, w1, w3, w2
# Meta's names and Hugging Face's, and what each means.
_TARGETS = {name.rpartition(".")[2]: meta for meta, hf in _MATRICES.items() for name in (meta, hf)}
_HEADS = ("output", "lm_head")


def target_names(targets: Iterable[str], config: Config) -> list[str]:
    """The weights that `targets` mean, in the forward's order: `layers.0.attention.wq`, …"""
    targets = list(targets)
    for target in targets:
        if target in ("tok_embeddings", "embed_tokens"):
            raise UsageError(
                f"{target}: an embedding is looked up, not multiplied by, and takes no adapter; leave it out"
            )
        if target not in (*_TARGETS, *_HEADS):
            raise UsageError(f"no weight {target!r} takes an adapter, expected {', '.join([*_TARGETS, *_HEADS])}")
    if not targets:
        raise UsageError(f"an adapter of no weights; name some of {', '.join([*PROJECTIONS, _HEADS[0]])}")
    chosen = {_TARGETS.get(target) for target in targets}
    names = [f"layers.{layer}.{kind}" for layer in range(config.n_layers) for kind in _MATRICES if kind in chosen]
    return names + ["output"] * any(target in _HEADS for target in targets)


@torch.no_grad()
def attach(
    params: Params,
    config: Config,
    *,
    rank: int,
    alpha: float,
    targets: Iterable[str] = PROJECTIONS,
    rslora: bool = False,
    dora: bool = False,
    seed: int,
) -> Params:
    """Fresh adapters beside the weights that `targets` name, which change nothing yet: B is zero.

    A is as PEFT draws it, uniform within 1/√columns. The scale is alpha/rank, or alpha/√rank (rsLoRA,
    arXiv:2312.03732), which keeps its size as the rank grows.
    """
    if rank < 1:
        raise UsageError(f"an adapter's rank is at least 1, got {rank}")
    if not 0 < alpha < math.inf:
        raise UsageError(f"an adapter's alpha is a positive number, got {alpha}")
    names = target_names(targets, config)
    if taken := [name for name in names if name in adapted(params)]:
        raise UsageError(f"{taken[0]}: has an adapter already; merge or detach it first")
    generator = torch.Generator().manual_seed(seed)
    made = dict(params)
    for name in names:
        weight = stored(params, name)
        (rows, columns), device = weight.shape, weight.values.device
        dtype = torch.promote_types(params["norm.weight"].dtype, torch.float32)
        bound = 1 / math.sqrt(columns)
        down = torch.empty(rank, columns, dtype=dtype).uniform_(-bound, bound, generator=generator)
        made[f"{name}.adaptor.A.weight"] = down.to(device)
        made[f"{name}.adaptor.B.weight"] = torch.zeros(rows, rank, dtype=dtype, device=device)
        scale = alpha / (math.sqrt(rank) if rslora else rank)
        made[f"{name}.adaptor.scale"] = torch.tensor(scale, dtype=dtype, device=device)
        if dora:
            made[f"{name}.adaptor.magnitude"] = row_norms(made, name, dtype)
    return made


def adapted(params: Params) -> list[str]:
    """The weights that have an adapter."""
    end = ".adaptor.A.weight"
    return [name.removesuffix(end) for name in params if name.endswith(end)]


def adapter(params: Params) -> Params:
    """The adapters alone: what is to be kept of them, their scales too."""
    return {name: tensor for name, tensor in params.items() if ".adaptor." in name}


def trainable(params: Params) -> Params:
    """What an optimizer gets: the adapters' A, B and magnitude. The scale is a constant."""
    return {name: tensor for name, tensor in adapter(params).items() if not name.endswith(".scale")}


def detach(params: Params) -> Params:
    """The model without its adapters."""
    return {name: tensor for name, tensor in params.items() if ".adaptor." not in name}


@torch.no_grad()
def stack(params: Params, *adapters: Params) -> Params:
    """The model with these adapters too: of several on one weight the ranks are concatenated, which adds them up.

    Their order changes no more than the rounding of a sum. Whole weights among an adapter's (PEFT's modules_to_save)
    take the place of the model's. What doesn't add up raises UsageError: DoRA on a weight that another adapter has too,
    a whole weight of two adapters.
    """
    made = dict(params)
    replaced: set[str] = set()
    for new in adapters:
        for name in [name for name in new if ".adaptor." not in name]:
            form = stored(params, name.removesuffix(".weight"))
            if type(form) is Floats and new[name].equal(form.values.to(new[name].dtype)):
                continue  # a copy of what is there
            if name in replaced:
                raise UsageError(f"{name}: two adapters bring it whole, which don't add up; take one of them")
            replaced.add(name)
            for part in FORM_KEYS:
                made.pop(name.removesuffix("weight") + part, None)
            made[name] = new[name]
        for name in adapted(new):
            its = {key: new[key] for part in _ADAPTER_PARTS if (key := f"{name}.adaptor.{part}") in new}
            made |= _concatenated(made, its, name) if f"{name}.adaptor.A.weight" in made else its
    return made


_ADAPTER_PARTS = ("A.weight", "B.weight", "scale", "magnitude")


def _concatenated(one: Params, other: Params, name: str) -> Params:
    """Two adapters of one weight as one of both ranks."""
    A, B, scale, magnitude = (f"{name}.adaptor.{part}" for part in _ADAPTER_PARTS)
    if magnitude in one or magnitude in other:
        raise UsageError(f"{name}: two adapters of which one is DoRA don't add up; merge the one, then take the other")
    same = one[scale].item() == other[scale].item()
    if not same:  # each scale goes into its own B
        one, other = ({**its, B: _wide(its[B]) * its[scale]} for its in (one, other))
    return {
        A: torch.cat([one[A], other[A]]),
        B: torch.cat([one[B], other[B]], dim=1),
        scale: one[scale] if same else torch.ones_like(one[scale]),
    }


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def merged_rows(params: Params, name: str, dtype: torch.dtype, rows: slice = slice(None)) -> Tensor:
    """Rows of a weight as plain floats, its adapter merged in: (rows, columns)."""
    floats = stored(params, name).floats(rows, dtype)
    if f"{name}.adaptor.A.weight" in params:
        down, up = (params[f"{name}.adaptor.{part}.weight"].to(dtype) for part in "AB")
        floats = floats + params[f"{name}.adaptor.scale"].to(dtype) * (up[rows] @ down)
    if (magnitude := params.get(f"{name}.adaptor.magnitude")) is not None:
        floats = floats * (magnitude[rows].to(dtype) / norms_of(floats))[:, None]
    return floats


def on_tied_head(params: Params) -> bool:
    """Whether an adapter stands beside a head that is the embedding too."""
    return "output.adaptor.A.weight" in params and params["output.weight"] is params["tok_embeddings.weight"]


@torch.no_grad()
def merge(params: Params, *, dtype: torch.dtype | None = None) -> Params:
    """The same model with its adapters in its weights: as fast as without any.

    Merged weights are of `dtype`, else of their own, f32 where they were integers; a warning says what rounding costs.
    Raises FileError for an adapter of a tied head, which would change the embedding too.
    """
    if on_tied_head(params):
        raise FileError(
            "output: its weight is the embedding's too (tied), which the adapter wasn't trained to change; leave the "
            "adapter beside it, or train without output"
        )
    if integers := [name for name in adapted(params) if type(stored(params, name)) is not Floats]:
        log.warning("%s turned into floats, since an adapter is merged into integers", listed(integers, 2))
    return _merged(params, dtype)


@torch.no_grad()
def unmerge(merged: Params, adapter: Params) -> Params:
    """The model before `merge`, but for rounding: what the adapter added is taken away again. Integers stay floats.

    Raises UsageError for DoRA, of which merging keeps no trace of the rows' own norms, and for integers.
    """
    for name in adapted(adapter):
        if f"{name}.adaptor.magnitude" in adapter:
            raise UsageError(
                f"{name}: DoRA can't be unmerged, the rows' own norms are lost; take the weights of before"
            )
        if type(form := stored(merged, name)) is not Floats:
            raise UsageError(f"{name}: stored as {form.name}, so nothing was merged into it; detach the adapter")
    minus = {name: -tensor if name.endswith(".scale") else tensor for name, tensor in adapter.items()}
    return _merged(detach(merged) | minus, None)


def _merged(params: Params, dtype: torch.dtype | None) -> Params:
    made = detach(params)
    lost = changed = 0.0
    for name in adapted(params):
        for part in FORM_KEYS:
            made.pop(f"{name}.{part}", None)
        weight = stored(params, name)
        own = dtype or weight.dtype
        wide = merged_rows(params, name, torch.promote_types(own, torch.float32))
        made[f"{name}.weight"] = wide.to(own)
        if own != wide.dtype:
            lost += (made[f"{name}.weight"] - wide).square().sum().item()
            if not math.isfinite(lost):
                raise UsageError(
                    f"{name}: merged it reaches {wide.abs().max().item():g}, too much for {dtype_name(own)}"
                )
            changed += (wide - weight.floats(slice(None), wide.dtype)).square().sum().item()
    if lost:
        log.warning(
            "merging rounds to %s, which adds an error of %.2g %% of what the adapter changes",
            dtype_name(own),
            100 * math.sqrt(lost / changed) if changed else math.inf,
        )
    return made
