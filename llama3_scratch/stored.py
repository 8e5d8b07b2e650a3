"""The forms in which a weight is stored, and what each means as floats. A form is named by the keys beside
`{name}.weight`, never guessed from sizes:

* nothing beside it: floats (rows × columns).
* `.scales` (and perhaps `.zeros`): int8 in groups along each row, one scale a group. Meta's int4 releases store their
  projections (groups of 32) and embeddings (one group a row) this way.
* `.int8_scales`: int8 in tiles of 16 rows × 32 columns. A row has a scale, in f16, for the 32 columns of a tile.
* `.int4_scales` (and perhaps `.int4_mins`): 4 bits in such tiles; a value q means (q − 8) · scale, or q · scale + min.
* `.nf4_scales`: 4 bits that name one of 16 levels, in groups of 64 along each row (arXiv:2305.14314).

The tiles hold the numbers of GGUF's Q8_0, Q4_0 and Q4_1 blocks in an order for which a processor needs no sums across
its registers: int8 tiles are (tiles, groups, 8, 16, 4), eight times 4 columns of all 16 rows; a byte of int4 tiles
(tiles, groups, 4, 16, 4) has a column's number in its low half, and that of the column 16 further on in its high half.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Params = dict[str, Tensor]
Rows = slice | Tensor
FLOATS = (torch.bfloat16, torch.float16, torch.float32)  # the dtypes of a checkpoint's floats

TILE_ROWS, TILE_COLUMNS = 16, 32
NF4_GROUP = 64
PIECE_ELEMENTS = 1 << 19  # turned into floats at once: 2 MB in f32, which stays in the cache until they're used
# The quantiles of a normal distribution, scaled to −1 … 1, with an exact 0 (arXiv:2305.14314, appendix E).
# fmt: off
NF4_LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)
# fmt: on

# Ends of the keys that name a form of integers, and of all keys that may stand beside a weight.
FORM_KEYS = ("scales", "zeros", "int8_scales", "int4_scales", "int4_mins", "nf4_scales")
SHORT_DTYPE = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "float64": "f64"}
SIBLINGS = (*FORM_KEYS, "adaptor.A.weight", "adaptor.B.weight", "adaptor.scale", "adaptor.magnitude")


@dataclass(frozen=True)
class Floats:
    """A plain weight."""

    values: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.values.shape[0], self.values.shape[1]

    @property
    def name(self) -> str:
        """What the form is called: by the types of `quantize`, or the float type."""
        return str(self.values.dtype).removeprefix("torch.")

    @property
    def dtype(self) -> torch.dtype:
        """The float type nearest to the form: what `embed` yields unless told otherwise."""
        return self.values.dtype

    def floats(self, rows: Rows, dtype: torch.dtype) -> Tensor:
        """The chosen rows: (rows, columns) of a slice without steps, (*rows.shape, columns) of a tensor of indices."""
        return self.values[rows].to(dtype)


@dataclass(frozen=True)
class Grouped(Floats):
    """int8 (rows, columns) with scales, and perhaps zeros, (rows, groups)."""

    scales: Tensor
    zeros: Tensor | None = None

    @property
    def name(self) -> str:
        per_row = self.scales.shape[1] == 1 and self.zeros is None
        return "int8-row" if per_row else f"integers in groups of {self.shape[1] // self.scales.shape[1]}"

    @property
    def dtype(self) -> torch.dtype:
        return self.scales.dtype

    def floats(self, rows: Rows, dtype: torch.dtype) -> Tensor:
        grouped = self.values[rows].to(dtype).unflatten(-1, (self.scales.shape[-1], -1))
        if self.zeros is not None:
            grouped = grouped - self.zeros[rows].to(dtype)[..., None]
        return (grouped * self.scales[rows].to(dtype)[..., None]).flatten(-2)


@dataclass(frozen=True)
class Tiles(Floats):
    """int8 or, as uint8, 4-bit tiles with scales, and perhaps mins, (tiles, groups, 16); `bits` is 8 or 4."""

    scales: Tensor
    mins: Tensor | None
    bits: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape[0] * TILE_ROWS, self.values.shape[1] * TILE_COLUMNS

    @property
    def name(self) -> str:
        return "int8" if self.bits == 8 else "int4-sym" if self.mins is None else "int4"

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def floats(self, rows: Rows, dtype: torch.dtype) -> Tensor:
        if isinstance(rows, slice):
            first, end, _ = rows.indices(self.shape[0])
            tiles = slice(first // TILE_ROWS, -(-end // TILE_ROWS))
            values = untiled_values(self.values[tiles])
            mins = None if self.mins is None else untiled(self.mins[tiles])
            return self._floats(values, untiled(self.scales[tiles]), mins, dtype)[first % TILE_ROWS :][: end - first]
        at = rows // TILE_ROWS, slice(None), rows % TILE_ROWS
        values = self.values[at[0], :, :, at[2]].flatten(-2)
        return self._floats(values, self.scales[at], None if self.mins is None else self.mins[at], dtype)

    def _floats(self, values: Tensor, scales: Tensor, mins: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Numbers as they're stored (…, groups, bytes), scales and mins (…, groups): (…, columns)."""
        if self.bits == 4:
            values = torch.cat((values & 15, values >> 4), dim=-1)
        # In f32 as ggml has it, so that a file's blocks mean the same to the last bit; f64 keeps its own.
        wide = torch.promote_types(dtype, torch.float32)
        grouped = values.to(wide)
        if self.bits == 4 and mins is None:
            grouped -= 8
        grouped *= scales.to(wide)[..., None]
        if mins is not None:
            grouped += mins.to(wide)[..., None]
        return grouped.flatten(-2).to(dtype)


