"""The model that another is compared with."""

from __future__ import annotations

from dataclasses import replace

from llama3_scratch.checkpoint.load import Checkpoint
from llama3_scratch.errors import UsageError
from llama3_scratch.inference.choices import ModelChoice
from llama3_scratch.inference.loading import open_model


def open_reference(name: str, checkpoint: Checkpoint, choice: ModelChoice) -> Checkpoint:
    """The model `name`, read as the choice says but neither quantised nor with adapters.

    Raises UsageError where its tokens aren't those of the checkpoint.
    """
    reference, _ = open_model(replace(choice, model=name, quantize=None, adapters=()), as_floats=True)
    ours, its = checkpoint.tokenizer, reference.tokenizer
    if ours is None or its is None or (ours.ranks, ours.added_tokens) != (its.ranks, its.added_tokens):
        raise UsageError(f"`against` {name}: has other tokens than {choice.model}, so they can't be compared")
    return reference
