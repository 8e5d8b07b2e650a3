"""What a run reports of each step: a line to be shown, and one of JSON in its log."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from llama3_scratch.system.machine import measure, peak_flops
from llama3_scratch.system.progress import Show
from llama3_scratch.system.timings import duration
from llama3_scratch.system.writing import write_whole
from llama3_scratch.training.choices import TrainingPlan
from llama3_scratch.training.loop import TrainingStep

log = logging.getLogger("llama3_scratch")

FILE = "log.jsonl"


class Record:
    """The run's `log.jsonl`: lines of steps and of validations, from the beginning, whatever was stopped in between.

    A line's `step` is how many are done, as on the display: 1 is the first, 0 is before it.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._path, self._failed = folder / FILE, False
        if self._path.exists():  # what was done after the checkpoint is done again
            kept = [line for line in read(self._path) if line["step"] <= step]
            write_whole(self._path, "".join(json.dumps(line) + "\n" for line in kept))

    def first_validation(self) -> float | None:
        """The held-out loss that stands first in the log, where there is one."""
        lines = read(self._path) if self._path.exists() else ()
        return next((line["validation"] for line in lines if "validation" in line), None)

    def add(self, line: dict[str, Any]) -> None:
        """Append a line; a disk that takes none is warned of once, and doesn't end the training."""
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            if not self._failed:
                log.warning("%s: can't be written: %s; training goes on", self._path, error.strerror)
            self._failed = True


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a `log.jsonl`; a last one that was cut short isn't one."""
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            log.warning("%s: a line that was cut short is left out", path)


def reporter(
    record: Record, show: Show, plan: TrainingPlan, flops_per_token: float, device: torch.device
) -> Callable[[TrainingStep], None]:
    """What reports each step: a line is shown, and one is recorded.

    MFU is the share of what the device's matmuls reach in the plan's dtype, which is measured here.
    """
    peak = _peak(plan.dtype, device)
    usual = 0.0

    def report(step: TrainingStep) -> None:
        nonlocal usual
        usual = step.seconds if not usual else 0.9 * usual + 0.1 * step.seconds
        mfu = flops_per_token * step.tokens / step.seconds / peak
        show(step.step + 1, line(step, plan.steps, mfu, (plan.steps - step.step - 1) * usual))
        record.add(as_dict(step) | {"mfu": round(mfu, 4)})

    return report


def _peak(dtype: str, device: torch.device) -> float:
    """FLOP per second of matmuls in `dtype`. On a CPU f16 is multiplied in f32, as fp8 is everywhere."""
    if device.type != "cpu":
        return measure(device, {"bf16": torch.bfloat16, "f16": torch.float16}.get(dtype, torch.float32)).flops
    known = peak_flops()
    return known.get(dtype, known["f32"])


def line(step: TrainingStep, steps: int, mfu: float, eta: float) -> str:
    """One dense line for a person: step, loss, learning rate, gradient norm, tokens/s, MFU, time left."""
    skipped = " · skipped" if step.skipped else ""
    return (
        f"step {step.step + 1}/{steps} · loss {step.loss:.4f} · lr {step.lr:.2e} · grad {step.gradient:.2f} · "
        f"{step.tokens / step.seconds:,.0f} tok/s · MFU {mfu:.0%} · {duration(eta)} left{skipped}"
    )


def as_dict(step: TrainingStep) -> dict[str, Any]:
    return {
        **dataclasses.asdict(step),
        "step": step.step + 1,
        "tokens_per_second": round(step.tokens / step.seconds, 1),
    }
