"""What a training step takes in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

IGNORE = -100  # a target that isn't to be learnt, as torch's cross_entropy has it


@dataclass(frozen=True)
class Batch:
    """tokens_BT; the tokens that follow them, or IGNORE, targets_BT; which of its row's documents each is of,
    documents_BT."""

    tokens_BT: Tensor
    targets_BT: Tensor
    documents_BT: Tensor


class Batches(Protocol):
    """Batches by index: the same index gives the same batch in any process, so that a run goes on where it stopped."""

    fingerprint: str  # of the data, by which a resumed run knows it again

    def batch(self, index: int) -> Batch: ...

    def __len__(self) -> int: ...  # batches of one epoch; index ≥ len goes on into the next epoch, shuffled anew
