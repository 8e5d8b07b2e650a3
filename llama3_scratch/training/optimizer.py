"""AdamW over the trainable tensors, and the schedules of its learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

_COSINE_END = 0.1  # of the highest learning rate, where cosine ends
_WSD_DECAY = 0.2  # of all steps, in which wsd goes down
_RANGE_START = 1e-5  # of the highest learning rate, where range begins


def adamw(
    tensors: dict[str, Tensor], *, lr: float, betas: tuple[float, float] = (0.9, 0.95), weight_decay: float = 0.1
) -> torch.optim.AdamW:
    """AdamW (arXiv:1711.05101) whose weight decay leaves vectors alone: norms have no reason to shrink.

    A tensor under two names, as a tied head is, is one.
    """
    unique = list({id(tensor): tensor for tensor in tensors.values()}.values())
    groups = [
        {"params": [tensor for tensor in unique if tensor.ndim > 1], "weight_decay": weight_decay},
        {"params": [tensor for tensor in unique if tensor.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=lr, betas=betas, fused=True)


def schedule(kind: str, steps: int, warmup: int) -> Callable[[int], float]:
    """The share of the highest learning rate at each step, from 0: up in a line for `warmup` steps, then

    * "cosine": down half a wave to a tenth at the last step (arXiv:1608.03983);
    * "wsd": level, and in the last fifth of all steps down in a line to nothing (arXiv:2404.06395);
    * "constant": level;
    * "range": up from a hundred-thousandth by equal factors, to see which learning rate is too high (arXiv:1506.01186).
    """

    def share(step: int) -> float:
        if kind == "range":
            return _RANGE_START ** (1 - min(1.0, step / max(1, steps - 1)))
        if step < warmup:
            return (step + 1) / warmup
        if kind == "cosine":
            done = min(1.0, (step - warmup) / max(1, steps - 1 - warmup))
            return _COSINE_END + (1 - _COSINE_END) * (1 + math.cos(math.pi * done)) / 2
        if kind == "wsd":
            return max(0.0, min(1.0, (steps - step) / max(1.0, _WSD_DECAY * steps)))
        return 1.0

    return share
