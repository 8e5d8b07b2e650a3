"""Pretraining: a Llama from random weights learns to continue texts."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from typing import Any

import torch

from llama3_scratch.cache import Cache
from llama3_scratch.checkpoint.meta import write_meta
from llama3_scratch.config import Config
from llama3_scratch.data.shards import Shards
from llama3_scratch.inference.fast_forward import FastForward
from llama3_scratch.inference.requests import Request
from llama3_scratch.inference.sample import sampler
from llama3_scratch.inference.stream import stream
from llama3_scratch.init import init
from llama3_scratch.stored import Params, map_tensors
from llama3_scratch.text.detokenizer import text_of
from llama3_scratch.text.tokenizer import Tokenizer
from llama3_scratch.training.choices import BatchPlan, Pretraining, RunPlan, TrainingPlan
from llama3_scratch.training.flops import flops_per_token
from llama3_scratch.training.loop import Training
from llama3_scratch.training.run import Outcome, Run

log = logging.getLogger("llama3_scratch")

STD = 0.02  # of all weights at first (GPT-2's)
MAX_VALIDATION_BATCHES = 50  # of a validation


def pretrain(
    shards: Shards,
    config: Config,
    plan: TrainingPlan,
    batches: BatchPlan,
    run_plan: RunPlan,
    choices: Pretraining,
    *,
    device: torch.device | str = "cpu",
) -> Outcome:
    """Train on `shards`, on `device`.

    The run's folder gets the log, the curve, checkpoints, and `model/`: the weights as they are at the end.
    """
    run = Run(run_plan)
    params = _fresh(config, batches.seed, device)
    training = Training(
        params,
        config,
        list(params),
        shards.batches("train", size=batches.size, length=batches.length, seed=batches.seed),
        plan,
        about={"config": about_config(config), "vocabulary": shards.tokenizer.n_words},
    )
    run.begin(training)
    held_out = shards.held_out(size=batches.size, length=batches.length)
    tokens = batches.size * batches.length * plan.accumulate
    log.info("%s parameters, %s tokens a step", f"{config.n_parameters:,}", f"{tokens:,}")

    def validate() -> None:
        if held_out is not None:
            loss = training.validate(held_out, MAX_VALIDATION_BATCHES)
            log.info("step %d · held out %.4f", training.step, loss)
            run.validated(loss)

    def write_sample() -> None:
        log.info("step %d · %s", training.step, sample(training, shards.tokenizer, choices.sample))

    hooks = [(choices.validate_every, validate), (choices.sample_every, write_sample)]
    outcome = run.train(flops_per_token=flops_per_token(config, batches.length), hooks=hooks)
    write_meta(run.folder / "model", training.weights("cpu"), config, shards.tokenizer)
    run.draw()
    return outcome


def _fresh(config: Config, seed: int, device: torch.device | str) -> Params:
    params = init(config, seed=seed, std=STD, embedding_std=STD)
    return map_tensors(params, lambda tensor: tensor.to(device))


def range_test(
    shards: Shards,
    config: Config,
    plan: TrainingPlan,
    batches: BatchPlan,
    *,
    device: torch.device | str = "cpu",
    steps: int = 120,
) -> list[tuple[float, float]]:
    """(learning rate, smoothed loss) of steps whose rate grows from 1e-5 to 1, until the loss is far off its best."""
    params = _fresh(config, batches.seed, device)
    windows = shards.batches("train", size=batches.size, length=batches.length, seed=batches.seed)
    plan = dataclasses.replace(plan, steps=steps, lr=1.0, schedule="range")
    training = Training(params, config, list(params), windows, plan)
    found: list[tuple[float, float]] = []
    smooth = best = math.inf
    while training.step < steps:
        step = training.advance()
        smooth = step.loss if math.isinf(smooth) else 0.8 * smooth + 0.2 * step.loss
        found.append((step.lr, smooth))
        best = min(best, smooth)
        if step.skipped or smooth > 1.5 * best:
            break
    return found


def suggested(found: Sequence[tuple[float, float]]) -> float:
    """A learning rate by a range test: a third of the one at which the loss was lowest."""
    return min(found, key=lambda point: point[1])[0] / 3


def sample(
    training: Training, tokenizer: Tokenizer, begin: str, *, max_tokens: int = 100, temperature: float = 0.0
) -> str:
    """A text that begins with `begin`, continued by the weights as they are now."""
    prompt = tokenizer.encode(begin, bos=tokenizer.bos_id is not None, eos=False)
    prompt = prompt[1 - training.config.max_seq_len :]  # a prompt longer than the context mustn't end the run
    request = Request(prompt, sampler(temperature=temperature), max_tokens, lambda token: token == tokenizer.eos_id)
    model = FastForward(training.weights(), training.config)
    steps = stream(request, model, Cache(training.config.max_seq_len))
    return begin + text_of((step.token for step in steps if step.token != tokenizer.eos_id), tokenizer, cut=True)


def about_config(config: Config) -> dict[str, Any]:
    """The config as a checkpoint keeps it, to be compared when the run is resumed."""
    plain = {name: value for name, value in dataclasses.asdict(config).items() if value is not None}
    if config.head_dim * config.n_heads == config.dim:
        del plain["head_dim"]  # older runs, whose heads couldn't have another width, don't name it
    return plain
