"""What a training step takes in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from llama3_scratch.config import Config
from llama3_scratch.errors import UsageError

IGNORE = -100  # a target that isn't to be learnt, as torch's cross_entropy has it


@dataclass(frozen=True)
class Batch:
    """tokens_BT; the tokens that follow them, or IGNORE, targets_BT; which of its row's documents each is of,
    documents_BT."""

    tokens_BT: Tensor
    targets_BT: Tensor
    documents_BT: Tensor


def require_context(length: int, config: Config) -> None:
    """Raise UsageError where rows are longer than what a model that exists already was trained for."""
    if length > config.max_seq_len:
        raise UsageError(f"rows of {length} tokens: the model was trained for {config.max_seq_len}; lower --length")


class Batches(Protocol):
    """Batches by index: the same index gives the same batch in any process, so that a run goes on where it stopped."""

    fingerprint: str  # of the data, by which a resumed run knows it again

    def batch(self, index: int) -> Batch: ...

    def __len__(self) -> int: ...  # batches of one epoch; index ≥ len goes on into the next epoch, shuffled anew
