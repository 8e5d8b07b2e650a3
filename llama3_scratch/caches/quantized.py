"""Shorter forms of cached keys and values: bf16, int8 and int4, each to be given to a cache as `keys=` or `values=`.

    cache = Cache(8192, keys=Int8Slots, values=partial(Int4Slots, group=16))

A group of neighbours along the head shares a scale: its largest magnitude becomes 127 (or 7), the others follow in
proportion and are rounded. int4 spreads each vector over all its numbers first. The C kernels write and read the same
bytes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from llama3_scratch.cache import MakeSlots, Slots
from llama3_scratch.errors import UsageError

GROUP_SIZE = 32  # numbers that share a scale, unless told otherwise
_LEAST = torch.finfo(torch.float32).tiny  # a smaller scale has no inverse that is a float; its group becomes zeros


class Bf16Slots(Slots):
    """Keys or values as bf16, two bytes a number."""

    form = "bf16"

    def __init__(self, like_BTGK: Tensor) -> None:
        super().__init__(like_BTGK.to(torch.bfloat16))
        self._dtype = like_BTGK.dtype

    def put(self, index: tuple[slice | Tensor, slice | Tensor], x_BTGK: Tensor) -> None:
        super().put(index, x_BTGK.to(torch.bfloat16))

    def get(self, span: int) -> Tensor:
        return self.values[:, :span].to(self._dtype)


class Int8Slots(Slots):
    """Keys or values as int8: `values` (B, slots, G, K) and, in f32, `scales` (B, slots, G, K / group).

    The group is 32 unless given, or the whole head where 32 doesn't divide it. Raises UsageError for one that doesn't.
    """

    form, top = "int8", 127

    def __init__(self, like_BTGK: Tensor, group: int | None = None) -> None:
        B, _, G, K = like_BTGK.shape
        self._group, self._dtype = group_size(K, group), like_BTGK.dtype
        self.values = self._pack(like_BTGK.new_empty(B, 0, G, K // self._group, self._group))
        self.scales = like_BTGK.new_empty(B, 0, G, K // self._group, dtype=torch.float32)

    def tensors(self) -> dict[str, Tensor]:
        return {"values": self.values, "scales": self.scales}

    def put(self, index: tuple[slice | Tensor, slice | Tensor], x_BTGK: Tensor) -> None:
        grouped = x_BTGK.float().unflatten(-1, (-1, self._group))
        scales = grouped.abs().amax(-1) / self.top
        scales = scales + 0 * scales  # NaN where a number of the group is infinite: it must come out again
        inverse = torch.where(scales >= _LEAST, 1 / scales, 0)[..., None]
        self.values[index] = self._pack(torch.where(inverse > 0, grouped * inverse, 0).round())
        self.scales[index] = scales

    def get(self, span: int) -> Tensor:
        return self._floats(span).to(self._dtype)

    def _floats(self, span: int) -> Tensor:
        grouped = self._unpack(self.values[:, :span].unflatten(-1, (self.scales.shape[-1], -1)))
        return (grouped * self.scales[:, :span, ..., None]).flatten(-2)

    def _pack(self, integers: Tensor) -> Tensor:
        """Whole numbers (…, groups, group) as they are stored: (…, bytes of a head)."""
        return integers.flatten(-2).to(torch.int8)

    def _unpack(self, grouped: Tensor) -> Tensor:
        """Stored bytes (…, groups, bytes of a group) as whole numbers (…, groups, group)."""
        return grouped


class Int4Slots(Int8Slots):
    """Keys or values as 4 bits, spread first: `values` is uint8 (B, slots, G, K / 2), the scales as for int8.

    A byte holds q + 8 of a number in its low half and, in its high half, that of the number half a group further on.
    """

    form, top = "int4", 7

    def __init__(self, like_BTGK: Tensor, group: int | None = None) -> None:
        if group_size(like_BTGK.shape[-1], group) % 2:
            raise UsageError(f"a group of 4-bit numbers must be even, since two share a byte, got {group}")
        super().__init__(like_BTGK, group)

    @property
    def head_dim(self) -> int:
        return 2 * self.values.shape[3]

    def put(self, index: tuple[slice | Tensor, slice | Tensor], x_BTGK: Tensor) -> None:
        super().put(index, hadamard(x_BTGK.float()))

    def get(self, span: int) -> Tensor:
        return hadamard(self._floats(span)).to(self._dtype)

    def _pack(self, integers: Tensor) -> Tensor:
        low, high = (integers + 8).to(torch.uint8).chunk(2, dim=-1)
        return (low | high << 4).flatten(-2)

    def _unpack(self, grouped: Tensor) -> Tensor:
        return torch.cat((grouped & 15, grouped >> 4), dim=-1).to(torch.int8) - 8


def hadamard(x: Tensor) -> Tensor:
    """x (…, K) times a Hadamard matrix: each number becomes a sum of all, with signs, so that none stands out.

    A few numbers of every key are far larger than the rest, and the scale that they set leaves 4 bits nothing for the
    others. The matrix is its own inverse, and no dot product changes (arXiv:2404.00456). A head whose width is no power
    of two is spread in pieces.
    """
    width, step = x.shape[-1] & -x.shape[-1], 1
    while step < width:
        a, b = x.unflatten(-1, (-1, 2, step)).unbind(-2)
        x, step = torch.stack((a + b, a - b), dim=-2).flatten(-3), 2 * step
    return x * width**-0.5


SLOTS_BY_BITS = {16: Bf16Slots, 8: Int8Slots, 4: Int4Slots}


def group_size(head_dim: int, group: int | None = None) -> int:
    """How many numbers share a scale: the group, if given, which must divide the head's width."""
    if group is None:
        return GROUP_SIZE if head_dim % GROUP_SIZE == 0 else head_dim
    if group < 1 or head_dim % group:
        raise UsageError(f"a group must divide the head's width, which is {head_dim}, got {group}")
    return group


def vector_bytes(make: MakeSlots, head_dim: int, dtype: torch.dtype) -> int:
    """Bytes that a key or value of one head takes in that form, its scales included."""
    kept = make(torch.empty(1, 0, 1, head_dim, dtype=dtype))
    return sum(math.prod(tensor.shape[2:]) * tensor.itemsize for tensor in kept.tensors().values())
