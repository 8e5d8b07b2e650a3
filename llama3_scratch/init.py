"""Fresh random weights of any config."""

from __future__ import annotations

import math

import torch

from llama3_scratch.config import Config, expected
from llama3_scratch.stored import Params


def init(
    config: Config,
    *,
    seed: int,
    std: float | None = None,
    embedding_std: float = 1.0,
    norm_std: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> Params:
    """Every tensor of `expected(config)`: embeddings N(0, embedding_std), matrices N(0, std), norms 1 + N(0, norm_std).

    `std` is 1/√columns unless given, so that a row's output has the size of its input.
    """
    generator = torch.Generator().manual_seed(seed)
    params: Params = {}
    for name, shape in expected(config).items():
        if config.tied and name == "output.weight":
            params[name] = params["tok_embeddings.weight"]
            continue
        tensor = torch.randn(shape, generator=generator)
        if len(shape) == 1:
            tensor = 1 + norm_std * tensor
        elif name == "tok_embeddings.weight":
            tensor *= embedding_std
        else:
            tensor *= 1 / math.sqrt(shape[1]) if std is None else std
        params[name] = tensor.to(dtype)
    return params
