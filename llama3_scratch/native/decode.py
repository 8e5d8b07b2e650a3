"""`model.decode` as one call of C for the few tokens of a step: the fast path of generating."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import Array, Structure, addressof, byref, c_float, c_int32, c_int64, c_void_p
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from llama3_scratch.cache import NO_CACHE, Cache, Kept, NoCache
from llama3_scratch.caches.quantized import KeptBf16, KeptInt4, KeptInt8
from llama3_scratch.config import Config, expected
from llama3_scratch.errors import ResourceError, UsageError
from llama3_scratch.linear import embed
from llama3_scratch.model import Block, decode, rotations, unembed
from llama3_scratch.native import kernels
from llama3_scratch.stored import Params, Tiles, stored

_NORMS = ("attention_norm", "ffn_norm")
_MATRICES = tuple(f"attention.{w}" for w in ("wq", "wk", "wv", "wo")) + tuple(f"feed_forward.w{i}" for i in (1, 2, 3))
# enum CacheKind of native.h, and the dtype in which each form keeps its numbers
_CACHE_KINDS = {
    Kept: (0, torch.float32),
    KeptBf16: (1, torch.bfloat16),
    KeptInt8: (2, torch.int8),
    KeptInt4: (3, torch.uint8),
}
# Torch multiplies floats faster where tokens are many, and attends faster where each sees many.
MANY, LONG = 1024, 2048
_POSITIONS = 1024  # by which the table of rotations grows


class _Layer(Structure):
    _fields_ = [
        *((name, c_void_p) for name in _NORMS),
        *((name.replace(".", "_"), kernels.Weight) for name in _MATRICES),
    ]


class _Sizes(Structure):
    _fields_ = [*((name, c_int32) for name in ("dim", "heads", "kv_heads", "head_dim", "hidden")), ("eps", c_float)]


class _Tokens(Structure):
    _fields_ = [("n", c_int32), ("slots", c_int32), *((name, c_void_p) for name in ("rows", "positions", "rotations"))]


class _Kept(Structure):
    _fields_ = [("kind", c_int32), ("group", c_int32), ("values", c_void_p), ("scales", c_void_p)]


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
    if params["tok_embeddings.weight"].device.type != "cpu" or kernels.library() is None:
        return decode
    layers = _layers(params, config)
    return decode if layers is None else NativeDecode(params, config, *layers)


def _layers(params: Params, config: Config) -> tuple[Array[_Layer], list[Any]] | None:
    """The layers as C has them, and all that must live as long; None where the kernels don't know a form in them."""
    shapes = expected(config)
    alive: list[Any] = []
    layers = (_Layer * config.n_layers)()
    for index, layer in enumerate(layers):
        for norm in _NORMS:
            weight = params[name := f"layers.{index}.{norm}.weight"]
            if weight.device.type != "cpu" or weight.shape != shapes[name]:
                return None
            alive.append(weight.detach().float().contiguous())
            setattr(layer, norm, alive[-1].data_ptr())
        for matrix in _MATRICES:
            described = kernels.weight(stored(params, name := f"layers.{index}.{matrix}"))
            if described is None or f"{name}.adaptor.A.weight" in params:
                return None
            if (described.rows, described.columns) != shapes[f"{name}.weight"]:
                return None
            alive.append(described.tensors)
            setattr(layer, matrix.replace(".", "_"), described)
    return layers, alive


def _ends(params: Params, config: Config) -> tuple[kernels.Weight, kernels.Weight] | None:
    """The embedding and the head as C has them; None where it can't."""
    ends = [kernels.weight(stored(params, name)) for name in ("tok_embeddings", "output")]
    adapted = any(f"{name}.adaptor.A.weight" in params for name in ("tok_embeddings", "output"))
    first, last = ends
    if first is None or last is None or adapted:
        return None
    wanted = (config.vocab_size, config.dim)
    return (first, last) if (first.rows, first.columns) == (last.rows, last.columns) == wanted else None


