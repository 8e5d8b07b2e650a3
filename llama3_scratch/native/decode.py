"""`model.decode` as one call of C for the few tokens of a step: the fast path of generating."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import Array, Structure, addressof, c_float, c_int32, c_void_p
from typing import Any

import torch
from torch import Tensor

from llama3_scratch.cache import NO_CACHE, Cache, Kept, NoCache
from llama3_scratch.config import Config, expected
from llama3_scratch.errors import ResourceError
from llama3_scratch.model import decode, rotations
from llama3_scratch.native import kernels
from llama3_scratch.stored import Params, Tiles, stored

_NORMS = ("attention_norm", "ffn_norm")
_MATRICES = tuple(f"attention.{w}" for w in ("wq", "wk", "wv", "wo")) + tuple(f"feed_forward.w{i}" for i in (1, 2, 3))
_CACHE_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2, torch.uint8: 3}  # enum CacheKind of native.h
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


class NativeDecode:
    """`decode` with the layers of one model in C, their addresses looked up once.

    What the kernels can't do (many tokens at once, other dtypes, gradients, no cache) is done by `decode`.
    """

    def __init__(self, params: Params, config: Config, layers: Array[_Layer], alive: list[Any]) -> None:
        self._params, self._config = params, config
        self._layers, self._alive = layers, alive
        self._last_norm = params["norm.weight"].detach().float().contiguous()
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
        self._first: Tensor | None = None  # where the first layer's keys are kept, by which a cache is known again

    def __call__(self, x_BTD: Tensor, params: Params, config: Config, *, cache: NoCache = NO_CACHE) -> Tensor:
        B, T, D = x_BTD.shape
        ours = self._sizes.dim == D and params is self._params
        if not ours or not isinstance(cache, Cache) or not kernels.usable(x_BTD):
            return decode(x_BTD, params, config, cache=cache)
        span = cache.span(T)
        if not self._worth(B * T, span):
            return decode(x_BTD, params, config, cache=cache)
        if len(self._rotations_J) < span:
            positions_1T = torch.arange(-(-span // _POSITIONS) * _POSITIONS)[None]
            self._rotations_J = rotations(positions_1T, config, x_BTD.dtype)[0]
        slots = self._find(cache, span, x_BTD.new_empty(B, 1, config.n_kv_heads, config.head_dim))
        n = B * T
        positions = (c_int32 * n)(*cache.positions(T, x_BTD.device).expand(B, T).flatten().tolist())
        rows = (c_int32 * n)(*(row for row in range(B) for _ in range(T)))
        tokens = _Tokens(n, slots, addressof(rows), addressof(positions), self._rotations_J.data_ptr())
        out_BTD = x_BTD.clone(memory_format=torch.contiguous_format)
        done = kernels.require().decode(
            addressof(self._layers),
            config.n_layers,
            self._last_norm.data_ptr(),
            addressof(self._sizes),
            addressof(tokens),
            addressof(self._keys),
            addressof(self._values),
            out_BTD.data_ptr(),
            torch.get_num_threads(),
        )
        if not done:
            raise ResourceError(f"no memory for a step of {n} tokens after {span}")
        cache.advance(T)
        return out_BTD

    def _worth(self, n: int, span: int) -> bool:
        """Whether the kernels are the faster way for n tokens of which the last sees `span`."""
        return 0 < n <= kernels.FEW or (self._tiled and n <= MANY and span <= LONG)

    def _find(self, cache: Cache, span: int, like_BTGK: Tensor) -> int:
        """Look up where the cache keeps everything, if that has changed; the slots that it has."""
        layers = (cache.room(f"layers.{index}.attention", span, like_BTGK) for index in range(len(self._layers)))
        keys, values = first = next(layers)
        if keys.values is not self._first:  # all layers' places change together, when a cache grows or drops rows
            for index, (keys, values) in enumerate((first, *layers)):
                self._keys[index], self._values[index] = _kept(keys), _kept(values)
            self._first = first[0].values
        return first[0].slots


def _kept(of: Kept) -> _Kept:
    scales = of.tensors().get("scales")
    if scales is None:
        return _Kept(_CACHE_KINDS[of.values.dtype], 0, of.values.data_ptr(), None)
    group = of.head_dim // scales.shape[-1]
    return _Kept(_CACHE_KINDS[of.values.dtype], group, of.values.data_ptr(), scales.data_ptr())
