"""`model.decode` as one call of C for the few tokens of a step: the fast path of generating."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Mapping, Sequence
from ctypes import Array, addressof, byref, c_int32, c_int64
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from llama3_scratch.cache import NO_CACHE, Cache, NoCache, Slots
from llama3_scratch.config import Config, expected
from llama3_scratch.errors import ResourceError, UsageError
from llama3_scratch.model import decode, rotations
from llama3_scratch.native import kernels, layout
from llama3_scratch.native.layout import MATRICES, NORMS, CachedVectors, Layer, Sizes, Tokens, Weight
from llama3_scratch.stored import Floats, Params, Tiles, stored

# What a cache's form is called in C, and the dtype in which it holds its numbers.
_CACHE_FORMS = {
    "floats": (layout.CACHE_F32, torch.float32),
    "bf16": (layout.CACHE_BF16, torch.bfloat16),
    "int8": (layout.CACHE_INT8, torch.int8),
    "int4": (layout.CACHE_INT4, torch.uint8),
}
# Torch multiplies floats faster where tokens are many, and attends faster where each sees many.
MAX_TILED_TOKENS, MAX_TILED_SPAN = 1024, 2048
_POSITIONS = 1024  # by which the table of rotations grows
Where = tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]  # addresses and strides of tensors
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@dataclass(frozen=True)
class Chunk:
    """Tokens of one sequence that a pass takes in: a part of its prompt, or the token that was drawn last."""

    tokens: Sequence[int]
    start: int  # the first one's position
    pages: Sequence[int]  # those of a paged cache that the sequence has, in their order
    wants_logits: bool = True  # of what follows the last token


def fast_decode(params: Params, config: Config) -> Callable[..., Tensor]:
    """The fastest `decode` for generating with these weights here."""
    if params["tok_embeddings.weight"].device.type != "cpu" or kernels.chosen() is None:
        return decode
    return decode if (model := _Model.of(params, config)) is None else NativeDecode(params, config, model)


@dataclass
class _Model:
    """A model's weights as C has them."""

    layers: Array[Layer]
    last_norm: Weight
    ends: tuple[Weight, Weight] | None  # embedding and head; None where C can't read them
    tiled: bool
    trains: bool  # whether a weight wants a gradient
    tensors: tuple[Tensor, ...]  # all params
    storages: tuple[torch.UntypedStorage, ...]  # the memory that the addresses above point into, kept while they do
    where: Where  # the tensors were

    @classmethod
    def of(cls, params: Params, config: Config) -> _Model | None:
        """None where the kernels don't know a form in the layers."""
        shapes = expected(config)
        layers = (Layer * config.n_layers)()
        tiled = True
        for index, layer in enumerate(layers):
            for part in (*NORMS, *MATRICES):
                name = f"layers.{index}.{part}"
                described = _norm(params[f"{name}.weight"]) if part in NORMS else _matrix(params, name)
                shape = shapes[f"{name}.weight"]
                if described is None or (described.rows, described.columns)[-len(shape) :] != shape:
                    return None
                setattr(layer, part.replace(".", "_"), described)
                tiled = tiled and (part in NORMS or isinstance(stored(params, name), Tiles))
        last_norm = _norm(params["norm.weight"])
        if last_norm is None or last_norm.columns != config.dim:
            return None
        ends = _matrix(params, "tok_embeddings"), _matrix(params, "output")
        whole = all(end is not None and (end.rows, end.columns) == (config.vocab_size, config.dim) for end in ends)
        tensors = tuple(params.values())
        return cls(
            layers,
            last_norm,
            cast("tuple[Weight, Weight]", ends) if whole else None,
            tiled,
            any(tensor.requires_grad for tensor in tensors),
            tensors,
            tuple(map(Tensor.untyped_storage, tensors)),
            _where(tensors),
        )

    def current(self, params: Params, *, closely: bool) -> bool:
        """Whether the params are still those tensors; looked at closely, whether they are where they were too.

        Asking hundreds of tensors for their addresses takes 3 % of a small model's step. A tensor that is given other
        memory between two tokens is noticed at the next prompt, where a sequence begins or several tokens come; until
        then its old memory is read.
        """
        if len(self.tensors) != len(params) or not all(map(operator.is_, self.tensors, params.values())):
            return False
        return not closely or self.where == _where(self.tensors)


