"""Whether a dict of tensors is the model that its config describes, before anything is computed with it."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from llama3_scratch.config import Config, expected
from llama3_scratch.errors import FileError
from llama3_scratch.linear import SIBLINGS, Params

log = logging.getLogger("llama3_scratch")

FLOATS = (torch.bfloat16, torch.float16, torch.float32)

SCAN_LIMIT = 500_000_000  # bytes of weights below which `load` reads them all for NaN and infinity

# Which of params.json's fields a tensor's shape follows from, for the message.
_FIELDS = {
    "tok_embeddings": "vocab_size, dim",
    "output": "vocab_size, dim",
    "wq": "n_heads, dim",
    "wo": "n_heads, dim",
    "wk": "n_kv_heads, n_heads, dim",
    "wv": "n_kv_heads, n_heads, dim",
    "w1": "dim, multiple_of, ffn_dim_multiplier",
    "w2": "dim, multiple_of, ffn_dim_multiplier",
    "w3": "dim, multiple_of, ffn_dim_multiplier",
}


def known_names(config: Config) -> set[str]:
    """Every key that a model of this config can have: its weights and the siblings that name a stored form."""
    return {name.removesuffix("weight") + part for name in expected(config) for part in ("weight", *SIBLINGS)}


def check(params: Params, config: Config, source: Path | str) -> None:
    """Raise FileError unless names, shapes and dtypes are what `config` means; reads no weights."""
    shapes = expected(config)
    if missing := [name for name in shapes if name not in params]:
        raise FileError(f"{source}: {_listed(missing)} missing; expected {len(shapes)} tensors, got {len(params)}")
    known = known_names(config)
    extra = [name for name in params if name not in known]
    if extra:
        raise FileError(f"{source}: {_listed(extra)} not part of a Llama of this config; --allow-extra ignores them")
    for name, shape in shapes.items():
        _check_tensor(params, name, shape, source)


def _check_tensor(params: Params, name: str, shape: tuple[int, ...], source: Path | str) -> None:
    tensor, stem = params[name], name.removesuffix(".weight")
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
        found = tensor.layout if isinstance(tensor, Tensor) else type(tensor).__name__
        raise FileError(f"{source}: {name}: expected a dense tensor, got {found}")
    if tuple(tensor.shape) != shape:
        field = _FIELDS.get(stem.rpartition(".")[2], "dim")
        raise FileError(f"{source}: {name}: shape {list(tensor.shape)}, expected {list(shape)} (from {field})")
    scales = params.get(f"{stem}.scales")
    if scales is None:
        if tensor.dtype not in FLOATS:
            raise FileError(f"{source}: {name}: dtype {_short(tensor)}, expected bfloat16, float16 or float32")
    else:
        if tensor.dtype != torch.int8:
            raise FileError(f"{source}: {name}: dtype {_short(tensor)} beside {stem}.scales, expected int8")
        if scales.ndim != 2 or scales.shape[0] != shape[0] or shape[1] % scales.shape[1]:
            raise FileError(
                f"{source}: {stem}.scales: shape {list(scales.shape)}, expected [{shape[0]}, groups] with groups "
                f"dividing {shape[1]}"
            )
    if f"{stem}.adaptor.A.weight" in params or f"{stem}.adaptor.B.weight" in params:
        for sibling in ("A.weight", "B.weight", "scale"):
            if f"{stem}.adaptor.{sibling}" not in params:
                raise FileError(f"{source}: {stem}.adaptor.{sibling} is missing, an adapter is A, B and scale")
        down, up = params[f"{stem}.adaptor.A.weight"], params[f"{stem}.adaptor.B.weight"]
        if down.shape[1] != shape[1] or up.shape[0] != shape[0] or down.shape[0] != up.shape[1]:
            raise FileError(
                f"{source}: {stem}.adaptor: A {list(down.shape)} and B {list(up.shape)} don't fit {list(shape)}; "
                f"expected A [rank, {shape[1]}] and B [{shape[0]}, rank]"
            )


def scan(params: Params, source: Path | str) -> None:
    """Read every weight: NaN or infinity raises FileError with key, count and place; a dead or wild tensor warns."""
    for name, tensor in params.items():
        if not tensor.is_floating_point():
            continue
        finite = torch.isfinite(tensor)
        if not finite.all():
            first = (~finite).nonzero()[0].tolist()
            raise FileError(f"{source}: {name}: {int((~finite).sum())} NaN or infinite values, the first at {first}")
        rms = tensor.float().pow(2).mean().sqrt().item()
        if rms == 0 or rms > 1e3:
            log.warning("%s: %s: root mean square %g, which no trained Llama has", source, name, rms)


def n_bytes(params: Params) -> int:
    """Bytes of all weights, a shared one counted once."""
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in params.values()}.values())


def _short(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _listed(names: Iterable[str], most: int = 10) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more + (" is" if len(names) == 1 else " are")
