"""`model.block` as one call of C for the few tokens of a step: the fast path of generating."""

from __future__ import annotations

from ctypes import Structure, addressof, c_float, c_int32, c_void_p
from typing import Any

import torch
from torch import Tensor

from llama3_scratch.cache import Cache, Kept, NoCache
from llama3_scratch.config import Config, expected
from llama3_scratch.errors import ResourceError
from llama3_scratch.model import Block, fused_block
from llama3_scratch.native import kernels
from llama3_scratch.stored import Params, stored

_NORMS = ("attention_norm", "ffn_norm")
_MATRICES = tuple(f"attention.{w}" for w in ("wq", "wk", "wv", "wo")) + tuple(f"feed_forward.w{i}" for i in (1, 2, 3))
_CACHE_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2, torch.uint8: 3}  # enum CacheKind of native.h


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


def fast_block(params: Params, config: Config) -> Block:
    """The fastest block for generating with these weights here."""
    on_cpu = params["tok_embeddings.weight"].device.type == "cpu"
    return NativeBlock(params, config) if on_cpu and kernels.library() else fused_block


class NativeBlock:
    """A `block=` for `decode`: the layers of one model, their addresses looked up once.

    What the kernels can't do (many tokens at once, other dtypes, adapters, gradients, no cache) goes to `fused_block`,
    so it may be given wherever a block may. What a pass has in common is looked at in the first of its layers.
    """

    def __init__(self, params: Params, config: Config) -> None:
        self._params = params
        self._sizes = _Sizes(
            config.dim, config.n_heads, config.n_kv_heads, config.head_dim, config.hidden_dim, config.norm_eps
        )
        self._tokens = _Tokens()
        self._alive: list[Any] = []  # what C has addresses of
        shapes = expected(config)
        layers = {f"layers.{i}": self._layer(f"layers.{i}", shapes) for i in range(config.n_layers)}
        self._layers = {name: addressof(layer) for name, layer in layers.items() if layer is not None}
        self._caches: dict[str, tuple[Tensor, Tensor, _Kept, _Kept]] = {}
        self._rotation: Tensor | None = None  # of the pass under way
        self._few = False  # whether the kernels do it
        self._pass: tuple[Tensor, ...] = ()
        self._span, self._threads = 0, 1
        self._like_BTGK = torch.empty(0)

    def _layer(self, name: str, shapes: dict[str, tuple[int, ...]]) -> _Layer | None:
        """The layer as C has it; None where it has a form that the kernels don't know."""
        layer = _Layer()
        for norm in _NORMS:
            weight = self._params[f"{name}.{norm}.weight"]
            if weight.device.type != "cpu" or weight.shape != shapes[f"{name}.{norm}.weight"]:
                return None
            wide = weight.detach().float().contiguous()
            self._alive.append(wide)
            setattr(layer, norm, wide.data_ptr())
        for matrix in _MATRICES:
            of = f"{name}.{matrix}"
            described = kernels.weight(stored(self._params, of))
            if described is None or f"{of}.adaptor.A.weight" in self._params:
                return None
            if (described.rows, described.columns) != shapes[f"{of}.weight"]:
                return None
            self._alive.append(described.tensors)
            setattr(layer, matrix.replace(".", "_"), described)
        self._alive.append(layer)
        return layer

    def __call__(
        self,
        x_BTD: Tensor,
        params: Params,
        name: str,
        config: Config,
        *,
        rotation_BTJ: Tensor,
        visible_BTS: Tensor,
        cache: NoCache,
    ) -> Tensor:
        if rotation_BTJ is not self._rotation:
            self._begin(x_BTD, params, rotation_BTJ, cache)
        layer = self._layers.get(name) if self._few else None
        if layer is None or not isinstance(cache, Cache):
            return fused_block(
                x_BTD, params, name, config, rotation_BTJ=rotation_BTJ, visible_BTS=visible_BTS, cache=cache
            )
        keys, values = self._addresses(name, *cache.room(f"{name}.attention", self._span, self._like_BTGK))
        out_BTD = torch.empty_like(x_BTD)
        done = kernels.require().block(
            layer,
            addressof(self._sizes),
            addressof(self._tokens),
            keys,
            values,
            x_BTD.data_ptr(),
            out_BTD.data_ptr(),
            self._threads,
        )
        if not done:
            raise ResourceError(f"no memory for a layer of {self._tokens.n} tokens after {self._span}")
        return out_BTD

    def _begin(self, x_BTD: Tensor, params: Params, rotation_BTJ: Tensor, cache: NoCache) -> None:
        self._rotation = rotation_BTJ
        B, T, D = x_BTD.shape
        self._few = (
            isinstance(cache, Cache)
            and params is self._params
            and 0 < B * T <= kernels.FEW
            and self._sizes.dim == D
            and x_BTD.is_contiguous()
            and rotation_BTJ.dtype == torch.complex64
            and kernels.usable(x_BTD)
        )
        if not self._few:
            return
        positions_BT = cache.positions(T, x_BTD.device).expand(B, T).to(torch.int32).contiguous()
        rows_BT = torch.arange(B, dtype=torch.int32)[:, None].expand(B, T).contiguous()
        rotations_BTJ = rotation_BTJ.expand(B, T, -1).contiguous()
        self._pass = positions_BT, rows_BT, rotations_BTJ
        self._tokens.n = B * T
        self._tokens.positions, self._tokens.rows, self._tokens.rotations = (tensor.data_ptr() for tensor in self._pass)
        self._span = cache.span(T)
        self._like_BTGK = x_BTD.new_empty(B, 1, self._sizes.kv_heads, self._sizes.head_dim)
        self._threads = torch.get_num_threads()

    def _addresses(self, name: str, keys: Kept, values: Kept) -> tuple[int, int]:
        """Where the layer's keys and values are kept, as C has it."""
        known = self._caches.get(name)
        if known is None or known[0] is not keys.values or known[1] is not values.values:
            known = self._caches[name] = keys.values, values.values, _kept(keys), _kept(values)
        self._tokens.slots = keys.slots
        return addressof(known[2]), addressof(known[3])


def _kept(of: Kept) -> _Kept:
    scales = of.tensors().get("scales")
    if scales is None:
        return _Kept(_CACHE_KINDS[of.values.dtype], 0, of.values.data_ptr(), None)
    group = of.head_dim // scales.shape[-1]
    return _Kept(_CACHE_KINDS[of.values.dtype], group, of.values.data_ptr(), scales.data_ptr())
