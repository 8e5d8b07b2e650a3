"""How a run learns: small frozen values, checked as they're made, that a script's flags and a notebook build alike.

No torch here, so that a script's `--help` and its usage errors answer at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llama3_scratch.data.conversations import SIDES
from llama3_scratch.data.labelled import READ
from llama3_scratch.errors import UsageError
from llama3_scratch.system.fields import Checked, Number, number, one_of, switch, text, whole

SCHEDULES = ("cosine", "wsd", "constant", "range")
DTYPES = ("f32", "bf16", "f16", "fp8")
METHODS = ("lora", "dora", "qlora", "full")
TRAINED = ("head", "last-block", "all", "lora")


def _required(kind: type, **bounds: float) -> Any:
    """A field of numbers without a default."""
    return field(metadata={"takes": Number(kind, **bounds)})


@dataclass(frozen=True)
class TrainingPlan(Checked):
    """How weights learn. A run that is resumed must have the plan that it began with."""

    steps: int = _required(int, minimum=0)
    lr: float = _required(float, above=0)  # the highest learning rate
    warmup: int = whole(0, minimum=0)  # steps
    schedule: str = one_of("cosine", SCHEDULES)
    weight_decay: float = number(0.1, minimum=0)
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = number(1.0, above=0)  # the largest norm of the gradient of all weights together
    accumulate: int = whole(1, minimum=1)  # batches a step
    dtype: str = one_of("f32", DTYPES)  # of activations: f16 with a scaled loss, fp8 emulated; weights stay in f32
    recompute: bool = switch()  # keep only each layer's input for the backward pass
    compile: bool = switch()  # have torch compile the loss


@dataclass(frozen=True)
class BatchPlan(Checked):
    """Batches of `size` rows of up to `length` tokens; `seed` decides their order, and fresh weights."""

    size: int = _required(int, minimum=1)
    length: int = _required(int, minimum=1)
    seed: int = whole(0, minimum=0)


@dataclass(frozen=True)
class RunPlan(Checked):
    """The folder of a run, what it begins with, and after how many steps it saves a checkpoint there."""

    folder: Path
    save_every: int = whole(250, minimum=1)
    resume: bool = switch()  # from the newest checkpoint in the folder
    other_data: bool = switch()  # the data may have changed since
    weights: Path | None = None  # begin with those of this checkpoint of another run

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resume and self.weights is not None:
            raise UsageError(
                "`weights` begins a run with others' weights, `resume` goes on with its own; give one of them"
            )


@dataclass(frozen=True)
class Pretraining(Checked):
    """After how many steps pretraining validates, and writes a sample."""

    validate_every: int = whole(250, minimum=1)
    sample_every: int = whole(500, minimum=1)
    sample: str = text("Once upon a time")  # how samples begin


@dataclass(frozen=True)
class Adapters(Checked):
    """The low-rank adapters that are put beside the weights."""

    rank: int = whole(16, minimum=1)
    alpha: float = number(32.0, above=0)
    targets: Sequence[str] = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")
    rslora: bool = switch()  # scale by alpha/√rank instead of alpha/rank


@dataclass(frozen=True)
class Finetuning(Checked):
    """What learns from conversations, and how these are read."""

    method: str = one_of("lora", METHODS)
    adapters: Adapters = Adapters()
    epochs: int = whole(1, minimum=1)
    mask_prompt: bool = switch(True)  # only answers are targets
    truncate: str = one_of("right", SIDES)  # the side at which what is too long is cut
    date: str | None = text()  # today for a chat template that asks


@dataclass(frozen=True)
class Classification(Checked):
    """Which weights learn the classes of texts, and at which token a class is read."""

    train: str = one_of("last-block", TRAINED)
    read: str = one_of("last", READ)
    rank: int = whole(16, minimum=1)  # of adapters, where these learn
