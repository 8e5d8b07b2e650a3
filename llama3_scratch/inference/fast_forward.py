"""The model as generating wants it: tokens in, logits out, in C where it has kernels for that, in torch elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from llama3_scratch.cache import NoCache
from llama3_scratch.caches.paged import PagedCache
from llama3_scratch.config import Config
from llama3_scratch.linear import embed
from llama3_scratch.model import Block, decode, unembed
from llama3_scratch.native.decode import Chunk, NativeDecode, fast_decode
from llama3_scratch.stored import Params, stored


class FastForward:
    """`forward` for generating: tokens in, logits out, by the fastest way that there is here.

    `dtype` is the activations'; `block` is a layer's function, in the place of the fastest way through all layers.
    """

    def __init__(
        self, params: Params, config: Config, *, dtype: torch.dtype | None = None, block: Block | None = None
    ) -> None:
        self.params, self.config = params, config
        self.device = params["tok_embeddings.weight"].device
        self._asked = dtype
        self._decode = fast_decode(params, config) if block is None else partial(decode, block=block)
        self.dtype = dtype or stored(params, "tok_embeddings").dtype
        self._native = self._decode if isinstance(self._decode, NativeDecode) and self.dtype == torch.float32 else None

    def hidden(self, tokens_BT: Tensor, cache: NoCache) -> Tensor:
        """What goes into the head: x_BTD."""
        x_BTD = embed(tokens_BT.to(self.device), self.params, "tok_embeddings", dtype=self._asked)
        return self._decode(x_BTD, self.params, self.config, cache=cache)

    def logits(self, tokens_BT: Tensor, cache: NoCache) -> Tensor:
        """The logits of all tokens: logits_BTV."""
        if self._native is not None and (logits_BTV := self._native.logits(tokens_BT, cache)) is not None:
            return logits_BTV
        return self.head(self.hidden(tokens_BT, cache))

    def chunks(self, chunks: Sequence[Chunk], cache: PagedCache) -> Tensor:
        """Take in the chunks, of sequences in a paged cache: logits_NV of what follows those that want them.

        In C it's one call for all of them, elsewhere one for those that are equally long.
        """
        if (logits_NV := self._in_c(chunks, cache)) is not None:
            return logits_NV
        by_length: dict[int, list[int]] = {}
        for index, chunk in enumerate(chunks):
            by_length.setdefault(len(chunk.tokens), []).append(index)
        logits: dict[int, Tensor] = {}
        for indices in by_length.values():
            some = [chunks[index] for index in indices]
            wanting = [index for index in indices if chunks[index].wants_logits]
            logits_NV = self._in_c(some, cache) if len(by_length) > 1 else None
            if logits_NV is None:
                rows = cache.rows([chunk.pages for chunk in some], [chunk.start for chunk in some])
                x_BTD = self.hidden(torch.tensor([chunk.tokens for chunk in some]), rows)
                wants_B = torch.tensor([chunk.wants_logits for chunk in some], device=x_BTD.device)
                logits_NV = self.head(x_BTD[wants_B, -1:])[:, 0] if wanting else x_BTD
            logits.update(zip(wanting, logits_NV, strict=False))
        return torch.stack([logits[index] for index in sorted(logits)]) if logits else torch.empty(0, 0)

    def head(self, x_BTD: Tensor) -> Tensor:
        """The logits of what `hidden` gave, or of some of it: logits_BTV."""
        return unembed(x_BTD, self.params)

    def _in_c(self, chunks: Sequence[Chunk], cache: PagedCache) -> Tensor | None:
        return None if self._native is None else self._native.chunks(chunks, cache.layers, cache.pages)
