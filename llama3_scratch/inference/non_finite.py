"""Where the first NaN or infinity of a run appears, when the logits hold one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llama3_scratch.cache import Cache, MakeSlots
from llama3_scratch.config import Config
from llama3_scratch.inference.fast_forward import FastForward
from llama3_scratch.inference.sample import NonFiniteError
from llama3_scratch.linear import embed
from llama3_scratch.model import decode, fused_block
from llama3_scratch.stored import Params


def located(
    error: NonFiniteError, tokens: Sequence[int], model: FastForward, forms: tuple[MakeSlots, MakeSlots]
) -> tuple[NonFiniteError, bool]:
    """The error with the layer and the position at which the first NaN or infinity appears, and whether there was one.

    They're found by running the tokens once more, in a new cache of these forms.
    """
    params, config, dtype = model.params, model.config, model.dtype
    again = Cache(len(tokens), keys=forms[0], values=forms[1])
    found: list[tuple[str, int]] = []

    def watched(x_BTD: Tensor, params: Params, name: str, config: Config, **state: Any) -> Tensor:
        out_BTD = fused_block(x_BTD, params, name, config, **state)
        if not found and (position := _first_bad(out_BTD)) is not None:
            # A value that is no number spoils all sums that it's in, even those in which it has no weight.
            kept = _first_bad_slot(again, f"{name}.attention", len(tokens))
            found.append((name, position if kept is None else kept))
        return out_BTD

    tokens_BT = torch.tensor([list(tokens)], device=params["tok_embeddings.weight"].device)
    decode(embed(tokens_BT, params, "tok_embeddings", dtype=dtype), params, config, cache=again, block=watched)
    where, at = (found[0][0], f" at position {found[0][1]}") if found else ("the head", "")
    floats = {key: tensor for key, tensor in params.items() if tensor.is_floating_point()}
    near = [key for key in floats if key.startswith(f"{where}.")]
    bad = next((key for key in [*near, *floats] if not torch.isfinite(floats[key]).all()), None)
    remedy = "verify the weights"
    if bad:
        remedy = f"{bad} holds NaN or infinity, download it again"
    elif dtype == torch.float16:
        remedy = "float16 overflows there, take `dtype=float32`"
    return NonFiniteError(f"{error}, first in {where}{at}; {remedy}"), bool(found)


def located_in(error: NonFiniteError, cache: Cache) -> NonFiniteError | None:
    """The error with the layer and the position of the first NaN or infinity that the cache holds; None without one."""
    for name in cache.layers:
        if (position := _first_bad_slot(cache, name, cache.length)) is not None:
            return NonFiniteError(f"{error}, first in the cache of {name} at position {position}; begin anew")
    return None


def _first_bad_slot(cache: Cache, name: str, slots: int) -> int | None:
    """The first of the layer's slots whose key or value holds a NaN or an infinity."""
    bad = [position for kept in cache.layers[name] if (position := _first_bad(kept.get(slots))) is not None]
    return min(bad, default=None)


def _first_bad(x: Tensor) -> int | None:
    """The first index along axis 1, the tokens' one, at which a NaN or an infinity stands."""
    bad = ~torch.isfinite(x).transpose(0, 1).flatten(1).all(1)
    return int(bad.nonzero()[0]) if bad.any() else None
