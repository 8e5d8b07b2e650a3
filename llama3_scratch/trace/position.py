"""The last position of a text, looked into in one pass: what the model would say after each layer, and where each head
looks. Nothing else of the pass is kept, so that a long conversation costs its pass and little more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llama3_scratch.cache import Mask
from llama3_scratch.config import Config
from llama3_scratch.linear import embed
from llama3_scratch.model import attend_fused, block, decode, fused_block, rms_norm, unembed
from llama3_scratch.stored import Params


@torch.inference_mode()
def lens(tokens: Sequence[int], params: Params, config: Config, *, dtype: torch.dtype | None = None) -> Tensor:
    """The logit lens: the probability of every token as the next one, were each layer the last: shares_LV in f32."""
    outputs: list[Tensor] = []

    def recorded(x_BTD: Tensor, params: Params, name: str, config: Config, **state: Any) -> Tensor:
        x_BTD = fused_block(x_BTD, params, name, config, **state)
        outputs.append(x_BTD[:, -1:])
        return x_BTD

    decode(_embedded(tokens, params, dtype), params, config, block=recorded)
    x_BLD = torch.cat(outputs, dim=1)
    return unembed(rms_norm(x_BLD, params, "norm", config), params)[0].float().softmax(-1)


@torch.inference_mode()
def attention(tokens: Sequence[int], params: Params, config: Config, *, dtype: torch.dtype | None = None) -> Tensor:
    """How much each head of each layer attends to each token: weights_LHS in f32, which sum to 1 over S."""
    weights: list[Tensor] = []

    def watched(q_BTGRK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, mask_BTS: Mask) -> Tensor:
        # The last query sees every key: there's nothing to mask.
        scores_BGRS = torch.einsum("bgrk,bsgk->bgrs", q_BTGRK[:, -1], k_BSGK).float() / math.sqrt(q_BTGRK.shape[-1])
        weights.append(scores_BGRS[0].softmax(-1).flatten(0, 1))
        return attend_fused(q_BTGRK, k_BSGK, v_BSGK, mask_BTS)

    def watched_block(x_BTD: Tensor, params: Params, name: str, config: Config, **state: Any) -> Tensor:
        return block(x_BTD, params, name, config, attend=watched, **state)

    decode(_embedded(tokens, params, dtype), params, config, block=watched_block)
    return torch.stack(weights)


def _embedded(tokens: Sequence[int], params: Params, dtype: torch.dtype | None) -> Tensor:
    device = params["tok_embeddings.weight"].device
    return embed(torch.tensor([list(tokens)], device=device), params, "tok_embeddings", dtype=dtype)
