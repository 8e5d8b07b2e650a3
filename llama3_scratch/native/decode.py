"""`model.decode` as one call of C for the few tokens of a step: the fast path of generating."""

from __future__ import annotations

import operator
from collections.abc import Callable
from ctypes import Array, addressof, byref, c_int32, c_int64
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor

from llama3_scratch.cache import NO_CACHE, Cache, NoCache, Slots
from llama3_scratch.config import Config, expected
from llama3_scratch.errors import ResourceError, UsageError
from llama3_scratch.linear import embed
from llama3_scratch.model import Block, decode, rotations, unembed
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
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class FastForward:
    """`forward` for generating: tokens in, logits out, by the fastest way that there is here.

    `dtype` is the activations'; `block` is a layer's function, in the place of the fastest way through all layers.
    """

    def __init__(
        self, params: Params, config: Config, *, dtype: torch.dtype | None = None, block: Block | None = None
    ) -> None:
        self._params, self._config, self._dtype = params, config, dtype
        self._device = params["tok_embeddings.weight"].device
        self._decode = fast_decode(params, config) if block is None else partial(decode, block=block)
        own = dtype or stored(params, "tok_embeddings").dtype
        self._native = self._decode if isinstance(self._decode, NativeDecode) and own == torch.float32 else None

    def hidden(self, tokens_BT: Tensor, cache: NoCache) -> Tensor:
        """What goes into the head: x_BTD."""
        x_BTD = embed(tokens_BT.to(self._device), self._params, "tok_embeddings", dtype=self._dtype)
        return self._decode(x_BTD, self._params, self._config, cache=cache)

    def logits(self, tokens_BT: Tensor, cache: NoCache) -> Tensor:
        """The logits of all tokens: logits_BTV."""
        if self._native is not None and (logits_BTV := self._native.logits(tokens_BT, cache)) is not None:
            return logits_BTV
        return self.head(self.hidden(tokens_BT, cache))

    def head(self, x_BTD: Tensor) -> Tensor:
        """The logits of what `hidden` gave, or of some of it: logits_BTV."""
        return unembed(x_BTD, self._params)


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
    addresses: tuple[int, ...]  # of the tensors

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
            tuple(map(Tensor.data_ptr, tensors)),
        )

    def current(self, params: Params, *, closely: bool) -> bool:
        """Whether the params are still those tensors; looked at closely, whether they are where they were too.

        Asking hundreds of tensors for their addresses takes 3 % of a small model's step. A tensor that is given other
        memory between two tokens is noticed at the next prompt; until then its old memory is read.
        """
        if len(self.tensors) != len(params) or not all(map(operator.is_, self.tensors, params.values())):
            return False
        return not closely or self.addresses == tuple(map(Tensor.data_ptr, self.tensors))


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
        step = self._step(cast(Cache, cache), B, T) if self._worth(B * T, cache.span(T)) else None
        if step is None:
            return decode(x_BTD, params, config, cache=cache)
        out_BTD = x_BTD.detach().clone(memory_format=torch.contiguous_format)
        step.run(self._sizes, out_BTD, None)
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
        step = self._step(cast(Cache, cache), B, T)
        if step is None or step.model.ends is None:
            return None
        tokens = tokens_BT.flatten().tolist()
        if not 0 <= min(tokens) <= max(tokens) < V:
            raise UsageError(f"tokens {min(tokens)} to {max(tokens)}, the vocabulary has {V}")
        embedding, _ = step.model.ends
        kernels.require().rows(embedding, B * T, (c_int64 * len(tokens))(*tokens), x_BTD.data_ptr())
        logits_BTV = torch.empty(B, T, V)
        step.run(self._sizes, x_BTD, logits_BTV)
        cache.advance(T)
        return logits_BTV

    def _step(self, cache: Cache, B: int, T: int) -> _Step | None:
        """T more tokens of B rows, as C takes them; None where it can't. What others may change is looked at once."""
        model = self._model
        if model is None or not model.current(self._params, closely=T > 1):
            model = self._model = _Model.of(self._params, self._config)
        span = cache.span(T)
        if model is None or (model.trains and torch.is_grad_enabled()) or not self._worth(B * T, span):
            return None
        found = self._finds(cache, span, B)
        if found is None:
            return None
        positions = cache.positions(T, torch.device("cpu")).expand(B, T).flatten().tolist()
        if not 0 <= min(positions) <= max(positions) < min(span, found.slots):
            return None
        rotations_J = self._rotations_J
        if len(rotations_J) < span:
            positions_1T = torch.arange(-(-span // _POSITIONS) * _POSITIONS)[None]
            rotations_J = self._rotations_J = rotations(positions_1T, self._config, torch.float32)[0].contiguous()
        rows = [row for row in range(B) for _ in range(T)]
        return _Step(model, found, rotations_J, rows, positions)

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
        layers = (cache.room(f"layers.{index}.attention", span, like_BTGK) for index in range(self._config.n_layers))
        first = next(layers)
        found = self._found
        if found is not None and first[0].values is found.first:
            return found  # all layers' places change together, when a cache grows or drops rows
        found = self._found = None  # before the other layers grow, that each frees its old memory
        slots, tensors = first[0].capacity, list[Tensor]()
        n_layers = self._config.n_layers
        of_keys, of_values = (CachedVectors * n_layers)(), (CachedVectors * n_layers)()
        for index, layer in enumerate((first, *layers)):
            for vectors, kept in zip((of_keys, of_values), layer, strict=True):
                cached = _cached(kept, (batch, slots, G, K))
                if cached is None:
                    return None
                vectors[index] = cached
                tensors += kept.tensors().values()
        self._found = _Found(of_keys, of_values, slots, first[0].values, tensors)
        return self._found


@dataclass
class _Step:
    """One call of C: tokens in these rows at these positions."""

    model: _Model
    found: _Found
    rotations_J: Tensor
    rows: list[int]
    positions: list[int]

    def run(self, sizes: Sizes, x_BTD: Tensor, logits_BTV: Tensor | None) -> None:
        """Take x_BTD through all layers, in place; the logits too, where there is a tensor for them."""
        n = len(self.rows)
        rows, positions = (c_int32 * n)(*self.rows), (c_int32 * n)(*self.positions)
        tokens = Tokens(n, self.found.slots, addressof(rows), addressof(positions), self.rotations_J.data_ptr())
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
