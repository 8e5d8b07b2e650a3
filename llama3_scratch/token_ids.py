"""Token ids as a batch: what `forward` is given, a tensor or lists, of one prompt or several."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llama3_scratch.errors import UsageError
from llama3_scratch.stored import Params, stored
from llama3_scratch.torch_internals import dispatch_mode_is_on

Ids = Tensor | Sequence[int] | Sequence[Sequence[int]]


def as_batch(tokens: Ids, params: Params) -> Tensor:
    """tokens_BT of a tensor or lists of one axis, which are a single prompt (B = 1), or two. Lists go to the model's
    device.

    Raises UsageError for what can't be ids of this model; of a tensor on a GPU its numbers aren't looked at.
    """
    embedding = stored(params, "tok_embeddings")
    device, rows = embedding.values.device, embedding.shape[0]
    if not isinstance(tokens, Tensor):
        try:
            tokens = torch.tensor(tokens, device=device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UsageError(
                f"expected token ids, in lists of equal lengths, got {str(tokens)[:60]!r}; text goes through the "
                "tokenizer's `encode`"
            ) from error
        tokens = tokens if tokens.numel() else tokens.long()
    if tokens.dtype not in (torch.int64, torch.int32) or not 1 <= tokens.ndim <= 2:
        wanted = "in int64 or int32, of one axis or two"
        raise UsageError(f"expected token ids {wanted}, got {tokens.dtype} {list(tokens.shape)}")
    if tokens.device != device:
        raise UsageError(f"the tokens are on {tokens.device}, the model is on {device}; move one of them with .to(…)")
    seen = device.type == "cpu" and not torch.compiler.is_compiling() and not dispatch_mode_is_on()
    if seen and tokens.numel():
        lowest, highest = (int(end) for end in tokens.aminmax())
        if lowest < 0 or highest >= rows:
            bad = lowest if lowest < 0 else highest
            raise UsageError(f"token id {bad}, expected 0 to {rows - 1}: the model's embedding has no other rows")
    return tokens if tokens.ndim == 2 else tokens[None]