class NativeDecode:
    """`decode` with the layers of one model in C, their addresses looked up once.

    What the kernels can't do (many tokens at once, other dtypes, gradients, no cache) is done by `decode`.
    """

    def __init__(self, params: Params, config: Config, layers: Array[_Layer], alive: list[Any]) -> None:
        self._params, self._config = params, config
        self._layers, self._alive = layers, alive
        self._last_norm = params["norm.weight"].detach().float().contiguous()
        self._ends = _ends(params, config)
        self._tiled = all(
            isinstance(stored(params, f"layers.{index}.{matrix}"), Tiles)
            for index in range(config.n_layers)
            for matrix in _MATRICES
        )
        self._sizes = _Sizes(
            config.dim, config.n_heads, config.n_kv_heads, config.head_dim, config.hidden_dim, config.norm_eps
        )
        self._rotations_J = torch.empty(0, config.head_dim // 2, dtype=torch.complex64)  # of every position so far
        self._keys, self._values = (_Kept * config.n_layers)(), (_Kept * config.n_layers)()
        # Where the first layer's keys are kept, by which a cache is known again, and the slots that it has.
        self._first: Tensor | None = None
        self._slots = 0

    def __call__(self, x_BTD: Tensor, params: Params, config: Config, *, cache: NoCache = NO_CACHE) -> Tensor:
        B, T, D = x_BTD.shape
        ours = self._sizes.dim == D and params is self._params
        if not ours or not cache.by_position or not kernels.usable(x_BTD):
            return decode(x_BTD, params, config, cache=cache)
        slots = cast(Cache, cache)
        if not self._worth(B * T, cache.span(T)) or not self._finds(slots, cache.span(T), B):
            return decode(x_BTD, params, config, cache=cache)
        out_BTD = x_BTD.clone(memory_format=torch.contiguous_format)
        self._run(out_BTD, slots, None, None)
        return out_BTD

    def logits(self, tokens_BT: Tensor, cache: NoCache) -> Tensor | None:
        """`forward` of a few tokens in one call, logits_BTV in f32; None where it takes more than that.

        Raises UsageError for a token that the vocabulary hasn't.
        """
        B, T = tokens_BT.shape
        V, D = self._config.vocab_size, self._config.dim
        if self._ends is None or not cache.by_position or not 0 < B * T <= kernels.FEW:
            return None
        embedding, head = self._ends
        slots = cast(Cache, cache)
        x_BTD = torch.empty(B, T, D)
        if not kernels.usable(x_BTD) or not self._finds(slots, cache.span(T), B):
            return None
        tokens = tokens_BT.flatten().tolist()
        if not 0 <= min(tokens) <= max(tokens) < V:
            raise UsageError(f"tokens {min(tokens)} to {max(tokens)}, the vocabulary has {V}")
        kernels.require().rows(embedding, B * T, (c_int64 * len(tokens))(*tokens), x_BTD.data_ptr())
        logits_BTV = torch.empty(B, T, V)
        self._run(x_BTD, slots, byref(head), logits_BTV.data_ptr())
        return logits_BTV

    def _run(self, x_BTD: Tensor, cache: Cache, head: Any, logits: int | None) -> None:
        """Take x_BTD through all layers, in place, and with a head the logits too; the cache is the one found last."""
        B, T, _ = x_BTD.shape
        n, span = B * T, cache.span(T)
        if len(self._rotations_J) < span:
            positions_1T = torch.arange(-(-span // _POSITIONS) * _POSITIONS)[None]
            self._rotations_J = rotations(positions_1T, self._config, x_BTD.dtype)[0]
        positions = (c_int32 * n)(*cache.positions(T, x_BTD.device).expand(B, T).flatten().tolist())
        rows = (c_int32 * n)(*(row for row in range(B) for _ in range(T)))
        tokens = _Tokens(n, self._slots, addressof(rows), addressof(positions), self._rotations_J.data_ptr())
        done = kernels.require().decode(
            addressof(self._layers),
            self._config.n_layers,
            self._last_norm.data_ptr(),
            addressof(self._sizes),
            addressof(tokens),
            addressof(self._keys),
            addressof(self._values),
            x_BTD.data_ptr(),
            head,
            logits,
            torch.get_num_threads(),
        )
        if not done:
            raise ResourceError(f"no memory for a step of {n} tokens after {span}")
        cache.advance(T)

    def _worth(self, n: int, span: int) -> bool:
        """Whether the kernels are the faster way for n tokens of which the last sees `span`."""
        return 0 < n <= kernels.FEW or (self._tiled and n <= MANY and span <= LONG)

    def _finds(self, cache: Cache, span: int, batch: int) -> bool:
        """Look up where the cache keeps everything, if that has changed; whether C can work with it so."""
        like_BTGK = torch.empty(batch, 1, self._config.n_kv_heads, self._config.head_dim)
        layers = (cache.room(f"layers.{index}.attention", span, like_BTGK) for index in range(len(self._layers)))
        first = next(layers)
        if first[0].values is self._first:  # all layers' places change together, when a cache grows or drops rows
            return True
        self._first, self._slots = None, first[0].slots
        wanted = (batch, self._slots, self._config.n_kv_heads, self._config.head_dim)
        for index, (keys, values) in enumerate((first, *layers)):
            of_keys, of_values = _kept(keys, wanted), _kept(values, wanted)
            if of_keys is None or of_values is None:
                return False
            self._keys[index], self._values[index] = of_keys, of_values
        self._first = first[0].values
        return True


def _kept(of: Kept, wanted: tuple[int, int, int, int]) -> _Kept | None:
    """What C reads and writes, of `wanted` = (rows, slots, heads, numbers of a head); None where it isn't just that."""
    if type(of) not in _CACHE_KINDS or of.head_dim != wanted[3]:
        return None
    kind, dtype = _CACHE_KINDS[type(of)]
    group = 0
    expected = [(of.values, dtype, wanted[3] // 2 if kind == 3 else wanted[3])]
    scales = of.tensors().get("scales")
    if scales is not None:
        groups = scales.shape[-1]
        group = wanted[3] // groups
        if group * groups != wanted[3]:
            return None
        expected.append((scales, torch.float32, groups))
    for tensor, its_dtype, width in expected:
        lies = tensor.dtype == its_dtype and tensor.device.type == "cpu" and tensor.is_contiguous()
        if not lies or tensor.shape != (*wanted[:3], width):
            return None
    return _Kept(kind, group, of.values.data_ptr(), None if scales is None else scales.data_ptr())
