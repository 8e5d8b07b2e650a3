"""Training windows: batches of consecutive tokens out of long rows of ids, in another order each epoch."""

from __future__ import annotations

import functools
import logging
from pathlib import Path

import numpy as np
import torch

from llama3_scratch.data.batches import IGNORE, Batch
from llama3_scratch.errors import FileError
from llama3_scratch.text.tokenizer import Tokenizer

log = logging.getLogger("llama3_scratch")


class Windows:
    """Batches of consecutive windows over rows of ids; a `Batches` (data.batches)."""

    def __init__(
        self, files: list[np.ndarray], tokenizer: Tokenizer, *, size: int, length: int, seed: int, fingerprint: str
    ) -> None:
        self._files, self._size, self._length, self._seed = files, size, length, seed
        self._bos, self._eos, self._vocab_size = tokenizer.bos_id, tokenizer.eos_id, tokenizer.n_words
        self.fingerprint = fingerprint
        self._times: dict[Path, int] = {}
        # A window needs one token more, the last one's target.
        self._ends = np.cumsum([max(0, len(file) - 1) // length for file in files], dtype=np.int64)
        if not len(self):
            windows = int(self._ends[-1]) if files else 0
            raise FileError(
                f"{sum(map(len, files))} tokens make {windows} windows of {length}, fewer than the {size} of a batch; "
                "take smaller batches, shorter windows, or more text"
            )

    def __len__(self) -> int:
        return int(self._ends[-1]) // self._size if len(self._ends) else 0

    def watch(self, paths: list[Path]) -> None:
        """Warn, once an epoch, of a file that has changed since now."""
        self._times = {path: path.stat().st_mtime_ns for path in paths}

    def batch(self, index: int) -> Batch:
        epoch, within = divmod(index, len(self))
        if within == 0:
            for path, time in self._times.items():
                if not path.exists() or path.stat().st_mtime_ns != time:
                    log.warning("%s: has changed while it was learnt from", path)
        order = _order(int(self._ends[-1]), self._seed, epoch)[within * self._size : (within + 1) * self._size]
        rows_BL = torch.from_numpy(np.stack([self._window(int(window)) for window in order]))
        tokens_BT, targets_BT = rows_BL[:, :-1].contiguous(), rows_BL[:, 1:].clone()
        begins_BL = self._begins(rows_BL)
        targets_BT[begins_BL[:, 1:]] = IGNORE  # what comes next has nothing to do with this
        return Batch(tokens_BT, targets_BT, begins_BL[:, :-1].cumsum(1) - begins_BL[:, :1].long())

    def _begins(self, rows_BL: torch.Tensor) -> torch.Tensor:
        """Where a document begins: at a begin token, or behind an end token where there is none."""
        if self._bos is not None:
            return rows_BL == self._bos
        behind_BL = torch.zeros_like(rows_BL, dtype=torch.bool)
        behind_BL[:, 1:] = rows_BL[:, :-1] == self._eos
        return behind_BL

    def _window(self, number: int) -> np.ndarray:
        file = int(np.searchsorted(self._ends, number, side="right"))
        begin = (number - (int(self._ends[file - 1]) if file else 0)) * self._length
        ids = self._files[file][begin : begin + self._length + 1].astype(np.int64)
        if len(bad := np.flatnonzero(ids >= self._vocab_size)):
            raise FileError(
                f"token id {ids[bad[0]]} at index {begin + int(bad[0])} of shard {file}, the vocabulary has "
                f"{self._vocab_size}; the data were made with another tokenizer, or changed meanwhile"
            )
        return ids


@functools.lru_cache(maxsize=4)
def _order(windows: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch's windows, which is all that shuffling has to remember."""
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(windows)
