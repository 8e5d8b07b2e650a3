"""A Llama from random weights: what scripts/pretrain.py does once its options are read."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from llama3_scratch.checkpoint.meta import write_meta
from llama3_scratch.config import Config
from llama3_scratch.data.shards import Shards
from llama3_scratch.inference.sample import sampler
from llama3_scratch.inference.stream import stream
from llama3_scratch.init import init
from llama3_scratch.system.display import display
from llama3_scratch.text.detokenizer import text_of
from llama3_scratch.training import checkpoints, record
from llama3_scratch.training.loop import Training, TrainingPlan, run

log = logging.getLogger("llama3_scratch")

STD = 0.02  # of all weights at first (GPT-2's)
_MOST_VALIDATION = 50  # batches that are held against the weights each time


@dataclasses.dataclass(frozen=True)
class Telling:
    """After how many steps a run saves, validates and writes a sample that begins with `sample`."""

    save_every: int = 250
    validate_every: int = 250
    sample_every: int = 500
    sample: str = "Once upon a time"


def pretrain(
    shards: Shards,
    config: Config,
    plan: TrainingPlan,
    folder: Path,
    *,
    size: int,
    length: int,
    seed: int,
    telling: Telling,
    resume: bool = False,
    other_data: bool = False,
    begin_with: Path | None = None,
) -> int:
    """Train on `shards` in batches of `size` rows of `length` tokens; 0, or the number of the signal that ended it.

    `folder` gets the log, the curve, checkpoints, and `model/`: the weights as they are at the end. `resume` goes on
    from the newest checkpoint in it; `begin_with` takes the weights of some other run's.
    """
    there = checkpoints.begin(folder, resume=resume)
    params = init(config, seed=seed, std=STD, embedding_std=STD)
    training = Training(
        params,
        config,
        list(params),
        shards.batches("train", size=size, length=length, seed=seed),
        plan,
        about={"config": _plain(config), "vocabulary": shards.tokenizer.n_words},
    )
    if there is not None:
        training.resume(there, other_data=other_data)
    elif begin_with is not None:
        training.resume(begin_with, weights_only=True)
    kept = record.Record(folder, training.step)
    held_out = shards.held_out(size=size, length=length)
    log.info("%s parameters, %s tokens a step", f"{config.n_parameters:,}", f"{size * length * plan.accumulate:,}")

    def validate() -> None:
        if held_out is not None:
            loss = training.validate(held_out, _MOST_VALIDATION)
            log.info("step %d · held out %.4f", training.step, loss)
            kept.add({"step": training.step, "validation": loss})

    def write_sample() -> None:
        log.info("step %d · %s", training.step, sample(training, shards, telling.sample))

    every = [(telling.validate_every, validate), (telling.sample_every, write_sample)]
    with display(training.step, plan.steps) as show:
        tell = record.teller(kept, show, plan.steps, record.flops_per_token(config, length), plan.dtype)
        ended = run(training, folder, save_every=telling.save_every, on_step=tell, every=every)
    export(training, shards, folder / "model")
    record.draw(folder)
    return ended


def range_test(
    shards: Shards, config: Config, plan: TrainingPlan, *, size: int, length: int, seed: int, steps: int = 120
) -> list[tuple[float, float]]:
    """(learning rate, smoothed loss) of steps whose rate grows from 1e-5 to 1, until the loss is far off its best."""
    params = init(config, seed=seed, std=STD, embedding_std=STD)
    batches = shards.batches("train", size=size, length=length, seed=seed)
    plan = dataclasses.replace(plan, steps=steps, lr=1.0, schedule="range")
    training = Training(params, config, list(params), batches, plan)
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


def sample(training: Training, shards: Shards, begin: str, *, most: int = 100, temperature: float = 0.0) -> str:
    """What the weights make of a text's beginning."""
    tokenizer = shards.tokenizer
    prompt = tokenizer.encode(begin, bos=tokenizer.bos_id is not None, eos=False)
    prompt = prompt[1 - training.config.max_seq_len :]  # what it can't take in mustn't end the run
    params = {name: tensor.detach() for name, tensor in training.params.items()}
    steps = stream(
        [prompt],
        params,
        training.config,
        samplers=[sampler(temperature=temperature)],
        max_tokens=most,
        stop=lambda row, token: token == tokenizer.eos_id,
    )
    return begin + text_of((step.token for step in steps if step.token != tokenizer.eos_id), tokenizer, cut=True)


def export(training: Training, shards: Shards, folder: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write the weights in Meta's layout with their tokenizer: a model like any other."""
    fresh: dict[int, torch.Tensor] = {}
    for tensor in training.params.values():
        fresh.setdefault(id(tensor), tensor.detach().to(dtype))
    params = {name: fresh[id(tensor)] for name, tensor in training.params.items()}
    write_meta(folder, params, training.config, shards.tokenizer)


def _plain(config: Config) -> dict[str, Any]:
    said = {name: value for name, value in dataclasses.asdict(config).items() if value is not None}
    if config.head_dim * config.n_heads == config.dim:
        del said["head_dim"]  # runs from before heads could have another width go on too
    return said
