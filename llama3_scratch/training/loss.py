"""What training makes small: the surprise at each next token, within its own document."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from llama3_scratch.cache import NO_CACHE, NoCache
from llama3_scratch.config import Config
from llama3_scratch.data.batches import IGNORE, Batch
from llama3_scratch.model import Block, forward, fused_block
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
    cache = NoCache(document_mask(batch.documents_BT)) if several_documents(batch.documents_BT) else NO_CACHE
    logits_BTV = forward(batch.tokens_BT, params, config, cache=cache, block=wrap(fused_block), dtype=dtype)
    return cross_entropy(logits_BTV, batch.targets_BT)


@torch.compiler.disable  # it looks at numbers to decide whether a mask is needed
def several_documents(documents_BT: Tensor) -> bool:
    """Whether any row holds tokens of more than one document."""
    return bool((documents_BT != documents_BT[:, :1]).any())


def document_mask(documents_BT: Tensor) -> Tensor:
    """Which tokens each sees where several documents share a row and don't know each other: mask_BTS, T = S.

    RoPE knows distances only, so a document's positions needn't begin anew.
    """
    same_BTS = documents_BT[:, :, None] == documents_BT[:, None]
    return same_BTS.tril()


def recomputed(inner: Block) -> Block:
    """A layer that keeps only its input, and is run once more when its gradients are wanted (arXiv:1604.06174)."""

    def checkpointed(x_BTD: Tensor, params: Params, name: str, config: Config, **state: Any) -> Tensor:
        return checkpoint(inner, x_BTD, params, name, config, use_reentrant=False, **state)

    return checkpointed