def _where(tensors: Sequence[Tensor]) -> Where:
    """The tensors' addresses and strides: one of them changes with other memory, or another view of the same."""
    return tuple(map(Tensor.data_ptr, tensors)), tuple(map(Tensor.stride, tensors))


def _norm(weight: Tensor) -> Weight | None:
    """A norm's weight as C has it: a matrix of one row."""
    return kernels.weight(Floats(weight.detach()[None])) if weight.ndim == 1 else None


def _matrix(params: Params, name: str) -> Weight | None:
    """A matrix as C has it; None where it can't or an adapter stands beside it."""
    return None if f"{name}.adaptor.A.weight" in params else kernels.weight(stored(params, name))


@dataclass
class _Found:
    """Where a cache keeps everything."""

    keys: Array[CachedVectors]
    values: Array[CachedVectors]
    slots: int
    first: Tensor  # the first layer's keys, by which the cache is known again
    tensors: list[Tensor]  # that the addresses point into


class NativeDecode:
    """`decode` with the layers of one model in C, their addresses looked up once.

    What the kernels can't do (many tokens at once, other dtypes, gradients, no cache) is done by `decode`.
    """

    def __init__(self, params: Params, config: Config, model: _Model) -> None:
        self._params, self._config = params, config
        self._model: _Model | None = model
        self._sizes = Sizes(
            config.dim, config.n_heads, config.n_kv_heads, config.head_dim, config.hidden_dim, config.norm_eps
        )
        self._rotations_J = torch.empty(0, config.head_dim // 2, dtype=torch.complex64)  # of every position so far
        self._found: _Found | None = None  # of the cache that was last used

    def __call__(self, x_BTD: Tensor, params: Params, config: Config, *, cache: NoCache = NO_CACHE) -> Tensor:
        B, T, D = x_BTD.shape
        ours = self._sizes.dim == D and params is self._params
        if not ours or not cache.by_position or not kernels.usable(x_BTD):
            return decode(x_BTD, params, config, cache=cache)
        call = self._rows(cast(Cache, cache), B, T) if self._worth(B * T, cache.span(T)) else None
        if call is None:
            return decode(x_BTD, params, config, cache=cache)
        out_BTD = x_BTD.detach().clone(memory_format=torch.contiguous_format)
        call.run(self._sizes, out_BTD, None)
        cache.advance(T)
        return out_BTD

    def logits(self, tokens_BT: Tensor, cache: NoCache) -> Tensor | None:
        """`forward` of a few tokens in one call, logits_BTV in f32; None where it takes more than that.

        Raises UsageError for a token that the vocabulary hasn't.
        """
        B, T = tokens_BT.shape
        V, D = self._config.vocab_size, self._config.dim
        if not cache.by_position or not 0 < B * T <= kernels.MAX_FLOAT_INPUTS:
            return None
        x_BTD = torch.empty(B, T, D)
        if tokens_BT.dtype not in _INTEGERS or not kernels.usable(x_BTD):
            return None
        call = self._rows(cast(Cache, cache), B, T)
        if call is None or call.model.ends is None:
            return None
        self._embed(call.model.ends[0], tokens_BT.flatten().tolist(), x_BTD)
        logits_BTV = torch.empty(B, T, V)
        call.run(self._sizes, x_BTD, logits_BTV)
        cache.advance(T)
        return logits_BTV

    def chunks(self, chunks: Sequence[Chunk], layers: Mapping[str, tuple[Slots, Slots]], pages: int) -> Tensor | None:
        """Chunks of sequences in a cache of so many pages, with these layers, in one call: logits_NV of what follows
        those that want them; None where it takes more than that.

        A token's logits are the same bits in whatever company and chunks, where the weights are quantised.
        """
        n = sum(len(chunk.tokens) for chunk in chunks)
        x_ND = torch.empty(n, self._config.dim)
        if not kernels.usable(x_ND):
            return None
        model = self._current_model(closely=n > len(chunks) or any(chunk.start == 0 for chunk in chunks))
        # A span of no length: of a paged cache, attention in torch would have to gather the pages.
        if model is None or model.ends is None or not self._worth(n, 0):
            return None
        found = self._places(layers, (pages, layout.CHUNK_SLOTS))
        if found is None:
            return None
        positions = [chunk.start + place for chunk in chunks for place in range(len(chunk.tokens))]
        for chunk in chunks:
            last = chunk.start + len(chunk.tokens)
            if not (0 <= chunk.start < last <= len(chunk.pages) * layout.CHUNK_SLOTS):
                raise UsageError(f"tokens {chunk.start} to {last - 1} of a sequence of {len(chunk.pages)} pages")
            if not 0 <= min(chunk.pages) <= max(chunk.pages) < pages:
                raise UsageError(f"pages {min(chunk.pages)} to {max(chunk.pages)}, the cache has {pages}")
        self._embed(model.ends[0], [token for chunk in chunks for token in chunk.tokens], x_ND)
        rows = [row for row, chunk in enumerate(chunks) for _ in chunk.tokens]
        ends = itertools.accumulate(len(chunk.tokens) for chunk in chunks)
        logits_of = [end - 1 for chunk, end in zip(chunks, ends, strict=True) if chunk.wants_logits]
        call = _Call(
            model,
            found,
            self._rotations(max(positions) + 1),
            rows,
            positions,
            [chunk.pages for chunk in chunks],
            layout.CHUNK_SLOTS,
            logits_of,
        )
        logits_NV = torch.empty(len(logits_of), self._config.vocab_size)
        call.run(self._sizes, x_ND, logits_NV if logits_of else None)
        return logits_NV

    def _embed(self, embedding: Weight, tokens: list[int], x: Tensor) -> None:
        """The tokens' rows of the embedding, into x."""
        if not 0 <= min(tokens) <= max(tokens) < self._config.vocab_size:
            raise UsageError(f"tokens {min(tokens)} to {max(tokens)}, the vocabulary has {self._config.vocab_size}")
        kernels.require().rows(embedding, len(tokens), (c_int64 * len(tokens))(*tokens), x.data_ptr())

    def _current_model(self, *, closely: bool) -> _Model | None:
        """The model as C has it, described anew if its tensors have changed; None where C can't be used for it."""
        model = self._model
        if model is None or not model.current(self._params, closely=closely):
            model = self._model = _Model.of(self._params, self._config)
        return None if model is None or (model.trains and torch.is_grad_enabled()) else model

    def _rotations(self, span: int) -> Tensor:
        """Of that many positions at least."""
        rotations_J = self._rotations_J  # as it is now: another thread may put a shorter one there
        if len(rotations_J) < span:
            positions_1T = torch.arange(-(-span // _POSITIONS) * _POSITIONS)[None]
            self._rotations_J = rotations_J = rotations(positions_1T, self._config, torch.float32)[0].contiguous()
        return rotations_J

    def _rows(self, cache: Cache, B: int, T: int) -> _Call | None:
        """T more tokens of B rows, as C takes them; None where it can't. What others may change is looked at once."""
        span = cache.span(T)
        model = self._current_model(closely=T > 1 or span == T)
        if model is None or not self._worth(B * T, span):
            return None
        found = self._finds(cache, span, B)
        if found is None:
            return None
        positions = cache.positions(T, torch.device("cpu")).expand(B, T).flatten().tolist()
        rows, table = [row for row in range(B) for _ in range(T)], cache.page_table(B)
        if not 0 <= min(positions) <= max(positions) < min(span, len(table[0]) * found.slots):
            return None
        return _Call(model, found, self._rotations(span), rows, positions, table, found.slots, range(B * T))

    def _worth(self, n: int, span: int) -> bool:
        """Whether the kernels are the faster way for n tokens of which the last sees `span`."""
        if 0 < n <= kernels.MAX_FLOAT_INPUTS:
            return True
        tiled = self._model is not None and self._model.tiled
        return tiled and 0 < n <= MAX_TILED_TOKENS and span <= MAX_TILED_SPAN

    def _finds(self, cache: Cache, span: int, batch: int) -> _Found | None:
        """Where the cache keeps everything, looked up if that has changed; None where C can't work with it so."""
        G, K = self._config.n_kv_heads, self._config.head_dim
        like_BTGK = torch.empty(batch, 1, G, K)
        names = [f"layers.{index}.attention" for index in range(self._config.n_layers)]
        first = cache.room(names[0], span, like_BTGK)
        found = self._found  # as it is now: another thread may put its cache's there
        if found is not None and first[0].values is found.first:
            return found  # all layers' places change together, when a cache grows or drops rows
        self._found = None  # before the other layers grow, that each frees its old memory
        layers = {name: cache.room(name, span, like_BTGK) for name in names}
        return self._places(layers, (len(first[0].values), first[0].capacity))

    def _places(self, layers: Mapping[str, tuple[Slots, Slots]], shape: tuple[int, int]) -> _Found | None:
        """Where these layers' slots are, which have `shape` = (rows or pages, slots of each)."""
        first = layers["layers.0.attention"][0].values
        found = self._found
        if found is not None and first is found.first:
            return found
        self._found = None
        n_layers = self._config.n_layers
        of_keys, of_values = (CachedVectors * n_layers)(), (CachedVectors * n_layers)()
        tensors: list[Tensor] = []
        for index in range(n_layers):
            layer = layers[f"layers.{index}.attention"]
            for vectors, slots in zip((of_keys, of_values), layer, strict=True):
                cached = _cached(slots, (*shape, self._config.n_kv_heads, self._config.head_dim))
                if cached is None:
                    return None
                vectors[index] = cached
                tensors += slots.tensors().values()
        self._found = found = _Found(of_keys, of_values, shape[1], first, tensors)
        return found


@dataclass
class _Call:
    """One call of C: tokens in these rows at these positions, the rows' pages, and of which tokens to give logits."""

    model: _Model
    found: _Found
    rotations_J: Tensor
    rows: list[int]
    positions: list[int]
    page_table: Sequence[Sequence[int]]
    page_slots: int
    logits_of: Sequence[int]

    def run(self, sizes: Sizes, x_BTD: Tensor, logits_BTV: Tensor | None) -> None:
        """Take x_BTD through all layers, in place; the logits too, where there is a tensor for them."""
        n, most = len(self.rows), max(map(len, self.page_table))
        rows, positions = (c_int32 * n)(*self.rows), (c_int32 * n)(*self.positions)
        padded = [page for pages in self.page_table for page in (*pages, *[0] * (most - len(pages)))]
        pages, logits_of = (c_int32 * len(padded))(*padded), (c_int32 * len(self.logits_of))(*self.logits_of)
        tokens = Tokens(
            n,
            self.page_slots,
            most,
            len(logits_of),
            addressof(rows),
            addressof(positions),
            addressof(pages),
            addressof(logits_of),
            self.rotations_J.data_ptr(),
        )
        head = None if logits_BTV is None or self.model.ends is None else byref(self.model.ends[1])
        done = kernels.require().decode(
            addressof(self.model.layers),
            len(self.model.layers),
            addressof(self.model.last_norm),
            addressof(sizes),
            addressof(tokens),
            addressof(self.found.keys),
            addressof(self.found.values),
            x_BTD.data_ptr(),
            head,
            None if head is None or logits_BTV is None else logits_BTV.data_ptr(),
            torch.get_num_threads(),
        )
        if not done:
            raise ResourceError(f"no memory for a step of {n} tokens after {max(self.positions)}")


def _cached(of: Slots, wanted: tuple[int, int, int, int]) -> CachedVectors | None:
    """What C reads and writes, of `wanted` = (rows, slots, heads, numbers of a head); None where it isn't just that."""
    form = vars(type(of)).get("form")  # the class's own: one that is derived may mean something else by its bytes
    if form not in _CACHE_FORMS or of.head_dim != wanted[3]:
        return None
    kind, dtype = _CACHE_FORMS[form]
    group = 0
    expected = [(of.values, dtype, wanted[3] // 2 if kind == layout.CACHE_INT4 else wanted[3])]
    scales = of.tensors().get("scales")
    if scales is not None:
        groups = scales.shape[-1]
        group = wanted[3] // groups if groups else 0
        if not group or group * groups != wanted[3] or (kind == layout.CACHE_INT4 and group % 2):
            return None
        expected.append((scales, torch.float32, groups))
    if (scales is None) == (kind in (layout.CACHE_INT8, layout.CACHE_INT4)):
        return None
    if not all(kernels.readable(tensor, its_dtype, (*wanted[:3], width)) for tensor, its_dtype, width in expected):
        return None
    return CachedVectors(kind, group, of.values.data_ptr(), None if scales is None else scales.data_ptr())
