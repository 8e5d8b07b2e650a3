"""A cache that never ends: where it's full, it forgets the middle and keeps the beginning and the last tokens.

The first tokens are kept because every head rests its attention on them when it has nothing to look for; without
these sinks the model falls apart (arXiv:2309.17453).
"""

from __future__ import annotations

import torch

from llama3_scratch.cache import Cache, MakeSlots, Slots
from llama3_scratch.config import Config
from llama3_scratch.errors import UsageError
from llama3_scratch.model import rotate, rotations


class SlidingCache(Cache):
    """A cache of `limit` slots that, when it's full, keeps the first `sinks` of them and the last `window`.

    What is kept moves down, so that a token's slot stays its position: the keys, which were turned by the old position,
    are turned back by as many positions as they move. Keys in a short form are rounded once more then.
    """

    endless = True

    def __init__(
        self,
        limit: int,
        config: Config,
        *,
        window: int,
        sinks: int = 4,
        keys: MakeSlots = Slots,
        values: MakeSlots = Slots,
    ) -> None:
        super().__init__(limit, keys=keys, values=values)
        if window < 1 or sinks < 0 or sinks + window >= limit:
            raise UsageError(
                f"a sliding cache of {limit} slots keeps {sinks} sinks and {window} last tokens: "
                "expected at least 1 last token, and a slot or more left for new ones"
            )
        self.window, self.sinks, self.dropped = window, sinks, 0
        self._config = config

    def positions(self, tokens: int, device: torch.device) -> torch.Tensor:
        self._make_room(tokens)
        return super().positions(tokens, device)

    def span(self, tokens: int) -> int:
        self._make_room(tokens)
        return super().span(tokens)

    def rewind(self, length: int) -> None:
        super().rewind(length)
        if length <= self.sinks:  # nothing is missing behind them any more
            self.dropped = 0

    def _make_room(self, tokens: int) -> None:
        """Drop the tokens between the sinks and the window, where `tokens` more don't fit."""
        dropped = self.length - self.sinks - self.window
        if self.length + tokens <= self.limit or dropped < 1:
            return
        kept, new = slice(self.sinks + dropped, self.length), slice(self.sinks, self.sinks + self.window)
        for keys, values in self.layers.values():
            k_BTGK = keys.get(self.length)[:, kept]
            back_11 = torch.tensor([[-dropped]], device=k_BTGK.device)
            keys.put((slice(None), new), rotate(k_BTGK, rotations(back_11, self._config, k_BTGK.dtype)))
            for stored in values.tensors().values():
                stored[:, new] = stored[:, kept].clone()  # they overlap
        self.length -= dropped
        self.dropped += dropped
