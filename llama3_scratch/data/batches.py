"""What a training step reads: batches of tokens and their targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from llama3_scratch.config import Config
from llama3_scratch.errors import UsageError

IGNORE = -100  # in the place of a target where the loss has none, as torch's cross_entropy has it


@dataclass(frozen=True)
class Batch:
    """tokens_BT; the tokens that follow them, or IGNORE, targets_BT; which of its row's documents each is of,
    documents_BT."""

    tokens_BT: Tensor
    targets_BT: Tensor
    documents_BT: Tensor

    @property
    def n_tokens(self) -> int:
        return self.tokens_BT.numel()

    @property
    def n_targets(self) -> int:
        return int((self.targets_BT != IGNORE).sum())

    def to(self, device: torch.device | str) -> Batch:
        """The batch on that device: itself where it is there."""
        return Batch(self.tokens_BT.to(device), self.targets_BT.to(device), self.documents_BT.to(device))


def require_context(length: int, config: Config) -> None:
    """Raise UsageError where rows are longer than what a model that exists already was trained for."""
    if length > config.max_seq_len:
        raise UsageError(f"rows of {length} tokens: the model was trained for {config.max_seq_len}; lower `length`")


class Batches(Protocol):
    """Batches by index: the same index gives the same batch in any process, so that a run goes on where it stopped."""

    fingerprint: str  # of the data, by which a resumed run knows it again

    def batch(self, index: int) -> Batch: ...

    def __len__(self) -> int: ...  # batches of one epoch; index ≥ len goes on into the next epoch, shuffled anew
