"""A tied head: `output.weight` is `tok_embeddings.weight`, one tensor under two names (arXiv:1608.05859)."""

from __future__ import annotations

import warnings

import torch

from llama3_scratch.config import Config
from llama3_scratch.errors import UsageError
from llama3_scratch.stored import FORM_KEYS, Params

_REMEDY = "params['output.weight'] = params['tok_embeddings.weight'] ties them, replace(config, tied=False) parts them"


def warn_if_apart(params: Params, config: Config) -> None:
    """Warn of a tied head that a copy made a tensor of its own: a change of one then leaves the other as it was."""
    if torch.compiler.is_compiling() or not config.tied or params["tok_embeddings.weight"].is_meta:
        return
    if _apart(params):
        message = f"the head is tied to the embedding, but their weights are two tensors; {_REMEDY}"
        warnings.warn(message, stacklevel=3)


def tie(params: Params, config: Config) -> Params:
    """The params with a tied head that is its embedding again, where the two are copies of each other.

    Raises UsageError where they differ: one that learns or is written would lose what the other has.
    """
    if not config.tied or not _apart(params):
        return params
    parts = [part for part in ("weight", *FORM_KEYS) if f"output.{part}" in params]
    for part in parts:
        head, embedding = params[f"output.{part}"], params.get(f"tok_embeddings.{part}")
        if embedding is None or head.dtype != embedding.dtype or not torch.equal(head, embedding):
            raise UsageError(f"the head is tied to the embedding, but output.{part} differs from its; {_REMEDY}")
    return params | {f"output.{part}": params[f"tok_embeddings.{part}"] for part in parts}


def _apart(params: Params) -> bool:
    return params.get("output.weight", embedding := params.get("tok_embeddings.weight")) is not embedding
