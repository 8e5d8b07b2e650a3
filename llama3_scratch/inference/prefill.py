"""The two passes of generating: `prefill` takes prompts in, `step` the tokens that follow, for all rows at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llama3_scratch.cache import Cache
from llama3_scratch.inference.fast_forward import FastForward

CHUNK = 512  # tokens of a prompt that go through the model at once: memory stays flat however long the prompt is


def prefill(model: FastForward, cache: Cache, prompts: Sequence[Sequence[int]], chunk: int = CHUNK) -> Tensor:
    """Take the prompts into the cache, a row for each: the logits of what follows each, logits_B1V.

    The cache is empty or holds the same number of tokens of every prompt; those aren't computed again. Shorter prompts
    are padded, which the rows of a cache forget at the end.
    """
    lengths = [len(prompt) for prompt in prompts]
    padded_BT = torch.tensor([[*prompt, *[0] * (max(lengths) - len(prompt))] for prompt in prompts])
    last_D: dict[int, Tensor] = {}
    for begin in range(cache.length, max(lengths), chunk):
        x_BTD = model.hidden(padded_BT[:, begin : begin + chunk], cache)
        for row, length in enumerate(lengths):
            if begin < length <= begin + chunk:
                last_D[row] = x_BTD[row, length - 1 - begin]
    cache.rewind_rows(torch.tensor(lengths))
    # The head only for the last position: it is the largest matrix of a small model.
    return model.head(torch.stack([last_D[row] for row in range(len(prompts))])[:, None])


def step(model: FastForward, cache: Cache, tokens: Sequence[Sequence[int]]) -> Tensor:
    """Take in every row's next tokens, as many of each: the logits of what follows them, logits_BTV."""
    return model.logits(torch.tensor(tokens), cache)
