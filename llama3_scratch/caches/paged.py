"""A cache in pages: a fixed pool for all sequences, of which each has the pages that its page table lists.

    pool = PagedCache(config, pages=64)
    rows = pool.rows([[5, 0], [7]], lengths=[70, 3])  # the cache of two sequences, for the model
    forward(tokens_BT, params, config, cache=rows)

A sequence's token at position p is in slot p % 64 of its page p // 64 (PagedAttention, arXiv:2309.06180). Which page
belongs to whom is `inference.engine.pages`' to know.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from llama3_scratch.cache import ALL, CAUSAL, MakeSlots, Mask, NoCache, Slots
from llama3_scratch.caches.quantized import vector_bytes
from llama3_scratch.config import Config
from llama3_scratch.errors import UsageError
from llama3_scratch.native.layout import CHUNK_SLOTS

PAGE_SLOTS = CHUNK_SLOTS  # of a page: what the C kernels attend to at once


class PagedCache:
    """The pool: keys and values of every layer, `layers`, as slots (pages, 64, G, K)."""

    def __init__(
        self,
        config: Config,
        pages: int,
        *,
        limit: int | None = None,
        keys: MakeSlots = Slots,
        values: MakeSlots = Slots,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if pages < 1:
            raise UsageError(f"a paged cache needs at least a page, got {pages}")
        self.pages = pages
        self.limit = limit or config.max_seq_len  # tokens that a sequence may have
        self.forms = keys, values
        like_BTGK = torch.empty(pages, 0, config.n_kv_heads, config.head_dim, dtype=dtype, device=device)
        self.layers: dict[str, tuple[Slots, Slots]] = {}
        for index in range(config.n_layers):
            layer = keys(like_BTGK), values(like_BTGK)
            for slots in layer:
                for tensor_name, tensor in slots.tensors().items():
                    setattr(slots, tensor_name, _zeros((pages, PAGE_SLOTS, *tensor.shape[2:]), tensor))
            self.layers[f"layers.{index}.attention"] = layer

    @property
    def n_bytes(self) -> int:
        return sum(
            tensor.nbytes for layer in self.layers.values() for slots in layer for tensor in slots.tensors().values()
        )

    def rows(self, page_table: Sequence[Sequence[int]], lengths: Sequence[int]) -> PagedRows:
        """The cache of these sequences, which hold so many tokens each: what the model takes."""
        return PagedRows(self, page_table, lengths)

    def copy(self, source: int, target: int, slots: int) -> None:
        """Write the first `slots` slots of page `source` to page `target`, in all layers."""
        for layer in self.layers.values():
            for kept in layer:
                for tensor in kept.tensors().values():
                    tensor[target, :slots] = tensor[source, :slots]


class PagedRows(NoCache):
    """Sequences with pages of their own: the cache of a call of the model."""

    by_position = True

    def __init__(self, pool: PagedCache, page_table: Sequence[Sequence[int]], lengths: Sequence[int]) -> None:
        super().__init__()
        self.pool = pool
        self.lengths = torch.tensor(lengths)
        most = max(map(len, page_table))
        self.page_table_BP = torch.tensor([[*pages, *[pages[0]] * (most - len(pages))] for pages in page_table])

    def positions(self, tokens: int, device: torch.device) -> Tensor:
        return (self.lengths[:, None] + torch.arange(tokens)).to(device)

    def span(self, tokens: int) -> int:
        span = int(self.lengths.max()) + tokens
        if span > self.page_table_BP.shape[1] * PAGE_SLOTS:
            raise UsageError(f"{self.page_table_BP.shape[1]} pages hold {PAGE_SLOTS} tokens each, {span} were given")
        return span

    def mask(self, tokens: int, device: torch.device) -> Mask:
        span = self.span(tokens)
        if bool((self.lengths == self.lengths[0]).all()) and tokens in (1, span):
            return ALL if tokens == 1 else CAUSAL
        slots_S = torch.arange(span, device=device)
        return slots_S <= self.positions(tokens, device)[..., None]

    def extend(self, name: str, k_BTGK: Tensor, v_BTGK: Tensor) -> tuple[Tensor, Tensor]:
        positions_BT = self.positions(k_BTGK.shape[1], torch.device("cpu"))
        pages_BT = self.page_table_BP.gather(1, positions_BT // PAGE_SLOTS).to(k_BTGK.device)
        index = pages_BT, (positions_BT % PAGE_SLOTS).to(k_BTGK.device)
        span = self.span(k_BTGK.shape[1])
        pages_BP = self.page_table_BP[:, : -(-span // PAGE_SLOTS)].to(k_BTGK.device)
        got = []
        for slots, x_BTGK in zip(self.pool.layers[name], (k_BTGK, v_BTGK), strict=True):
            slots.put(index, x_BTGK)
            got.append(_gathered(slots, pages_BP).get(span))
        return got[0], got[1]

    def room(self, name: str, span: int, like_BTGK: Tensor) -> tuple[Slots, Slots]:
        """What the layer keeps its keys and its values in: the pool's pages."""
        return self.pool.layers[name]

    def page_table(self, rows: int) -> list[list[int]]:
        """The pages of each row."""
        if rows != len(self.page_table_BP):
            raise UsageError(f"{len(self.page_table_BP)} rows of a paged cache got {rows}")
        return self.page_table_BP.tolist()

    def advance(self, tokens: int) -> None:
        self.lengths = self.lengths + tokens


def _gathered(slots: Slots, pages_BP: Tensor) -> Slots:
    """These pages, one behind the other: a row's slots."""
    rows = copy.copy(slots)
    for name, tensor in slots.tensors().items():
        setattr(rows, name, tensor[pages_BP].flatten(1, 2))
    return rows


def _zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Zeros that, on a CPU, take no memory before they're written to: a pool may be larger than what is used of it."""
    if like.device.type != "cpu":
        return like.new_zeros(shape)
    n_bytes = math.prod(shape) * like.itemsize
    return torch.from_numpy(np.zeros(n_bytes, np.uint8)).view(like.dtype).view(shape)


def pages_for(tokens: int) -> int:
    """Pages that so many tokens of a sequence take."""
    return -(-tokens // PAGE_SLOTS)


def page_bytes(config: Config, *, keys: MakeSlots = Slots, values: MakeSlots = Slots, dtype: torch.dtype) -> int:
    """Bytes that a page takes in all layers."""
    heads = config.n_layers * config.n_kv_heads * PAGE_SLOTS
    return heads * sum(vector_bytes(form, config.head_dim, dtype) for form in (keys, values))
