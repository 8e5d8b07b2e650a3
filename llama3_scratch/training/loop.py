"""The training loop: batches in, better weights out, and a run that can be stopped at any moment and taken up again."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llama3_scratch.config import Config
from llama3_scratch.data.batches import IGNORE, Batch, Batches
from llama3_scratch.errors import FileError, Llama3Error, ResourceError, UsageError
from llama3_scratch.model import Block
from llama3_scratch.stored import Params
from llama3_scratch.tied import tie
from llama3_scratch.training import checkpoints
from llama3_scratch.training.compiled import compiled
from llama3_scratch.training.fp8 import in_fp8
from llama3_scratch.training.loss import next_token_loss, recomputed
from llama3_scratch.training.optimizer import SCHEDULES, adamw, schedule

log = logging.getLogger("llama3_scratch")

# Of the activations; in fp8 only what the layers' products take in is short.
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "fp8": torch.float32}
PATIENCE = 5  # steps in a row whose loss or gradient is no number before a run gives up

Loss = Callable[..., Tensor]


@dataclasses.dataclass(frozen=True)
class TrainingPlan:
    """How a run learns. A run that goes on must have the plan that it began with.

    A step takes `accumulate` batches; `clip` is the largest norm of the gradient of all weights together; `dtype` is
    the activations' ("f32", "bf16", "f16" with a scaled loss, or emulated "fp8"), while weights and optimizer stay in
    f32; `recompute` keeps only each layer's input for the way back; `compile` has torch compile the loss.
    """

    steps: int
    lr: float
    warmup: int = 0
    schedule: str = "cosine"
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    accumulate: int = 1
    dtype: str = "f32"
    recompute: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise UsageError(f"schedule must be one of {', '.join(SCHEDULES)}, got {self.schedule!r}")
        if self.dtype not in DTYPES:
            raise UsageError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")

    def wrap(self, layer: Block) -> Block:
        """The layer as this plan runs it."""
        if self.dtype == "fp8":
            layer = in_fp8(layer)
        return recomputed(layer) if self.recompute else layer


@dataclasses.dataclass(frozen=True)
class TrainingStep:
    """What a step did: the mean loss of its targets in nats before it, and the size of their gradient.

    `skipped` says that one of the two was no number, and nothing was changed.
    """

    step: int
    loss: float
    lr: float
    gradient: float
    tokens: int
    seconds: float
    skipped: bool


class Training:
    """A run: `params` with the weights named in `learning` as tensors of their own, an optimizer, and where it stands.

    `about` is what the run must agree with to go on (model, data …), beside its plan; it is saved with it.
    """

    def __init__(
        self,
        params: Params,
        config: Config,
        learning: Sequence[str],
        batches: Batches,
        plan: TrainingPlan,
        *,
        about: dict[str, Any] | None = None,
        loss: Loss = next_token_loss,
    ) -> None:
        params = tie(params, config)
        fresh: dict[int, Tensor] = {}  # a tied head stays its embedding
        for name in learning:
            fresh.setdefault(id(params[name]), params[name].detach().float().clone().requires_grad_())
        self.learning = {name: fresh[id(params[name])] for name in learning}
        self.params = params | self.learning
        self.config, self.plan, self.step = config, plan, 0
        self._batches, self._loss = batches, compiled(loss) if plan.compile else loss
        self._optimizer = adamw(self.learning, lr=plan.lr, betas=plan.betas, weight_decay=plan.weight_decay)
        self._share = schedule(plan.schedule, plan.steps, plan.warmup)
        self._scaler = torch.amp.GradScaler(next(iter(fresh.values())).device.type, enabled=plan.dtype == "f16")
        self._skipped = 0
        self._about = {
            **(about or {}),
            "plan": {**dataclasses.asdict(plan), "betas": list(plan.betas)},
            "data": batches.fingerprint,
            "weights": {name: list(tensor.shape) for name, tensor in self.learning.items()},
        }

    def advance(self) -> TrainingStep:
        """One step. Raises Llama3Error where loss or gradient was no number PATIENCE times in a row."""
        begun = time.perf_counter()
        first = self.step * self.plan.accumulate
        batches = [self._batches.batch(first + i) for i in range(self.plan.accumulate)]
        targets = sum(int((batch.targets_BT != IGNORE).sum()) for batch in batches)
        lr = self.plan.lr * self._share(self.step)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        total = 0.0
        for batch in batches:
            loss = self.loss(batch) / max(1, targets)  # of all targets of the step, however the batches share them
            self._scaler.scale(loss).backward()
            total += loss.item()
        self._scaler.unscale_(self._optimizer)
        norm = torch.nn.utils.clip_grad_norm_(list(self._unique()), self.plan.clip).item()
        skipped = not (math.isfinite(total) and math.isfinite(norm))
        if not skipped:
            self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        done = TrainingStep(
            self.step, total, lr, norm, sum(b.tokens_BT.numel() for b in batches), time.perf_counter() - begun, skipped
        )
        self.step += 1
        # A scaled loss that overflowed is how f16 finds its scale: no sign of anything wrong.
        self._skipped = self._skipped + 1 if skipped and not (self._scaler.is_enabled() and math.isfinite(total)) else 0
        if self._skipped >= PATIENCE:
            raise NotLearningError(
                f"loss or gradient was no number {PATIENCE} times in a row, up to step {done.step + 1}; lower the "
                "learning rate, or look at the batch that was kept",
                batches[-1],
            )
        return done

    def loss(self, batch: Batch) -> Tensor:
        """The loss of a batch, summed over its targets."""
        return self._loss(self.params, self.config, batch, wrap=self.plan.wrap, dtype=DTYPES[self.plan.dtype])

    @torch.no_grad()
    def validate(self, batches: Batches, most: int | None = None) -> float:
        """The mean loss of the targets of an epoch, or of its first `most` batches."""
        total, targets = 0.0, 0
        for index in range(min(len(batches), most or len(batches))):
            batch = batches.batch(index)
            total += self.loss(batch).item()
            targets += int((batch.targets_BT != IGNORE).sum())
        return total / max(1, targets)

    def save(self, folder: Path) -> Path:
        """Write a checkpoint, from which `resume` goes on as if nothing had been."""
        tensors = {
            "weights": {name: tensor.detach() for name, tensor in self.learning.items()},
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "random": torch.get_rng_state(),
        }
        return checkpoints.save(
            folder, self.step, tensors, self._about | {"step": self.step, "torch": torch.__version__}
        )

    def resume(self, checkpoint: Path, *, weights_only: bool = False, other_data: bool = False) -> None:
        """Go on from a checkpoint. Raises FileError where plan, model or data are others than it was made with.

        `weights_only` takes nothing but the weights and begins at step 0; `other_data` goes on with changed data.
        """
        about = checkpoints.read_about(checkpoint)
        if weights_only:
            self._take(checkpoint, about)
            return
        before = _flat(about)
        differences = [
            f"{key}: {_short(before.get(key))}, now {_short(value)}"
            for key, value in _flat(self._about).items()
            if before.get(key) != value and not (key == "data" and other_data)
        ]
        if differences:
            raise FileError(
                f"{checkpoint}: the run was begun with other settings: {'; '.join(differences[:5])}; give the same, "
                "or begin anew in another folder"
            )
        if about["torch"] != torch.__version__:
            log.warning(
                "%s: saved by torch %s, this is %s: not bit for bit", checkpoint, about["torch"], torch.__version__
            )
        optimizer, scaler, random = (checkpoints.read(checkpoint, name) for name in ("optimizer", "scaler", "random"))
        self._take(checkpoint, about)
        self._optimizer.load_state_dict(optimizer)
        self._scaler.load_state_dict(scaler)
        torch.set_rng_state(random)
        self.step = about["step"]
        log.info("going on after step %d of %d", self.step, self.plan.steps)

    def _take(self, checkpoint: Path, about: dict[str, Any]) -> None:
        stored = checkpoints.read(checkpoint, "weights")
        for name, tensor in self.learning.items():
            if name not in stored or stored[name].shape != tensor.shape:
                found = list(stored[name].shape) if name in stored else "nothing"
                raise FileError(f"{checkpoint}: {name}: expected {list(tensor.shape)}, got {found}")
        with torch.no_grad():
            for name, tensor in self.learning.items():
                tensor.copy_(stored[name])

    def _unique(self) -> Iterator[Tensor]:
        yield from {id(tensor): tensor for tensor in self.learning.values()}.values()


class NotLearningError(Llama3Error):
    """Loss or gradient is no number any more; `batch` is the last that it was so with."""

    def __init__(self, message: str, batch: Batch) -> None:
        super().__init__(message)
        self.batch = batch


def run(
    training: Training,
    folder: Path,
    *,
    save_every: int,
    on_step: Callable[[TrainingStep], None],
    every: Sequence[tuple[int, Callable[[], None]]] = (),
) -> int:
    """Advance to the end of the plan, saving as it goes; 0, or the number of the signal that ended it before.

    `every` holds (steps, what to do after so many). SIGTERM and the first Ctrl-C end the run behind the step that is on
    its way, with a checkpoint; a second Ctrl-C ends it at once. A save that fails is told and tried again later.
    """
    with _asked_to_stop() as stop:
        while training.step < training.plan.steps:
            try:
                on_step(training.advance())
            except NotLearningError as error:
                torch.save(dataclasses.asdict(error.batch), folder / "bad_batch.pth")
                raise
            for steps, action in every:
                if training.step % steps == 0 or training.step == training.plan.steps:
                    action()
            asked = bool(stop)  # as it is now: who asks while a checkpoint is written is heard behind the next step
            ended = asked or training.step == training.plan.steps
            if ended or training.step % save_every == 0:
                try:
                    training.save(folder)
                except (ResourceError, FileError) as error:
                    if ended:
                        raise
                    log.warning("%s; training goes on", error)
            if asked and training.step < training.plan.steps:
                log.info("stopped after step %d of %d and saved; --resume goes on", training.step, training.plan.steps)
                return stop[0]
    return 0


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[list[int]]:
    """The signals that asked for an end: SIGTERM, and the first Ctrl-C; the second Ctrl-C interrupts."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only the main thread hears signals
        yield asked
        return

    def hear(number: int, frame: Any) -> None:
        if number == signal.SIGINT and asked:
            raise KeyboardInterrupt
        log.info("stopping after this step; Ctrl-C once more stops at once and loses it")
        asked.append(number)

    before = {number: signal.signal(number, hear) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one dict, with dotted names."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {f"{prefix}{key}": item}
    return flat


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"
