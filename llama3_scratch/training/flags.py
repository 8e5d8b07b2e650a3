"""The flags of whatever trains, and the plans that flags make: a flag means the same in every recipe.

A flag's `dest` is a field of `training.choices`, whose bounds it has; its default is the recipe's.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from llama3_scratch.system import cli
from llama3_scratch.system.fields import Number, takes
from llama3_scratch.training.choices import (
    Adapters,
    BatchPlan,
    Classification,
    Finetuning,
    Pretraining,
    RunPlan,
    TrainingPlan,
)

# The choice that a flag is a field of, and its help.
_FLAGS: dict[str, tuple[type, str]] = {
    "steps": (TrainingPlan, "(%(default)s)"),
    "lr": (TrainingPlan, "the highest learning rate (%(default)s)"),
    "warmup": (TrainingPlan, "steps (%(default)s)"),
    "schedule": (TrainingPlan, "cosine, wsd or constant (%(default)s)"),
    "weight_decay": (TrainingPlan, "(%(default)s)"),
    "clip": (TrainingPlan, "largest gradient norm (%(default)s)"),
    "accumulate": (TrainingPlan, "batches a step (%(default)s)"),
    "dtype": (TrainingPlan, "of the activations: f32, bf16, f16 or fp8 (%(default)s)"),
    "recompute": (TrainingPlan, "keep less and compute more (activation checkpointing)"),
    "compile": (TrainingPlan, "by torch.compile: a minute later, then faster steps"),
    "size": (BatchPlan, "rows at once (%(default)s)"),
    "length": (BatchPlan, "tokens a row (%(default)s)"),
    "seed": (BatchPlan, "of weights and order (%(default)s)"),
    "save_every": (RunPlan, "steps (%(default)s)"),
    "validate_every": (Pretraining, "steps (%(default)s)"),
    "sample_every": (Pretraining, "steps (%(default)s)"),
    "method": (Finetuning, "lora, dora, qlora or full (%(default)s)"),
    "epochs": (Finetuning, "(%(default)s)"),
    "truncate": (Finetuning, "the side at which what is longer is cut (%(default)s)"),
    "rank": (Adapters, "(%(default)s)"),
    "alpha": (Adapters, "(%(default)s)"),
    "rslora": (Adapters, "scale by alpha/√rank instead of alpha/rank"),
    "train": (Classification, "head, last-block, all or lora (%(default)s)"),
    "read": (Classification, "the class at the last or the first token (%(default)s)"),
}
_NAMED = {"size": "--batch"}  # flags that aren't called as their field is


def add_flags(group: cli.Group, *, helps: Mapping[str, str] | None = None, **defaults: Any) -> None:
    """Add the flags of these fields, in this order, with these defaults; `helps` are said instead of the usual."""
    for name, default in defaults.items():
        kind, usual = _FLAGS[name]
        flag, help = _NAMED.get(name, f"--{name.replace('_', '-')}"), (helps or {}).get(name, usual)
        bounds = takes(kind, name)
        if isinstance(default, bool):
            group.add_argument(flag, dest=name, action="store_true", default=default, help=help)
        elif isinstance(bounds, Number):
            metavar = "N" if bounds.kind is int else "X"
            group.add_argument(flag, dest=name, type=cli.within(bounds), default=default, metavar=metavar, help=help)
        else:
            group.add_argument(flag, dest=name, default=default, help=help)


def add_folder_flags(group: cli.Group, *, required: bool = True) -> None:
    """The folder of a run, and whether it's resumed."""
    group.add_argument("--out", dest="folder", type=Path, required=required, metavar="DIR", help="the run's folder")
    group.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --out")
    group.add_argument("--other-data", action="store_true", help="with --resume: the data may have changed")


def add_device_flag(group: cli.Group) -> None:
    group.add_argument("--device", default="cpu", help="where it's computed: cpu, cuda, cuda:1, mps … (%(default)s)")


def _made(kind: Any, options: argparse.Namespace, settings: Mapping[str, Any]) -> Any:
    """The choice of the fields that the options have, `settings` in their place."""
    names = {one.name for one in fields(kind)}
    return kind(**({name: value for name, value in vars(options).items() if name in names} | dict(settings)))


def training_plan(options: argparse.Namespace, **settings: Any) -> TrainingPlan:
    return _made(TrainingPlan, options, settings)


def batch_plan(options: argparse.Namespace, **settings: Any) -> BatchPlan:
    return _made(BatchPlan, options, settings)


def run_plan(options: argparse.Namespace, **settings: Any) -> RunPlan:
    return _made(RunPlan, options, settings)


def pretraining(options: argparse.Namespace, **settings: Any) -> Pretraining:
    return _made(Pretraining, options, settings)


def finetuning(options: argparse.Namespace, **settings: Any) -> Finetuning:
    """With the adapters that the options say."""
    adapters = _made(Adapters, options, {"targets": options.targets.split(",")})
    return _made(Finetuning, options, {"adapters": adapters, **settings})


def classification(options: argparse.Namespace, **settings: Any) -> Classification:
    return _made(Classification, options, settings)
