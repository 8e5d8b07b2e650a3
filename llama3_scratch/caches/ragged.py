"""A cache whose rows have lengths of their own, and come and go: prompts of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llama3_scratch.cache import Cache, MakeSlots, Mask, Slots
from llama3_scratch.errors import UsageError


class RaggedCache(Cache):
    """A cache whose rows have lengths of their own: prompts of a batch.

    Shorter prompts are padded at the end. What a padding token leaves lies in slots past its row's length once
    `rewind_rows` has been told the true lengths; no query sees it, and the row's next tokens overwrite it.
    """

    by_position = True

    def __init__(self, limit: int, batch: int, *, keys: MakeSlots = Slots, values: MakeSlots = Slots) -> None:
        super().__init__(limit, keys=keys, values=values)
        self.lengths = torch.zeros(batch, dtype=torch.long)

    @property
    def batch(self) -> int:  # type: ignore[override]
        """How many rows it has."""
        return len(self.lengths)

    def positions(self, tokens: int, device: torch.device) -> Tensor:
        return (self.lengths[:, None] + torch.arange(tokens)).to(device)

    def mask(self, tokens: int, device: torch.device) -> Mask:
        if bool((self.lengths == self.length).all()):
            return super().mask(tokens, device)
        slots_S = torch.arange(self.span(tokens), device=device)
        return slots_S <= self.positions(tokens, device)[..., None]

    def _new_slots(self, like_BTGK: Tensor) -> tuple[slice | Tensor, slice | Tensor]:
        slots_BT = self.positions(like_BTGK.shape[1], like_BTGK.device)
        return torch.arange(len(slots_BT), device=like_BTGK.device)[:, None], slots_BT

    def advance(self, tokens: int) -> None:
        self.rewind_rows(self.lengths + tokens)

    def rewind(self, length: int) -> None:
        super().rewind(length)
        self.lengths = self.lengths.clamp(max=length)

    def rewind_rows(self, lengths_B: Tensor) -> None:
        """Set every row's length."""
        self.lengths = lengths_B
        self.length = int(lengths_B.max()) if len(lengths_B) else 0

    def keep(self, rows: Sequence[int]) -> None:
        super().keep(rows)
        self.rewind_rows(self.lengths[list(rows)])

    def fresh(self, batch: int) -> RaggedCache:
        """An empty cache of the same kind, for prompts that are to join: `insert` takes its rows."""
        keys, values = self.forms
        return RaggedCache(self.limit, batch, keys=keys, values=values)

    def insert(self, rows: Sequence[int], other: RaggedCache) -> None:
        """Take in another cache's rows, one for each of `rows`: in the place of a row that is done, or as a new one
        right behind the last. Only what comes in is copied, unless there have to be more rows or slots.
        """
        batch = max([self.batch, *(row + 1 for row in rows)])
        wrong = any(row < 0 for row in rows) or not set(range(self.batch, batch)) <= set(rows)
        if wrong or not len(set(rows)) == len(rows) == other.batch:
            raise UsageError(
                f"{other.batch} rows go into as many of a cache of {self.batch}, or right behind them, got {list(rows)}"
            )
        if other.length > self.limit:
            raise UsageError(f"the cache holds {self.limit} tokens, a row of {other.length} was given")
        if other.forms != self.forms:
            raise UsageError("a row can only join a cache of the same form; begin with its `fresh`")
        for name, theirs in other.layers.items():
            like_BTGK = theirs[0].get(1)[:1].expand(self.batch, -1, -1, -1)
            for kept, new in zip(self.room(name, other.length, like_BTGK), theirs, strict=True):
                if batch > len(kept.values):
                    kept.grow(kept.capacity, batch)
                for ours, its in zip(kept.tensors().values(), new.tensors().values(), strict=True):
                    ours[list(rows), : other.length] = its[:, : other.length]
        lengths = torch.zeros(batch, dtype=torch.long)
        lengths[: self.batch] = self.lengths
        lengths[list(rows)] = other.lengths
        self.rewind_rows(lengths)
