"""A run trains whatever takes steps; its plans are checked as they're made, and flags make them."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.system import cli
from llama3_scratch.training import checkpoints, flags, record
from llama3_scratch.training.choices import Adapters, BatchPlan, Finetuning, Pretraining, RunPlan, TrainingPlan
from llama3_scratch.training.loop import TrainingStep
from llama3_scratch.training.run import Outcome, Run


class Counter:
    """A trainer without a model."""

    def __init__(self, steps: int = 6) -> None:
        self.plan, self.step, self.device = TrainingPlan(steps, 1e-3), 0, torch.device("cpu")

    def advance(self) -> TrainingStep:
        self.step += 1
        return TrainingStep(self.step - 1, 1 / self.step, 1e-3, 0.5, 8, 0.01, skipped=False)

    def save(self, folder: Path) -> Path:
        return checkpoints.save(folder, self.step, {}, {"step": self.step})

    def resume(self, checkpoint: Path, *, weights_only: bool = False, other_data: bool = False) -> None:
        self.step = 0 if weights_only else checkpoints.read_about(checkpoint)["step"]


def test_a_run_saves_validates_and_is_resumed(tmp_path):
    run, trainer, seen = Run(RunPlan(tmp_path, save_every=2)), Counter(), []
    run.begin(trainer)

    def validate() -> None:
        seen.append(trainer.step)
        run.validated(2.5)

    outcome = run.train(flops_per_token=1e6, hooks=[(4, validate)])
    assert isinstance(outcome, Outcome) and outcome.signal == 0 and outcome.peak_bytes > 0 and seen == [4, 6]
    assert [path.name for path in checkpoints.steps(tmp_path)] == ["step_6", "step_4"]
    with pytest.raises(FileError, match="there is a run already, at step_6; `resume` goes on, another `folder` begins"):
        Run(RunPlan(tmp_path))
    for path in [*(tmp_path / "step_6").iterdir()]:
        path.unlink()
    again, trainer = Run(RunPlan(tmp_path, save_every=2, resume=True)), Counter()
    again.begin(trainer)
    assert trainer.step == 4 and again.first_validation() == 2.5
    again.train(flops_per_token=1e6)
    steps = [line["step"] for line in record.read(tmp_path / record.FILE) if "loss" in line]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_run_begins_with_the_weights_of_another(tmp_path):
    first = Run(RunPlan(tmp_path / "first"))
    first.begin(Counter(2))
    first.train(flops_per_token=1e6)
    second, trainer = Run(RunPlan(tmp_path / "second", weights=tmp_path / "first" / "step_2")), Counter(3)
    second.begin(trainer)
    assert trainer.step == 0 and second.train(flops_per_token=1e6).signal == 0 and second.first_validation() is None
    with pytest.raises(UsageError, match="`weights` begins a run with others' weights"):
        RunPlan(tmp_path, resume=True, weights=tmp_path)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: TrainingPlan(-1, 1e-3), "`steps`: expected a whole number at least 0, got -1"),
        (lambda: TrainingPlan(1, 0.0), "`lr`: expected a number above 0, got 0.0"),
        (lambda: TrainingPlan(1, 1e-3, accumulate=0), "`accumulate`: expected a whole number at least 1, got 0"),
        (lambda: BatchPlan(0, 8), "`size`: expected a whole number at least 1, got 0"),
        (lambda: RunPlan(Path("x"), save_every=0), "`save_every`: expected a whole number at least 1"),
        (lambda: Pretraining(sample_every=0), "`sample_every`: expected"),
        (lambda: Adapters(alpha=float("inf")), "`alpha`: expected a number above 0, got inf"),
        (lambda: Finetuning(truncate="middle"), "`truncate`: expected one of right, left, got 'middle'"),
    ],
)
def test_a_plan_is_checked_as_its_made(make, said):
    with pytest.raises(UsageError, match=said):
        make()


def parser() -> cli.Parser:
    made = cli.Parser("train", "")
    flags.add_folder_flags(made)
    flags.add_flags(made, steps=5, lr=1e-2, size=2, length=8, seed=3, save_every=7, recompute=False, schedule="wsd")
    return made


def test_flags_make_plans():
    options = parser().parse_args(["--out", "run", "--batch", "4", "--recompute", "--resume"])
    assert flags.training_plan(options) == TrainingPlan(5, 1e-2, schedule="wsd", recompute=True)
    assert flags.training_plan(options, steps=9).steps == 9
    assert flags.batch_plan(options) == BatchPlan(4, 8, 3)
    assert flags.run_plan(options) == RunPlan(Path("run"), 7, resume=True)


def test_a_plans_mistake_is_said_as_a_flag(capsys):
    @cli.verb(parser)
    def main(options: argparse.Namespace) -> int:
        flags.training_plan(options)
        return 0

    assert main(["--out", "run", "--schedule", "linear"]) == 2
    assert "--schedule: expected one of cosine, wsd, constant, range, got 'linear'" in capsys.readouterr().err
    assert main(["--out", "run", "--batch", "0"]) == 2
    assert "--batch: expected a whole number at least 1, got '0'" in capsys.readouterr().err