@dataclass(frozen=True)
class NormalFloats(Floats):
    """nf4: uint8 (rows, columns / 2), an even column's level below the next one's, and scales (rows, groups)."""

    scales: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape[0], self.values.shape[1] * 2

    @property
    def name(self) -> str:
        return "nf4"

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def floats(self, rows: Rows, dtype: torch.dtype) -> Tensor:
        packed = self.values[rows]
        levels = torch.tensor(NF4_LEVELS, dtype=dtype, device=packed.device)
        values = levels[torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2).long()]
        grouped = values.unflatten(-1, (self.scales.shape[-1], -1))
        return (grouped * self.scales[rows].to(dtype)[..., None]).flatten(-2)


def tiled(of_groups: Tensor) -> Tensor:
    """A number for each group of a row (rows, groups) in the order of tiles: (tiles, groups, 16)."""
    return of_groups.unflatten(0, (-1, TILE_ROWS)).transpose(1, 2).contiguous()


def untiled(of_groups: Tensor) -> Tensor:
    """The inverse of `tiled`: (rows, groups)."""
    return of_groups.transpose(1, 2).flatten(0, 1)


def tiled_values(values: Tensor) -> Tensor:
    """The bytes of each group of a row (rows, groups, bytes) in the order of tiles: (tiles, groups, bytes / 4, 16, 4).

    int4's bytes are a column and the one 16 further on, as in GGUF's blocks.
    """
    four = values.contiguous().view(torch.int32)  # a move of four bytes at once, many times faster
    return four.unflatten(0, (-1, TILE_ROWS)).permute(0, 2, 3, 1).contiguous().view(values.dtype).unflatten(-1, (-1, 4))


def untiled_values(values: Tensor) -> Tensor:
    """The inverse of `tiled_values`: (rows, groups, bytes)."""
    four = values.flatten(-2).view(torch.int32)
    return four.permute(0, 3, 1, 2).contiguous().view(values.dtype).flatten(0, 1)


def quantised(names: Iterable[str]) -> str | None:
    """The first key that names a form of integers; None where all weights are floats."""
    ends = tuple(f".{part}" for part in FORM_KEYS)
    return next((name for name in names if name.endswith(ends)), None)


def stored(params: Params, name: str) -> Floats:
    """The weight of the layer `name` in its stored form."""
    values = params[f"{name}.weight"]
    if (scales := params.get(f"{name}.int8_scales")) is not None:
        return Tiles(values, scales, None, 8)
    if (scales := params.get(f"{name}.int4_scales")) is not None:
        return Tiles(values, scales, params.get(f"{name}.int4_mins"), 4)
    if (scales := params.get(f"{name}.nf4_scales")) is not None:
        return NormalFloats(values, scales)
    if (scales := params.get(f"{name}.scales")) is not None:
        return Grouped(values, scales, params.get(f"{name}.zeros"))
    return Floats(values)


def units(rows: int, columns: int) -> str:
    """The sizes that a form takes, for people: `rows in 16s and columns in 32s`; what takes any number is left out."""
    return " and ".join(f"{what} in {unit}s" for what, unit in (("rows", rows), ("columns", columns)) if unit > 1)


def form(params: Params) -> str:
    """What the form of a model's weights is called, in `form_of`'s words."""
    stems = [key.removesuffix(".weight") for key in params if key.endswith(".weight") and ".adaptor." not in key]
    return form_of({stem: stored(params, stem).name for stem in stems})


def form_of(forms: Mapping[str, str]) -> str:
    """The form of the layers' matrices by name, the most frequent one first where they differ, and the head's where
    it isn't the one that `quantize` puts beside them: "int4", "int8 + int4", "int4-sym, head f32"."""
    layers = Counter(
        SHORT_DTYPE.get(form, form) for name, form in forms.items() if name.startswith("layers.") and "norm" not in name
    )
    of_layers = " + ".join(form for form, _ in layers.most_common())
    head = forms.get("output", forms["tok_embeddings"])
    head = SHORT_DTYPE.get(head, head)
    usual = {of_layers} if of_layers in SHORT_DTYPE.values() else {"int8", "int8-row"}
    return of_layers if head in usual else f"{of_layers}, head {head}"


def pieces(weight: Floats, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Yield (slice of rows, those rows as floats); a piece is overwritten by the next."""
    n_rows, n_columns = weight.shape
    step = max(1, min(n_rows, PIECE_ELEMENTS // n_columns))
    step = step // TILE_ROWS * TILE_ROWS or step  # whole tiles of a weight in tiles
    # One buffer for all pieces of a plain weight: a fresh one each time costs more in page faults than the conversion.
    buffer = torch.empty(step, n_columns, dtype=dtype, device=weight.values.device)
    for start in range(0, n_rows, step):
        rows = slice(start, min(start + step, n_rows))
        if type(weight) is Floats:
            yield rows, buffer[: rows.stop - start].copy_(weight.values[rows])
        else:
            yield rows, weight.floats(rows, dtype)


def n_bytes(params: Params) -> int:
    """Bytes of all weights, a shared one counted once."""
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in params.values()}.values())


def map_tensors(params: Params, change: Callable[[Tensor], Tensor]) -> Params:
    """Every tensor changed, a shared one once: a tied head stays the same tensor as its embedding."""
    unique = {id(tensor): tensor for tensor in params.values()}
    changed = {key: change(tensor) for key, tensor in unique.items()}
    return {name: changed[id(tensor)] for name, tensor in params.items()}


def dtype_name(dtype: torch.dtype) -> str:
    """`bfloat16`, without torch's prefix."""
    return str(dtype).removeprefix("torch.")
