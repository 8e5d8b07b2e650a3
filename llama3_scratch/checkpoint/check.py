"""Whether a dict of tensors is the model that its config describes, before anything is computed with it."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import torch
from torch import Tensor

from llama3_scratch.config import Config, expected
from llama3_scratch.errors import FileError
from llama3_scratch.stored import FLOATS, NF4_GROUP, SIBLINGS, TILE_COLUMNS, TILE_ROWS, Params, dtype_name, units
from llama3_scratch.system.files import listed

log = logging.getLogger("llama3_scratch")

SCAN_LIMIT = 500_000_000  # bytes of weights below which `load` reads them all for NaN and infinity
_PIECE = 1 << 24  # elements that the scan looks at together

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

# What names a form beside a weight: rows and columns that share its scales' dimensions, and the weight's own dtype.
_BESIDE = {
    "scales": (1, 1, torch.int8),
    "int8_scales": (TILE_ROWS, TILE_COLUMNS, torch.int8),
    "int4_scales": (TILE_ROWS, TILE_COLUMNS, torch.uint8),
    "nf4_scales": (1, NF4_GROUP, torch.uint8),
}


def known_names(config: Config) -> set[str]:
    """Every key that a model of this config can have: its weights and the siblings that name a stored form."""
    known = set()
    for name, shape in expected(config).items():
        parts: tuple[str, ...] = ("weight", *SIBLINGS)
        if len(shape) == 1:
            parts = ("weight",)
        elif name == "tok_embeddings.weight":
            parts = tuple(part for part in parts if not part.startswith("adaptor"))
        known |= {name.removesuffix("weight") + part for part in parts}
    return known


def check(params: Params, config: Config, source: Path | str) -> None:
    """Raise FileError unless names, shapes and dtypes are what `config` means; reads no weights."""
    shapes = expected(config)
    if missing := [name for name in shapes if name not in params]:
        raise FileError(f"{source}: {listed(missing)} missing; expected {len(shapes)} tensors, got {len(params)}")
    known = known_names(config)
    if extra := [name for name in params if name not in known]:
        raise FileError(
            f"{source}: {listed(extra)} not part of a Llama of this config; `allow_extra=True` ignores that"
        )
    for name, shape in shapes.items():
        _check_tensor(params, name, shape, source)


def _check_tensor(params: Params, name: str, shape: tuple[int, ...], source: Path | str) -> None:
    stem = name.removesuffix(".weight")
    forms = [part for part in _BESIDE if f"{stem}.{part}" in params]
    for part, needed in (("zeros", "scales"), ("int4_mins", "int4_scales")):
        if f"{stem}.{part}" in params and needed not in forms:
            raise FileError(f"{source}: {stem}.{part} without {stem}.{needed}, expected both or neither")
    if len(forms) > 1:
        raise FileError(f"{source}: {stem} has {' and '.join(forms)}, expected one form of a weight")
    _check_form(params, stem, shape, forms[0] if forms else "", source)
    _check_adaptor(params, stem, shape, source)


def _check_adaptor(params: Params, stem: str, shape: tuple[int, ...], source: Path | str) -> None:
    """What stands beside a weight of `shape`: nothing, or a whole adapter that fits it."""
    adaptor = {part: params.get(f"{stem}.adaptor.{part}") for part in ("A.weight", "B.weight", "scale")}
    magnitude = params.get(f"{stem}.adaptor.magnitude")
    down, up, scale = adaptor.values()
    if down is None and up is None and scale is None and magnitude is None:
        return
    if down is None or up is None or scale is None:
        lacks = next(part for part, found in adaptor.items() if found is None)
        raise FileError(f"{source}: {stem}.adaptor.{lacks} is missing, an adapter is A, B and scale")
    for part, found in (("A.weight", down), ("B.weight", up), ("scale", scale)):
        _check_dtype(found, f"{stem}.adaptor.{part}", FLOATS, source)
    rank = down.shape[0] if down.ndim == 2 else 0
    if not rank or tuple(down.shape) != (rank, shape[1]) or tuple(up.shape) != (shape[0], rank) or scale.ndim:
        raise FileError(
            f"{source}: {stem}.adaptor: A {list(down.shape)}, B {list(up.shape)} and scale {list(scale.shape)} don't "
            f"fit {list(shape)}; expected A [rank, {shape[1]}], B [{shape[0]}, rank] and scale []"
        )
    if magnitude is not None:
        _check_dtype(magnitude, f"{stem}.adaptor.magnitude", FLOATS, source)
        _check_shape(magnitude, f"{stem}.adaptor.magnitude", shape[:1], "a length for each row", source)


def _check_form(params: Params, stem: str, shape: tuple[int, ...], form: str, source: Path | str) -> None:
    """Shapes and dtypes of a weight of `shape` and of what stands beside it: nothing, or the scales named `form`."""
    name = f"{stem}.weight"
    why = f"from {_FIELDS.get(stem.rpartition('.')[2], 'dim')}"
    if not form:
        _check_shape(params[name], name, shape, why, source)
        _check_dtype(params[name], name, FLOATS, source)
        return
    rows, columns = shape
    row_unit, column_unit, dtype = _BESIDE[form]
    if rows % row_unit or columns % column_unit:
        raise FileError(
            f"{source}: {stem}.{form}: a weight of {rows} × {columns}, expected {units(row_unit, column_unit)}"
        )
    groups = columns // column_unit
    of_groups: tuple[int, ...] = (rows, groups) if row_unit == 1 else (rows // TILE_ROWS, groups, TILE_ROWS)
    values = {
        "scales": shape,
        "int8_scales": (rows // TILE_ROWS, groups, 8, TILE_ROWS, 4),
        "int4_scales": (rows // TILE_ROWS, groups, 4, TILE_ROWS, 4),
        "nf4_scales": (rows, columns // 2),
    }[form]
    beside = "" if form == "scales" else f", beside {form}"
    _check_shape(params[name], name, values, f"{why}{beside}", source)
    _check_dtype(params[name], name, (dtype,), source, beside=True)
    scales = params[f"{stem}.{form}"]
    if form == "scales":
        groups = scales.shape[1] if scales.ndim == 2 else 0
        if not groups or scales.shape[0] != rows or columns % groups:
            raise FileError(
                f"{source}: {stem}.scales: shape {list(scales.shape)}, expected [{rows}, groups] with groups "
                f"dividing {columns}"
            )
        of_groups = (rows, groups)
    _check_shape(scales, f"{stem}.{form}", of_groups, f"of a weight of {rows} × {columns}", source)
    _check_dtype(scales, f"{stem}.{form}", (torch.float16,) if row_unit > 1 else FLOATS, source)
    for part in ("zeros", "int4_mins"):
        if (offsets := params.get(f"{stem}.{part}")) is not None:
            _check_shape(offsets, f"{stem}.{part}", of_groups, "that of the scales", source)
            if part == "int4_mins":
                _check_dtype(offsets, f"{stem}.{part}", (torch.float16,), source)


def _check_shape(tensor: Tensor, name: str, shape: tuple[int, ...], why: str, source: Path | str) -> None:
    if tuple(tensor.shape) != shape:
        raise FileError(f"{source}: {name}: shape {list(tensor.shape)}, expected {list(shape)} ({why})")


def _check_dtype(
    tensor: Tensor, name: str, dtypes: tuple[torch.dtype, ...], source: Path | str, *, beside: bool = False
) -> None:
    if tensor.dtype not in dtypes:
        wanted = " or ".join(dtype_name(dtype) for dtype in dtypes)
        raise FileError(
            f"{source}: {name}: dtype {dtype_name(tensor.dtype)}{' beside its scales' * beside}, expected {wanted}"
        )


def scan(params: Params, source: Path | str) -> None:
    """Read every weight: NaN or infinity raises FileError with key, count and place; a dead or wild tensor warns."""
    seen: set[int] = set()
    for name, tensor in params.items():
        if not tensor.is_floating_point() or tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        # One pass, in pieces because it widens bf16; finite values may overflow too, but no trained Llama's.
        pieces = tensor.flatten().split(_PIECE)
        norms = [torch.linalg.vector_norm(piece, dtype=torch.float32).item() for piece in pieces]
        rms = math.hypot(*norms) / math.sqrt(tensor.numel())
        if not math.isfinite(rms) and not (finite := torch.isfinite(tensor)).all():
            first = (~finite).nonzero()[0].tolist()
            raise FileError(f"{source}: {name}: {int((~finite).sum())} NaN or infinite values, the first at {first}")
        if name.endswith(("weight", "scales")) and not 0 < rms <= 1e3:
            log.warning("%s: %s: root mean square %g, which no trained Llama has", source, name, rms)


def same(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether both are absent or equal. The first row decides nearly always, so few gigabytes are read for this."""
    if one is None or other is None:
        return one is other
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return one.data_ptr() == other.data_ptr() or (torch.equal(one[:1], other[:1]) and torch.equal(one, other))
