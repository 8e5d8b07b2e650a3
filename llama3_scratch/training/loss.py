"""What training makes small: the surprise at each next token, within its own document."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from llama3_scratch.config import Config
from llama3_scratch.data.batches import IGNORE, Batch
from llama3_scratch.model import Block, block, forward, fused_block
from llama3_scratch.stored import Params

Wrap = Callable[[Block], Block]


def unchanged(layer: Block) -> Block:
    return layer


def cross_entropy(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """−log softmax(logits)[target] in nats, summed over all targets but IGNORE: a number."""
    return F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), ignore_index=IGNORE, reduction="sum")


def next_token_loss(
    params: Params,
    config: Config,
    batch: Batch,
    *,
    wrap: Wrap = unchanged,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """`cross_entropy` of a batch: a number. `dtype` is the activations'; `wrap` changes the layer."""
    layer = within_documents(batch.documents_BT) if _several(batch.documents_BT) else fused_block
    logits_BTV = forward(batch.tokens_BT, params, config, block=wrap(layer), dtype=dtype)
    return cross_entropy(logits_BTV, batch.targets_BT)


@torch.compiler.disable  # it looks at numbers to decide which layer is to be compiled
def _several(documents_BT: Tensor) -> bool:
    return bool((documents_BT != documents_BT[:, :1]).any())


def within_documents(documents_BT: Tensor) -> Block:
    """A layer in which a token sees only its own document: several share a row and don't know each other.

    RoPE knows distances only, so a document's positions needn't begin anew.
    """
    same_BTS = documents_BT[:, :, None] == documents_BT[:, None]

    def packed(
        x_BTD: Tensor, params: Params, name: str, config: Config, *, visible_BTS: Tensor, **state: Any
    ) -> Tensor:
        seen_BTS = visible_BTS & same_BTS
        return block(x_BTD, params, name, config, visible_BTS=seen_BTS, attend=attend_masked, **state)

    return packed


def attend_masked(q_BTGRK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, visible_BTS: Tensor) -> Tensor:
    """`attend` in one kernel for any mask: out_BTGRK."""
    q_BHTK, k_BGSK, v_BGSK = (x.transpose(1, 2) for x in (q_BTGRK.flatten(2, 3), k_BSGK, v_BSGK))
    out_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BGSK, v_BGSK, attn_mask=visible_BTS[:, None], enable_gqa=True)
    return out_BHTK.transpose(1, 2).unflatten(2, q_BTGRK.shape[2:4])


def recomputed(inner: Block) -> Block:
    """A layer that keeps only its input, and is run once more when its gradients are wanted (arXiv:1604.06174)."""

    def checkpointed(x_BTD: Tensor, params: Params, name: str, config: Config, **state: Any) -> Tensor:
        return checkpoint(inner, x_BTD, params, name, config, use_reentrant=False, **state)

    return checkpointed
