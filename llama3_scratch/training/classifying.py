"""A model learns to put texts into classes: what scripts/finetune_classifier.py does once its options are read."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama3_scratch.checkpoint.load import Checkpoint
from llama3_scratch.data.batches import require_context
from llama3_scratch.data.labelled import Labelled, LabelledTexts
from llama3_scratch.system.display import display
from llama3_scratch.system.files import write_whole
from llama3_scratch.system.timings import peak_rss_bytes
from llama3_scratch.training import checkpoints, record
from llama3_scratch.training.classifier import class_loss, confusion, prepare, write_classifier
from llama3_scratch.training.loop import DTYPES, Training, TrainingPlan, run

log = logging.getLogger("llama3_scratch")

_TEST_SIZE = 32  # texts looked at at once


@dataclass(frozen=True)
class Result:
    """What learnt, what it took, and how many texts of each class (rows) were taken for each (columns).

    `ended` is the number of the signal that ended it, 0 where it came to its end; before that nothing is tested.
    """

    ended: int

    classes: Sequence[str]
    learnt: int
    seconds: float
    peak_bytes: int
    counts: list[list[int]]

    @property
    def tested(self) -> int:
        return sum(map(sum, self.counts))

    @property
    def right(self) -> float:
        """The share of all texts."""
        return sum(self.counts[i][i] for i in range(len(self.classes))) / max(1, self.tested)

    @property
    def right_of(self) -> dict[str, float]:
        """The share of each class's texts, of those classes of which there were any."""
        return {
            label: self.counts[i][i] / sum(self.counts[i])
            for i, label in enumerate(self.classes)
            if any(self.counts[i])
        }


def finetune(
    checkpoint: Checkpoint,
    learn: Sequence[Labelled],
    test: Sequence[Labelled],
    plan: TrainingPlan,
    folder: Path,
    *,
    trained: str,
    read: str,
    size: int,
    length: int,
    rank: int,
    seed: int,
    save_every: int,
    resume: bool = False,
) -> Result:
    """Learn the classes of `learn` in the plan's epochs of batches of `size`, then test.

    `folder` gets the log, checkpoints, `classifier/`, and `result.json`.
    """
    tokenizer, config = checkpoint.require_tokenizer(), checkpoint.config
    require_context(length, config)
    classes = sorted({row.label for row in learn})
    batches = LabelledTexts(learn, classes, tokenizer, size=size, length=length, seed=seed, read=read)
    params, learning = prepare(checkpoint, trained, len(classes), dtype=plan.dtype, rank=rank, seed=seed)
    about: dict[str, Any] = {"model": checkpoint.path.name, "train": trained, "classes": classes, "read": read}
    training = Training(params, config, learning, batches, plan, about=about, loss=class_loss)
    there = checkpoints.begin(folder, resume=resume)
    if there is not None:
        training.resume(there)
    n_learning = sum(tensor.numel() for tensor in training.learning.values())
    log.info("%s parameters learn from %d texts of %s", f"{n_learning:,}", len(learn), ", ".join(classes))
    kept = record.Record(folder, training.step)
    # Of the three parts of a step's work the way there is always taken.
    parts = {"head": 1, "last-block": 1 + 2 / config.n_layers, "lora": 2, "all": 3}[trained]
    work = parts / 3 * record.flops_per_token(config, length)
    begun = time.perf_counter()
    with display(training.step, plan.steps) as show:
        tell = record.teller(kept, show, plan.steps, work, plan.dtype)
        ended = run(training, folder, save_every=save_every, on_step=tell)
    seconds = time.perf_counter() - begun
    if ended:
        return Result(ended, classes, n_learning, seconds, peak_rss_bytes(), [[0] * len(classes) for _ in classes])
    constants = {name: tensor for name, tensor in params.items() if name.endswith(".adaptor.scale")}
    write_classifier(folder / "classifier", training.learning | constants, about)
    looked_at = LabelledTexts(test, classes, tokenizer, size=_TEST_SIZE, length=length, seed=None, read=read)
    counts = confusion(training.params, config, looked_at, len(classes), dtype=DTYPES[plan.dtype]).tolist()
    result = Result(0, classes, n_learning, seconds, peak_rss_bytes(), counts)
    numbers = {
        "learnt": n_learning,
        "minutes": round(seconds / 60, 2),
        "peak_mb": round(result.peak_bytes / 1e6),
        "tested": result.tested,
        "right": result.right if result.tested else None,
        "right_of": result.right_of,
        "counts": counts,
    }
    write_whole(folder / "result.json", json.dumps(about | numbers, indent=2, ensure_ascii=False) + "\n")
    return result
