"""Finetuning: a model learns from conversations, with adapters (LoRA, DoRA, QLoRA) or all of its weights."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from llama3_scratch.checkpoint.load import Checkpoint
from llama3_scratch.checkpoint.meta import write_meta
from llama3_scratch.checkpoint.peft_out import write_peft
from llama3_scratch.data.batches import require_context
from llama3_scratch.data.conversation_batches import Conversations
from llama3_scratch.data.conversations import Dialog
from llama3_scratch.errors import UsageError
from llama3_scratch.params.lora import adapted, attach, trainable
from llama3_scratch.params.quantize import quantize
from llama3_scratch.stored import Params, map_tensors, quantised
from llama3_scratch.training import flops
from llama3_scratch.training.choices import BatchPlan, Finetuning, RunPlan, TrainingPlan
from llama3_scratch.training.loop import ACTIVATIONS, Training
from llama3_scratch.training.run import Outcome, Run

log = logging.getLogger("llama3_scratch")

FORM = "int4"  # of QLoRA's base, where it isn't in integers already


@dataclass(frozen=True)
class FinetuningResult:
    """Mean losses of held-out answers in nats a token, None where none were held out; how many parameters learnt."""

    outcome: Outcome
    before: float | None
    after: float | None
    trainable: int


def prepare(checkpoint: Checkpoint, choices: Finetuning, *, dtype: str, seed: int) -> tuple[Params, list[str]]:
    """The params that a method trains, and the names of those that learn.

    Frozen floats are held in the activations' dtype, as they are only multiplied by; QLoRA's base is in integers.
    """
    method, adapters = choices.method, choices.adapters
    params, integers = checkpoint.params, bool(quantised(checkpoint.params))
    if adapted(params):
        raise UsageError(f"{checkpoint.path}: has an adapter already; merge it first")
    if method == "full":
        if integers:
            raise UsageError(
                f"{checkpoint.path}: integers can't be trained, only adapters beside them; take `method=qlora`"
            )
        return params, list(params)
    if method == "qlora" and not integers:
        params = quantize(params, FORM)
    elif method != "qlora":
        params = map_tensors(
            params, lambda tensor: tensor.to(ACTIVATIONS[dtype]) if tensor.is_floating_point() else tensor
        )
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
    train_set: Sequence[Dialog],
    held_out: Sequence[Dialog],
    plan: TrainingPlan,
    batches: BatchPlan,
    run_plan: RunPlan,
    choices: Finetuning,
) -> FinetuningResult:
    """Learn the answers of conversations, on the device of the checkpoint's weights.

    The plan's steps are those of all epochs, if not fewer. The run's folder gets log, curve, checkpoints, and
    `adapter/` in PEFT's layout, or with "full" `model/` in Meta's.
    """
    tokenizer, config = checkpoint.tokenizer, checkpoint.config
    if tokenizer is None or tokenizer.chat_format is None:
        raise UsageError(f"{checkpoint.path}: expected a model with a chat format; say it with `chat_format`")
    require_context(batches.length, config)
    how: dict[str, Any] = {"size": batches.size, "length": batches.length, "date": choices.date}
    how |= {"mask_prompt": choices.mask_prompt, "truncate": choices.truncate}
    conversations = Conversations(train_set, tokenizer, seed=batches.seed, **how)
    check = Conversations(held_out, tokenizer, seed=0, what="held-out conversations", **how) if held_out else None
    if check is None:
        log.warning("no conversation is held out, so there will be no held-out loss")
    steps = choices.epochs * len(conversations) // plan.accumulate
    if steps < 1:
        raise UsageError(f"{len(conversations)} batches make no step of {plan.accumulate}; lower `accumulate`")
    plan = replace(plan, steps=min(steps, plan.steps) if plan.steps else steps)
    run = Run(run_plan)
    params, learning = prepare(checkpoint, choices, dtype=plan.dtype, seed=batches.seed)
    adapters, full = choices.adapters, choices.method == "full"
    about = {"method": choices.method, "model": checkpoint.path.name, "rank": adapters.rank, "alpha": adapters.alpha}
    training = Training(params, config, learning, conversations, plan, about=about)
    run.begin(training)
    log.info(
        "%s parameters learn, %s answer tokens an epoch, %d steps",
        f"{training.n_trainable:,}",
        f"{conversations.answer_tokens:,}",
        plan.steps,
    )
    before = run.first_validation()
    if check and before is None:
        before = training.validate(check)
        run.validated(before)
        log.info("held-out loss %.4f before", before)
    passes = flops.ALL_WEIGHTS if full else flops.ADAPTERS
    outcome = run.train(flops_per_token=flops.flops_per_token(config, batches.length, passes=passes))
    after = training.validate(check) if check else None
    if after is not None:
        run.validated(after)
    run.draw()
    if full:
        write_meta(run.folder / "model", training.weights("cpu"), config, tokenizer)
    else:
        base = str(checkpoint.path)
        write_peft(run.folder / "adapter", training.weights(), config, base=base, rslora=adapters.rslora)
    return FinetuningResult(outcome, before, after, training.n_trainable)
