"""Keys and values of the tokens seen so far. A token's slot in a cache is its position, so one rule masks for all:
a query at position p sees the slots up to p.

Every cache has the same handful of methods: `positions`, `span` and `mask` before a call of the model, `extend` once a
layer within it, `advance` after it, and `rewind` to take tokens back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

import torch
from torch import Tensor

from llama3_scratch.errors import UsageError

GROWTH_SLOTS = 256  # slots by which a cache grows

# Which of the S slots each of the T tokens sees, at least one: booleans mask_BTS, with B = 1 where all rows agree, or a
# word for it.
CAUSAL: Final = "causal"  # itself and all before it; the T are the last of the S
ALL: Final = "all"
Mask = Tensor | Literal["causal", "all"]


def visible(mask_BTS: Mask, T: int, S: int, device: torch.device) -> Tensor:
    """The mask as booleans: visible_BTS."""
    if isinstance(mask_BTS, Tensor):
        return mask_BTS
    ones_1TS = torch.ones(1, T, S, dtype=torch.bool, device=device)
    return ones_1TS.tril(S - T) if mask_BTS == CAUSAL else ones_1TS


class NoCache:
    """Nothing was seen before and nothing is kept: plain prompts, training, models that look both ways."""

    by_position = False  # whether a token goes into its position's slot and sees those up to it: then C may do all that

    def __init__(self, mask_BTS: Mask = CAUSAL) -> None:
        known = mask_BTS in (CAUSAL, ALL) if isinstance(mask_BTS, str) else mask_BTS.dtype == torch.bool
        if not known or (isinstance(mask_BTS, Tensor) and mask_BTS.ndim != 3):
            raise UsageError(f"a mask is {CAUSAL!r}, {ALL!r} or booleans (rows, tokens, slots), got {mask_BTS!r:.99}")
        self.mask_BTS = mask_BTS

    def positions(self, tokens: int, device: torch.device) -> Tensor:
        """Positions of the next `tokens` tokens: positions_BT, with B = 1 where all rows agree."""
        return torch.arange(tokens, device=device)[None]

    def span(self, tokens: int) -> int:
        """S, the slots that there are once `tokens` more tokens are in."""
        return tokens

    def mask(self, tokens: int, device: torch.device) -> Mask:
        """What each of the next `tokens` tokens sees of the `span(tokens)` slots."""
        return self.mask_BTS

    def extend(self, name: str, k_BTGK: Tensor, v_BTGK: Tensor) -> tuple[Tensor, Tensor]:
        """Take the new keys and values of the layer `name`; all that it has now: k_BSGK, v_BSGK."""
        return k_BTGK, v_BTGK

    def advance(self, tokens: int) -> None:
        """Count `tokens` tokens as seen, once all layers have taken them."""


NO_CACHE = NoCache()


class Slots:
    """The keys or the values of one layer as floats, in slots that grow by blocks: `values` (B, slots, G, K)."""

    form = "floats"  # what the bytes of `tensors` mean; a class that means something else by them says so

    def __init__(self, like_BTGK: Tensor) -> None:
        B, _, G, K = like_BTGK.shape
        self.values = like_BTGK.new_empty(B, 0, G, K)

    def tensors(self) -> dict[str, Tensor]:
        """What is kept, by attribute; the slots are axis 1 of each."""
        return {"values": self.values}

    def put(self, index: tuple[slice | Tensor, slice | Tensor], x_BTGK: Tensor) -> None:
        """Write vectors into these (rows, slots)."""
        self.values[index] = x_BTGK

    def get(self, span: int) -> Tensor:
        """The vectors of the first `span` slots: x_BSGK."""
        return self.values[:, :span]

    @property
    def capacity(self) -> int:
        return self.values.shape[1]

    @property
    def head_dim(self) -> int:
        return self.values.shape[3]

    def grow(self, slots: int, rows: int | None = None) -> None:
        """Make room for so many slots, and rows if given."""
        for name, old in self.tensors().items():
            # Zeros, not empty: a slot that nobody has written is masked, but 0 · NaN would still be NaN.
            new = old.new_zeros(rows or len(old), slots, *old.shape[2:])
            new[: len(old), : old.shape[1]] = old
            setattr(self, name, new)

    def select(self, rows: Sequence[int]) -> None:
        """Drop all rows but these."""
        for name, tensor in self.tensors().items():
            setattr(self, name, tensor[list(rows)])


MakeSlots = Callable[[Tensor], Slots]


class Cache(NoCache):
    """A cache whose rows all have the same length; it grows by blocks up to `limit` slots.

    `keys` and `values` are what they're kept in: floats as they come, or another form with the methods of `Slots`.
    """

    endless, sinks, dropped = False, 0, 0  # endless: behind its first tokens, the sinks, it drops some where it's full
    by_position = True
    batch: int | None = None  # rows for prompts that come and go; None: it's for one prompt

    def __init_subclass__(cls, **options: Any) -> None:
        """A cache with a mask of its own isn't one by position, unless it says so: C would pass its mask over."""
        super().__init_subclass__(**options)
        if "mask" in vars(cls) and "by_position" not in vars(cls):
            cls.by_position = False

    def __init__(self, limit: int, *, keys: MakeSlots = Slots, values: MakeSlots = Slots) -> None:
        self.limit = limit
        self.length = 0
        self.forms = keys, values
        self.layers: dict[str, tuple[Slots, Slots]] = {}

    def positions(self, tokens: int, device: torch.device) -> Tensor:
        return torch.arange(self.length, self.length + tokens, device=device)[None]

    def span(self, tokens: int) -> int:
        if (span := self.length + tokens) > self.limit:
            raise UsageError(f"the cache holds {self.limit} tokens, {self.length} are in and {tokens} more were given")
        return span

    def mask(self, tokens: int, device: torch.device) -> Mask:
        span = self.span(tokens)
        if tokens in (1, span):
            return ALL if tokens == 1 else CAUSAL
        return visible(CAUSAL, tokens, span, device)

    def extend(self, name: str, k_BTGK: Tensor, v_BTGK: Tensor) -> tuple[Tensor, Tensor]:
        span = self.span(k_BTGK.shape[1])
        keys, values = self.room(name, span, k_BTGK)
        index = self._new_slots(k_BTGK)
        keys.put(index, k_BTGK)
        values.put(index, v_BTGK)
        return keys.get(span), values.get(span)

    def _new_slots(self, like_BTGK: Tensor) -> tuple[slice | Tensor, slice | Tensor]:
        """(rows, slots) that the new vectors go into."""
        return slice(None), slice(self.length, self.length + like_BTGK.shape[1])

    def advance(self, tokens: int) -> None:
        self.length += tokens

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        if not 0 <= length <= self.length:
            raise UsageError(f"can't rewind a cache of {self.length} tokens to {length}")
        self.length = length

    def rewind_rows(self, lengths_B: Tensor) -> None:
        """Set every row's length, which here is one for all."""
        (length,) = set(lengths_B.tolist())
        self.rewind(length)

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these: prompts that are done cost nothing more."""
        for layer in self.layers.values():
            for kept in layer:
                kept.select(rows)

    @property
    def n_bytes(self) -> int:
        """Bytes held now."""
        return sum(
            tensor.nbytes for layer in self.layers.values() for kept in layer for tensor in kept.tensors().values()
        )

    def page_table(self, rows: int) -> list[list[int]]:
        """The pages of each row, where a cache is looked at as one in pages: a page a row, of all its slots."""
        return [[row] for row in range(rows)]

    def room(self, name: str, span: int, like_BTGK: Tensor) -> tuple[Slots, Slots]:
        """What the layer keeps its keys and its values in, with room for `span` slots."""
        if (layer := self.layers.get(name)) is None:
            keys, values = self.forms
            layer = self.layers[name] = keys(like_BTGK), values(like_BTGK)
        if len(layer[0].values) != len(like_BTGK):
            raise UsageError(f"a cache of {len(layer[0].values)} rows got {len(like_BTGK)}; take one for each batch")
        if layer[0].capacity < span:
            for kept in layer:
                kept.grow(min(self.limit, -(-span // GROWTH_SLOTS) * GROWTH_SLOTS))
        return layer
