"""Keys and values of the tokens seen so far. A token's slot in a cache is its position, so one rule masks for all:
a query at position p sees the slots up to p.

Every cache has the same handful of methods: `positions` and `span` before a call of the model, `extend` once a layer
within it, `advance` after it, and `rewind` to take tokens back.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llama3_scratch.errors import UsageError

BLOCK = 256  # slots by which a cache grows


class NoCache:
    """Nothing was seen before and nothing is kept: plain prompts and training."""

    def positions(self, tokens: int, device: torch.device) -> Tensor:
        """Positions of the next `tokens` tokens: positions_BT, with B = 1 where all rows agree."""
        return torch.arange(tokens, device=device)[None]

    def span(self, tokens: int) -> int:
        """S, the slots that there are once `tokens` more tokens are in."""
        return tokens

    def extend(self, name: str, k_BTGK: Tensor, v_BTGK: Tensor) -> tuple[Tensor, Tensor]:
        """Take the new keys and values of the layer `name`; all that it has now: k_BSGK, v_BSGK."""
        return k_BTGK, v_BTGK

    def advance(self, tokens: int) -> None:
        """Count `tokens` tokens as seen, once all layers have taken them."""


NO_CACHE = NoCache()


class Cache(NoCache):
    """A full-precision cache whose rows all have the same length; it grows by blocks up to `limit` slots."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.length = 0
        self._layers: dict[str, tuple[Tensor, Tensor]] = {}

    def positions(self, tokens: int, device: torch.device) -> Tensor:
        return torch.arange(self.length, self.length + tokens, device=device)[None]

    def span(self, tokens: int) -> int:
        span = self.length + tokens
        if span > self.limit:
            raise UsageError(f"the cache holds {self.limit} tokens, {self.length} are in and {tokens} more were given")
        return span

    def extend(self, name: str, k_BTGK: Tensor, v_BTGK: Tensor) -> tuple[Tensor, Tensor]:
        span = self.span(k_BTGK.shape[1])
        keys, values = self._room(name, span, k_BTGK)
        keys[:, self.length : span] = k_BTGK
        values[:, self.length : span] = v_BTGK
        return keys[:, :span], values[:, :span]

    def advance(self, tokens: int) -> None:
        self.length += tokens

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        if not 0 <= length <= self.length:
            raise UsageError(f"can't rewind a cache of {self.length} tokens to {length}")
        self.length = length

    @property
    def n_bytes(self) -> int:
        """Bytes held now."""
        return sum(keys.nbytes + values.nbytes for keys, values in self._layers.values())

    def _room(self, name: str, span: int, like_BTGK: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's buffers with room for `span` slots."""
        kept = self._layers.get(name)
        if kept is None or kept[0].shape[1] < span:
            B, _, G, K = like_BTGK.shape
            slots = min(self.limit, -(-span // BLOCK) * BLOCK)
            # Zeros, not empty: a slot that nobody has written is masked, but 0 · NaN would still be NaN.
            grown = (like_BTGK.new_zeros(B, slots, G, K), like_BTGK.new_zeros(B, slots, G, K))
            if kept is not None:
                for new, old in zip(grown, kept, strict=True):
                    new[:, : old.shape[1]] = old
            self._layers[name] = kept = grown
        return kept


class RaggedCache(Cache):
    """A cache whose rows have lengths of their own: prompts of a batch.

    Shorter prompts are padded at the end. What a padding token leaves lies in slots past its row's length once
    `rewind_rows` has been told the true lengths; no query sees it, and the row's next tokens overwrite it.
    """

    def __init__(self, limit: int, batch: int) -> None:
        super().__init__(limit)
        self.lengths = torch.zeros(batch, dtype=torch.long)

    def positions(self, tokens: int, device: torch.device) -> Tensor:
        return (self.lengths[:, None] + torch.arange(tokens)).to(device)

    def extend(self, name: str, k_BTGK: Tensor, v_BTGK: Tensor) -> tuple[Tensor, Tensor]:
        T = k_BTGK.shape[1]
        span = self.span(T)
        keys, values = self._room(name, span, k_BTGK)
        slots_BT = self.positions(T, k_BTGK.device)
        rows_B1 = torch.arange(len(slots_BT), device=k_BTGK.device)[:, None]
        keys[rows_B1, slots_BT] = k_BTGK
        values[rows_B1, slots_BT] = v_BTGK
        return keys[:, :span], values[:, :span]

    def advance(self, tokens: int) -> None:
        self.rewind_rows(self.lengths + tokens)

    def rewind(self, length: int) -> None:
        super().rewind(length)
        self.lengths = self.lengths.clamp(max=length)

    def rewind_rows(self, lengths_B: Tensor) -> None:
        """Set every row's length."""
        self.lengths = lengths_B
        self.length = int(lengths_B.max())

    def keep(self, rows: list[int]) -> None:
        """Drop all rows but these: prompts that are done cost nothing more."""
        self._layers = {name: (keys[rows], values[rows]) for name, (keys, values) in self._layers.items()}
        self.rewind_rows(self.lengths[rows])
