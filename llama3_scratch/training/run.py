"""A run: a folder that is begun or resumed, steps that are shown and recorded, and a checkpoint whatever ends it.

    run = Run(RunPlan(folder))  # at once an error where the folder can't be used
    run.begin(Training(…))
    outcome = run.train(flops_per_token=…)

Every recipe is this with a loss, batches and hooks of its own; what it trains is anything that has a Trainer's methods.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from llama3_scratch.errors import FileError, ResourceError
from llama3_scratch.system.progress import steps_bar
from llama3_scratch.system.signals import heard_signals
from llama3_scratch.system.timings import peak_rss_bytes
from llama3_scratch.training import checkpoints, curve, record
from llama3_scratch.training.choices import RunPlan, TrainingPlan
from llama3_scratch.training.loop import NotLearningError, TrainingStep

log = logging.getLogger("llama3_scratch")

Hook = tuple[int, Callable[[], None]]  # after so many steps, and after the last one, what to do


class Trainer(Protocol):
    """What a run trains: `Training`, or whatever else takes steps, of one model or several."""

    plan: TrainingPlan
    step: int  # steps done
    device: torch.device

    def advance(self) -> TrainingStep: ...

    def save(self, folder: Path) -> Path: ...

    def resume(self, checkpoint: Path, *, weights_only: bool = False, other_data: bool = False) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """How a run ended: the number of the signal that stopped it, or 0 at the plan's end; its seconds; the most memory
    that it held, on the device where it was computed."""

    signal: int
    seconds: float
    peak_bytes: int


class Run:
    """A run's folder and record, and what trains there."""

    def __init__(self, plan: RunPlan) -> None:
        """Raises FileError where the folder has a run that isn't to be resumed, or none that could be."""
        self.folder = plan.folder
        self._plan, self._checkpoint = plan, checkpoints.begin(plan.folder, resume=plan.resume)

    def begin(self, trainer: Trainer) -> None:
        """Take up what is resumed, or other weights, and open the record."""
        if self._checkpoint is not None:
            trainer.resume(self._checkpoint, other_data=self._plan.other_data)
        elif self._plan.weights is not None:
            trainer.resume(self._plan.weights, weights_only=True)
        self._trainer, self._record = trainer, record.Record(self.folder, trainer.step)

    def validated(self, loss: float) -> None:
        """Record the held-out loss of now."""
        self._record.add({"step": self._trainer.step, "validation": loss})

    def first_validation(self) -> float | None:
        """The held-out loss that was recorded first, of a run that is resumed."""
        return self._record.first_validation() if self._checkpoint is not None else None

    def train(self, *, flops_per_token: float, hooks: Sequence[Hook] = ()) -> Outcome:
        """Take all steps that are left. Each is shown and recorded, and checkpoints are saved on the way."""
        trainer, begun = self._trainer, time.perf_counter()
        with steps_bar(trainer.step, trainer.plan.steps) as show:
            report = record.reporter(self._record, show, trainer.plan, flops_per_token, trainer.device)
            signal = train(trainer, self.folder, save_every=self._plan.save_every, on_step=report, hooks=hooks)
        return Outcome(signal, time.perf_counter() - begun, _peak_bytes(trainer.device))

    def draw(self) -> None:
        """Draw the curve of the record's losses."""
        curve.draw(self.folder)


def train(
    trainer: Trainer,
    folder: Path,
    *,
    save_every: int,
    on_step: Callable[[TrainingStep], None],
    hooks: Sequence[Hook] = (),
) -> int:
    """Advance to the end of the plan, saving checkpoints into `folder`; 0, or the number of the signal that stopped it.

    SIGTERM and the first Ctrl-C stop it after the current step, with a checkpoint; a second Ctrl-C ends it at once. A
    save that fails is warned of and tried again later.
    """
    with heard_signals("stopping after this step; Ctrl-C once more stops at once and loses it") as heard:
        while trainer.step < trainer.plan.steps:
            try:
                on_step(trainer.advance())
            except NotLearningError as error:
                torch.save(dataclasses.asdict(error.batch), folder / "bad_batch.pth")
                raise
            done = trainer.step == trainer.plan.steps
            for steps, hook in hooks:
                if trainer.step % steps == 0 or done:
                    hook()
            stopped = bool(heard)  # as it is now: a signal while a checkpoint is written counts after the next step
            if stopped or done or trainer.step % save_every == 0:
                try:
                    trainer.save(folder)
                except (ResourceError, FileError) as error:
                    if stopped or done:
                        raise
                    log.warning("%s; training goes on", error)
            if stopped and not done:
                log.info("stopped after step %d of %d and saved; `resume` goes on", trainer.step, trainer.plan.steps)
                return heard[0]
    return 0


def _peak_bytes(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_rss_bytes()
