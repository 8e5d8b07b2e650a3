"""A token from a row of logits in one call of C: what the filters of `inference.sample` and a draw would give."""

from __future__ import annotations

from torch import Tensor

from llama3_scratch.errors import ResourceError
from llama3_scratch.native import kernels

_MAX_TOP_K = 2**31 - 1


def sample(logits_V: Tensor, *, temperature: float, top_k: int, top_p: float, min_p: float, point: float) -> int | None:
    """The token whose piece of the line of all that the filters leave `point` of 0 … 1 falls into.

    None where C can't say: other logits than f32 on a CPU, no kernels, or a logit that isn't finite.
    """
    if logits_V.ndim != 1 or not kernels.usable(logits_V) or not 0 < len(logits_V) < kernels.MAX_SIZE:
        return None
    logits_V = logits_V.contiguous()
    token: int = kernels.require().sample(
        logits_V.data_ptr(), len(logits_V), temperature, min(top_k, _MAX_TOP_K), top_p, min_p, point
    )
    if token == -2:
        raise ResourceError(f"no memory to choose among {len(logits_V)} tokens")
    return token if token >= 0 else None
