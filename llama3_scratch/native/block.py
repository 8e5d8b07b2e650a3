"""`model.block` as one call of C for the few tokens of a step: the fast path of generating."""

from __future__ import annotations

from ctypes import Structure, addressof, c_float, c_int32, c_void_p
from typing import Any

import torch
from torch import Tensor

from llama3_scratch.cache import Cache, Kept, NoCache
from llama3_scratch.config import Config
from llama3_scratch.model import fused_block
from llama3_scratch.native import kernels
from llama3_scratch.stored import Params, stored

_MATRICES = tuple(f"attention.{w}" for w in ("wq", "wk", "wv", "wo")) + tuple(f"feed_forward.w{i}" for i in (1, 2, 3))


class _Layer(Structure):
    _fields_ = [
        ("attention_norm", c_void_p),
        ("ffn_norm", c_void_p),
        *((name.replace(".", "_"), kernels.Weight) for name in _MATRICES),
    ]


class _Sizes(Structure):
    _fields_ = [*((name, c_int32) for name in ("dim", "heads", "kv_heads", "head_dim", "hidden")), ("eps", c_float)]


class _Tokens(Structure):
    _fields_ = [("n", c_int32), ("slots", c_int32), *((name, c_void_p) for name in ("rows", "positions", "rotations"))]


class _Kept(Structure):
    _fields_ = [("kind", c_int32), ("group", c_int32), ("values", c_void_p), ("scales", c_void_p)]


class NativeBlock:
    """A `block=` for `decode`: the layers of one model, their addresses looked up once.

    What the kernels can't do (many tokens at once, other dtypes, adapters, gradients, a cache without slots) goes to
    `fused_block`, so it may be given anywhere.
    """

    def __init__(self, params: Params, config: Config) -> None:
        self._params = params
        self._sizes = _Sizes(
            config.dim, config.n_heads, config.n_kv_heads, config.head_dim, config.hidden_dim, config.norm_eps
        )
        self._kept: list[Any] = []  # what C has addresses of
        self._layers = {
            name: layer
            for name in (f"layers.{i}" for i in range(config.n_layers))
            if (layer := self._describe(name)) is not None
        }
        self._rotation: Tensor | None = None  # of the pass that is under way
        self._few = False  # whether the kernels do this pass
        self._tokens = _Tokens()
        self._sizes_at, self._tokens_at = addressof(self._sizes), addressof(self._tokens)
        self._like_BTGK = torch.empty(0)
        self._span = 0
        self._caches: dict[str, tuple[Tensor, Tensor, _Kept, _Kept]] = {}

    def _describe(self, name: str) -> int | None:
        """The address of the layer as C has it; None where it has a form that the kernels don't know."""
        layer = _Layer()
        for norm in ("attention_norm", "ffn_norm"):
            weight = self._params[f"{name}.{norm}.weight"]
            if weight.device.type != "cpu":
                return None
            wide = weight.detach().float().contiguous()
            self._kept.append(wide)
            setattr(layer, norm, wide.data_ptr())
        for matrix in _MATRICES:
            of = f"{name}.{matrix}"
            described = kernels.weight(stored(self._params, of))
            if described is None or f"{of}.adaptor.A.weight" in self._params:
                return None
            self._kept.append(described)
            setattr(layer, matrix.replace(".", "_"), described)
        self._kept.append(layer)
        return addressof(layer)

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
            self._begin(x_BTD, rotation_BTJ, cache)
        layer = self._layers.get(name)
        if not self._few or layer is None or params is not self._params:
            return fused_block(
                x_BTD, params, name, config, rotation_BTJ=rotation_BTJ, visible_BTS=visible_BTS, cache=cache
            )
        assert isinstance(cache, Cache)
        keys, values = self._addresses(name, *cache.room(f"{name}.attention", self._span, self._like_BTGK))
        out_BTD = torch.empty_like(x_BTD)
        done = kernels.require().block(
            layer, self._sizes_at, self._tokens_at, keys, values, x_BTD.data_ptr(), out_BTD.data_ptr(), self._threads
        )
        if not done:
            raise MemoryError(f"no memory for a layer of {self._tokens.n} tokens")
        return out_BTD

    def _begin(self, x_BTD: Tensor, rotation_BTJ: Tensor, cache: NoCache) -> None:
        """Look once a pass at what is the same in all its layers."""
        self._rotation = rotation_BTJ
        B, T, _ = x_BTD.shape
        self._few = (
            isinstance(cache, Cache)
            and B * T <= kernels.FEW
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
    kind = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2, torch.uint8: 3}[of.values.dtype]
    scales: Tensor | None = of.tensors().get("scales")
    return _Kept(
        kind,
        0 if scales is None else of.values.shape[-1] // scales.shape[-1],
        of.values.data_ptr(),
        None if scales is None else scales.data_ptr(),
    )
