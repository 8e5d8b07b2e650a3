"""Meta's own `Transformer` (llama-models), with plain torch where it wants fairscale's parallel layers."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from llama3_scratch.config import Config
from llama3_scratch.stored import Params

_FAIRSCALE = ["fairscale", *(f"fairscale.nn{part}" for part in ("", ".model_parallel"))]
_INITIALIZE, _LAYERS = "fairscale.nn.model_parallel.initialize", "fairscale.nn.model_parallel.layers"
_META = ["llama_models.llama3.model", "llama_models.llama3.args"]


class _Linear(nn.Linear):
    """Column- and row-parallel alike: with one process a parallel layer is a plain one."""

    def __init__(self, columns: int, rows: int, *, bias: bool, **_: Any) -> None:
        super().__init__(columns, rows, bias=bias)


class _Embedding(nn.Embedding):
    def __init__(self, rows: int, columns: int, **_: Any) -> None:
        super().__init__(rows, columns)


def _stand_ins() -> dict[str, ModuleType]:
    modules = {name: ModuleType(name) for name in (*_FAIRSCALE, _INITIALIZE, _LAYERS)}
    modules[_INITIALIZE].get_model_parallel_world_size = lambda: 1  # type: ignore[attr-defined]
    for name in ("ColumnParallelLinear", "RowParallelLinear"):
        setattr(modules[_LAYERS], name, _Linear)
    modules[_LAYERS].VocabParallelEmbedding = _Embedding  # type: ignore[attr-defined]
    return modules


@contextlib.contextmanager
def meta_model() -> Iterator[ModuleType]:
    """`llama_models.llama3.model` over the stand-ins; `sys.modules` is as before when the body ends."""
    pytest.importorskip("llama_models", reason="Meta's reference code: pip install --no-deps llama-models==0.3.0")
    stand_ins = _stand_ins()
    names = [*stand_ins, *_META]
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.modules.update(stand_ins)
    try:
        yield importlib.import_module(_META[0])
    finally:
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(before)


def transformer(
    meta: ModuleType, params: Params, config: Config, multiple_of: int, multiplier: float | None, *, max_seq_len: int
) -> nn.Module:
    """Meta's model of `config` holding `params`; its code knows no scaling factor but 8."""
    args = meta.ModelArgs(
        dim=config.dim,
        n_layers=config.n_layers,
        n_heads=config.n_heads,
        n_kv_heads=config.n_kv_heads,
        vocab_size=config.vocab_size,
        multiple_of=multiple_of,
        ffn_dim_multiplier=multiplier,
        norm_eps=config.norm_eps,
        rope_theta=config.rope_theta,
        use_scaled_rope=config.rope_scaling is not None,
        max_batch_size=2,
        max_seq_len=max_seq_len,
    )
    model = meta.Transformer(args)
    with torch.no_grad():
        model.load_state_dict(params, strict=True)
    return model
