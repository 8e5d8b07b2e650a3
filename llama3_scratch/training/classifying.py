"""Finetuning of a classifier: a model learns to put texts into classes, and is tested."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llama3_scratch.checkpoint.load import Checkpoint
from llama3_scratch.data.batches import require_context
from llama3_scratch.data.labelled import Labelled
from llama3_scratch.data.labelled_batches import LabelledTexts
from llama3_scratch.system.writing import write_whole
from llama3_scratch.training import flops
from llama3_scratch.training.choices import BatchPlan, Classification, RunPlan, TrainingPlan
from llama3_scratch.training.classifier import class_loss, confusion, prepare, write_classifier
from llama3_scratch.training.loop import ACTIVATIONS, Training
from llama3_scratch.training.run import Outcome, Run

log = logging.getLogger("llama3_scratch")

TEST_BATCH = 32  # texts that are classified at once


@dataclass(frozen=True)
class ClassifyingResult:
    """How many parameters learnt, and how many texts of each class (rows) were taken for each (columns); of a run that
    was stopped none is tested."""

    outcome: Outcome
    classes: Sequence[str]
    learnt: int
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


def finetune_classifier(
    checkpoint: Checkpoint,
    train_set: Sequence[Labelled],
    test_set: Sequence[Labelled],
    plan: TrainingPlan,
    batches: BatchPlan,
    run_plan: RunPlan,
    choices: Classification,
) -> ClassifyingResult:
    """Learn the classes of `train_set`, on the device of the checkpoint's weights, then test.

    The run's folder gets the log, checkpoints, `classifier/`, and `result.json`.
    """
    tokenizer, config = checkpoint.require_tokenizer(), checkpoint.config
    require_context(batches.length, config)
    classes = sorted({row.label for row in train_set})
    how: dict[str, Any] = {"length": batches.length, "read": choices.read}
    texts = LabelledTexts(train_set, classes, tokenizer, size=batches.size, seed=batches.seed, **how)
    run = Run(run_plan)
    params, learning = prepare(checkpoint, choices, len(classes), dtype=plan.dtype, seed=batches.seed)
    about: dict[str, Any] = {"model": checkpoint.path.name, "train": choices.train, "classes": classes}
    about["read"] = choices.read
    training = Training(params, config, learning, texts, plan, about=about, loss=class_loss)
    run.begin(training)
    log.info("%s parameters learn from %d texts of %s", f"{training.n_trainable:,}", len(train_set), ", ".join(classes))
    passes = {
        "head": flops.HEAD,
        "last-block": flops.last_block(config),
        "lora": flops.ADAPTERS,
        "all": flops.ALL_WEIGHTS,
    }[choices.train]
    outcome = run.train(flops_per_token=flops.flops_per_token(config, batches.length, passes=passes))
    if outcome.signal:
        return ClassifyingResult(outcome, classes, training.n_trainable, [[0] * len(classes) for _ in classes])
    constants = {name: tensor for name, tensor in params.items() if name.endswith(".adaptor.scale")}
    write_classifier(run.folder / "classifier", training.trainable | constants, about)
    held_out = LabelledTexts(test_set, classes, tokenizer, size=TEST_BATCH, seed=None, **how)
    counts = confusion(training.params, config, held_out, len(classes), dtype=ACTIVATIONS[plan.dtype]).tolist()
    result = ClassifyingResult(outcome, classes, training.n_trainable, counts)
    numbers = {
        "learnt": result.learnt,
        "minutes": round(outcome.seconds / 60, 2),
        "peak_mb": round(outcome.peak_bytes / 1e6),
        "tested": result.tested,
        "right": result.right if result.tested else None,
        "right_of": result.right_of,
        "counts": counts,
    }
    write_whole(run.folder / "result.json", json.dumps(about | numbers, indent=2, ensure_ascii=False) + "\n")
    return result
