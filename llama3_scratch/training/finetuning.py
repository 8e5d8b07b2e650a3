"""A model learns from conversations: what scripts/finetune_lora.py does once its options are read."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from llama3_scratch.checkpoint.load import Checkpoint
from llama3_scratch.checkpoint.meta import write_meta
from llama3_scratch.checkpoint.peft import write_peft
from llama3_scratch.config import Config
from llama3_scratch.data.batches import require_context
from llama3_scratch.data.conversations import Conversations, Dialog
from llama3_scratch.errors import UsageError
from llama3_scratch.params.lora import adapted, adapter, attach, detach, trainable
from llama3_scratch.params.quantize import quantize
from llama3_scratch.stored import Params, map_tensors, quantised
from llama3_scratch.system.display import display
from llama3_scratch.system.timings import peak_rss_bytes
from llama3_scratch.training import checkpoints, record
from llama3_scratch.training.loop import DTYPES, Training, TrainingPlan, run

log = logging.getLogger("llama3_scratch")

METHODS = ("lora", "dora", "qlora", "full")
FORM = "int4"  # of QLoRA's base, where it isn't in integers already


@dataclass(frozen=True)
class Adapters:
    """What is put beside the weights."""

    rank: int = 16
    alpha: float = 32.0
    targets: Sequence[str] = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")
    rslora: bool = False


@dataclass(frozen=True)
class Result:
    """Mean losses of held-out answers in nats a token, None where none were held out; what learnt, and what it took.

    `ended` is the number of the signal that ended it, 0 where it came to its end.
    """

    ended: int
    before: float | None
    after: float | None
    trainable: int
    seconds: float
    peak_bytes: int


def prepare(
    checkpoint: Checkpoint, method: str, adapters: Adapters, *, dtype: str, seed: int
) -> tuple[Params, list[str]]:
    """The params that a method trains, and the names of those that learn.

    Frozen floats are held in the activations' dtype, as they are only multiplied by; QLoRA's base is in integers.
    """
    if method not in METHODS:
        raise UsageError(f"the method must be one of {', '.join(METHODS)}, got {method!r}")
    params, integers = checkpoint.params, bool(quantised(checkpoint.params))
    if adapted(params):
        raise UsageError(f"{checkpoint.path}: has an adapter already; merge it first")
    if method == "full":
        if integers:
            raise UsageError(f"{checkpoint.path}: integers can't be trained, only adapters beside them; take qlora")
        return params, list(params)
    if method == "qlora" and not integers:
        params = quantize(params, FORM)
    elif method != "qlora":
        params = map_tensors(params, lambda tensor: tensor.to(DTYPES[dtype]) if tensor.is_floating_point() else tensor)
    params = attach(
        params,
        checkpoint.config,
        rank=adapters.rank,
        alpha=adapters.alpha,
        targets=adapters.targets,
        rslora=adapters.rslora,
        dora=method == "dora",
        seed=seed,
    )
    return params, list(trainable(params))


def finetune(
    checkpoint: Checkpoint,
    learn: Sequence[Dialog],
    held_out: Sequence[Dialog],
    plan: TrainingPlan,
    folder: Path,
    *,
    epochs: int,
    size: int,
    length: int,
    seed: int,
    method: str = "lora",
    adapters: Adapters = Adapters(),
    mask_prompt: bool = True,
    truncate: str = "right",
    date: str | None = None,
    save_every: int = 100,
    resume: bool = False,
    other_data: bool = False,
) -> Result:
    """Learn the answers of conversations; the plan's steps are those of `epochs`, if not fewer.

    `folder` gets log, curve, checkpoints, and `adapter/` in PEFT's layout, or with "full" `model/` in Meta's.
    """
    tokenizer, config = checkpoint.tokenizer, checkpoint.config
    if tokenizer is None or tokenizer.chat_format is None:
        raise UsageError(f"{checkpoint.path}: expected a model with a chat format; say it with --chat-format")
    require_context(length, config)
    how: dict[str, Any] = {"size": size, "length": length, "mask_prompt": mask_prompt, "truncate": truncate}
    how["date"] = date
    batches = Conversations(learn, tokenizer, seed=seed, **how)
    check = Conversations(held_out, tokenizer, seed=0, what="held-out conversations", **how) if held_out else None
    if check is None:
        log.warning("no conversation is held out, so there will be no held-out loss")
    steps = epochs * len(batches) // plan.accumulate
    if steps < 1:
        raise UsageError(f"{len(batches)} batches make no step of {plan.accumulate}; lower --accumulate")
    plan = replace(plan, steps=min(steps, plan.steps) if plan.steps else steps)
    there = checkpoints.begin(folder, resume=resume)
    params, learning = prepare(checkpoint, method, adapters, dtype=plan.dtype, seed=seed)
    about = {"method": method, "model": checkpoint.path.name, "rank": adapters.rank, "alpha": adapters.alpha}
    training = Training(params, config, learning, batches, plan, about=about)
    if there is not None:
        training.resume(there, other_data=other_data)
    n_trainable = sum({id(tensor): tensor.numel() for tensor in training.learning.values()}.values())
    log.info(
        "%s parameters learn, %s answer tokens an epoch, %d steps",
        f"{n_trainable:,}",
        f"{batches.answer_tokens:,}",
        plan.steps,
    )
    kept = record.Record(folder, training.step)
    before = kept.first_validation() if there is not None else None  # of the run, not of where it goes on
    if check and before is None:
        before = training.validate(check)
        kept.add({"step": training.step, "validation": before})
        log.info("held-out loss %.4f before", before)
    begun = time.perf_counter()
    with display(training.step, plan.steps) as show:
        tell = record.teller(kept, show, plan.steps, _work(config, length, method), plan.dtype)
        ended = run(training, folder, save_every=save_every, on_step=tell)
    seconds = time.perf_counter() - begun
    after = training.validate(check) if check else None
    if after is not None:
        kept.add({"step": training.step, "validation": after})
    record.draw(folder)
    if method == "full":
        dtypes = {name: tensor.dtype for name, tensor in checkpoint.params.items()}
        once: dict[int, torch.Tensor] = {}
        for name, tensor in training.params.items():
            once.setdefault(id(tensor), tensor.detach().to(dtypes[name]))
        write_meta(
            folder / "model", {name: once[id(tensor)] for name, tensor in training.params.items()}, config, tokenizer
        )
    else:
        tensors = {name: tensor.detach() for name, tensor in adapter(training.params).items()}
        write_peft(
            folder / "adapter", detach(params) | tensors, config, base=str(checkpoint.path), rslora=adapters.rslora
        )
    return Result(ended, before, after, n_trainable, seconds, peak_rss_bytes())


def _work(config: Config, length: int, method: str) -> float:
    """FLOPs of a token: where the weights are frozen their own gradients needn't be computed, a third of all."""
    return record.flops_per_token(config, length) * (1 if method == "full" else 2 / 3)
