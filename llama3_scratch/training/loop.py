"""Training: a batch in, better weights out, and all that it takes to continue bit for bit from a checkpoint."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llama3_scratch.config import Config
from llama3_scratch.data.batches import Batch, Batches
from llama3_scratch.errors import FileError, Llama3Error
from llama3_scratch.model import Block
from llama3_scratch.stored import Params, map_tensors
from llama3_scratch.tied import tie
from llama3_scratch.training import checkpoints
from llama3_scratch.training.choices import TrainingPlan
from llama3_scratch.training.compiled import compiled
from llama3_scratch.training.fp8 import in_fp8
from llama3_scratch.training.loss import Wrap, next_token_loss, recomputed
from llama3_scratch.training.optimizer import adamw, schedule

log = logging.getLogger("llama3_scratch")

# Of the activations; in fp8 only what the layers' matmuls take in is short.
ACTIVATIONS = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "fp8": torch.float32}
MAX_SKIPPED = 5  # steps in a row whose loss or gradient isn't finite before a run gives up

Loss = Callable[..., Tensor]


def layer_wrapper(plan: TrainingPlan) -> Wrap:
    """What makes of a layer the one that a plan runs."""

    def wrap(layer: Block) -> Block:
        if plan.dtype == "fp8":
            layer = in_fp8(layer)
        return recomputed(layer) if plan.recompute else layer

    return wrap


@dataclasses.dataclass(frozen=True)
class TrainingStep:
    """What a step did: the mean loss of its targets in nats before it, and the norm of their gradient.

    `skipped` says that one of the two wasn't finite, and nothing was changed.
    """

    step: int
    loss: float
    lr: float
    gradient: float
    tokens: int
    seconds: float
    skipped: bool


class Training:
    """`params` with the weights named in `trainable` as tensors of its own, an optimizer, and the number of steps done.

    All of it is on the params' device. `about` is what must be the same when it is resumed (model, data …), beside the
    plan; it is saved with it.
    """

    def __init__(
        self,
        params: Params,
        config: Config,
        trainable: Sequence[str],
        batches: Batches,
        plan: TrainingPlan,
        *,
        about: dict[str, Any] | None = None,
        loss: Loss = next_token_loss,
    ) -> None:
        params = tie(params, config)
        chosen = {name: params[name] for name in trainable}
        # A tied head stays its embedding.
        self.trainable = map_tensors(chosen, lambda tensor: tensor.detach().float().clone().requires_grad_())
        self.params = params | self.trainable
        self.config, self.plan, self.step = config, plan, 0
        self.device = next(iter(self.trainable.values())).device
        self._stored_dtypes = {id(self.trainable[name]): tensor.dtype for name, tensor in chosen.items()}
        self._batches, self._loss = batches, compiled(loss) if plan.compile else loss
        self._wrap = layer_wrapper(plan)
        self._optimizer = adamw(self.trainable, lr=plan.lr, betas=plan.betas, weight_decay=plan.weight_decay)
        self._share = schedule(plan.schedule, plan.steps, plan.warmup)
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=plan.dtype == "f16")
        self._skipped = 0
        self._about = {
            **(about or {}),
            "plan": {**dataclasses.asdict(plan), "betas": list(plan.betas)},
            "data": batches.fingerprint,
            "weights": {name: list(tensor.shape) for name, tensor in self.trainable.items()},
        }

    def advance(self) -> TrainingStep:
        """One step. Raises NotLearningError where loss or gradient wasn't finite MAX_SKIPPED times in a row."""
        begun = time.perf_counter()
        first = self.step * self.plan.accumulate
        batches = [self._batches.batch(first + i) for i in range(self.plan.accumulate)]
        targets = sum(batch.n_targets for batch in batches)
        lr = self.plan.lr * self._share(self.step)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        total = 0.0
        for batch in batches:
            loss = self.loss(batch) / max(1, targets)  # of all targets of the step, however the batches share them
            self._scaler.scale(loss).backward()
            total += loss.item()
        self._scaler.unscale_(self._optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self._unique(), self.plan.clip).item()
        skipped = not (math.isfinite(total) and math.isfinite(norm))
        if not skipped:
            self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        done = TrainingStep(
            self.step, total, lr, norm, sum(batch.n_tokens for batch in batches), time.perf_counter() - begun, skipped
        )
        self.step += 1
        # A scaled loss that overflowed is how f16 finds its scale: no sign of anything wrong.
        self._skipped = self._skipped + 1 if skipped and not (self._scaler.is_enabled() and math.isfinite(total)) else 0
        if self._skipped >= MAX_SKIPPED:
            raise NotLearningError(
                f"loss or gradient was no number {MAX_SKIPPED} times in a row, up to step {done.step + 1}; lower the "
                "learning rate, or look at the batch that was kept",
                batches[-1],
            )
        return done

    def loss(self, batch: Batch) -> Tensor:
        """The loss of a batch, summed over its targets."""
        batch = batch.to(self.device)
        return self._loss(self.params, self.config, batch, wrap=self._wrap, dtype=ACTIVATIONS[self.plan.dtype])

    @torch.no_grad()
    def validate(self, batches: Batches, max_batches: int | None = None) -> float:
        """The mean loss of the targets of an epoch, or of its first `max_batches` batches."""
        total, targets = 0.0, 0
        for index in range(min(len(batches), max_batches or len(batches))):
            batch = batches.batch(index)
            total += self.loss(batch).item()
            targets += batch.n_targets
        return total / max(1, targets)

    @property
    def n_trainable(self) -> int:
        """How many parameters are trained."""
        return sum(tensor.numel() for tensor in self._unique())

    def weights(self, device: torch.device | str | None = None) -> Params:
        """The params as they are now, trained ones in the dtype that they came in; on `device`, the CPU to be written.

        A tied head stays its embedding.
        """

        def plain(tensor: Tensor) -> Tensor:
            dtype = self._stored_dtypes.get(id(tensor), tensor.dtype)
            return tensor.detach().to(device=device or tensor.device, dtype=dtype)

        return map_tensors(self.params, plain)

    def save(self, folder: Path) -> Path:
        """Write a checkpoint, from which `resume` continues as if there had been no break."""
        tensors = {
            "weights": {name: tensor.detach() for name, tensor in self.trainable.items()},
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "random": torch.get_rng_state(),
        }
        if self.device.type != "cpu":
            tensors["device_random"] = torch.get_device_module(self.device).get_rng_state(self.device)
        return checkpoints.save(
            folder, self.step, tensors, self._about | {"step": self.step, "torch": torch.__version__}
        )

    def resume(self, checkpoint: Path, *, weights_only: bool = False, other_data: bool = False) -> None:
        """Continue from a checkpoint. Raises FileError where plan, model or data differ from those it was made with.

        `weights_only` takes nothing but the weights and begins at step 0; `other_data` lets the data have changed.
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
        if self.device.type != "cpu" and checkpoints.has(checkpoint, "device_random"):  # saved on such a device
            state = checkpoints.read(checkpoint, "device_random")
            torch.get_device_module(self.device).set_rng_state(state, self.device)
        self.step = about["step"]
        if self.step == self.plan.steps:
            log.info("all %d steps are done: nothing more is learnt", self.step)
        else:
            log.info("going on after step %d of %d", self.step, self.plan.steps)

    def _take(self, checkpoint: Path, about: dict[str, Any]) -> None:
        stored = checkpoints.read(checkpoint, "weights")
        for name, tensor in self.trainable.items():
            if name not in stored or stored[name].shape != tensor.shape:
                found = list(stored[name].shape) if name in stored else "nothing"
                raise FileError(f"{checkpoint}: {name}: expected {list(tensor.shape)}, got {found}")
        with torch.no_grad():
            for name, tensor in self.trainable.items():
                tensor.copy_(stored[name])

    def _unique(self) -> list[Tensor]:
        return list({id(tensor): tensor for tensor in self.trainable.values()}.values())


class NotLearningError(Llama3Error):
    """Loss or gradient is no number any more; `batch` is the last that it was so with."""

    def __init__(self, message: str, batch: Batch) -> None:
        super().__init__(message)
        self.batch = batch


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one dict, with dotted names."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {f"{prefix}{key}": item}
    return flat


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"
