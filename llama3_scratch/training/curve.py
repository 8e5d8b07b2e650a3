"""The curve of a run's losses, drawn from its log."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path

from llama3_scratch.system.writing import unwritable
from llama3_scratch.training.record import FILE, read

log = logging.getLogger("llama3_scratch")


def running_mean(values: Sequence[float], decay: float = 0.95) -> list[float]:
    """Exponential moving averages, each of what was seen so far alone (Adam's correction, arXiv:1412.6980 §3)."""
    total, means = 0.0, []
    for number, value in enumerate(values, start=1):
        total = decay * total + (1 - decay) * value
        means.append(total / (1 - decay**number))
    return means


def limits(losses: Sequence[float], held_out: Sequence[float]) -> tuple[float, float]:
    """The range of losses that the curve shows: the first step, the held-out losses, and 99 of 100 of the others, so
    that a few outliers don't flatten it."""
    usual = sorted(losses)[: max(1, math.ceil(0.99 * len(losses)))]
    shown = [losses[0], *usual, *held_out]
    low, high = min(shown), max(shown)
    margin = 0.05 * (high - low) or 0.05 * high
    return low - margin, high + margin


def draw(folder: Path) -> Path | None:
    """Draw `loss.png` from the folder's log: each step's loss, its running mean, and the validation's.

    Without matplotlib there is none, and that is said: a run that is done isn't to fail for a picture.
    """
    try:
        import matplotlib
    except ImportError:
        log.warning('the curve is drawn by matplotlib, which is missing: pip install -e ".[train]"')
        return None
    matplotlib.use("agg")
    from matplotlib import pyplot

    lines = list(read(folder / FILE))
    losses = [(line["step"], line["loss"]) for line in lines if "loss" in line and not line["skipped"]]
    held_out = [(line["step"], line["validation"]) for line in lines if "validation" in line]
    if not losses:
        return None
    figure, axes = pyplot.subplots(figsize=(7, 4))
    axes.plot(*zip(*losses, strict=True), ".-" if len(losses) < 30 else "-", color="0.8", label="each step")
    shown = limits([loss for _, loss in losses], [loss for _, loss in held_out])
    means = running_mean([min(loss, shown[1]) for _, loss in losses])
    axes.plot([step for step, _ in losses], means, label="running mean")
    if held_out:
        axes.plot(*zip(*held_out, strict=True), "o-", label="held out")
    axes.set(xlabel="step", ylabel="loss, nats a token", ylim=shown)
    axes.legend()
    path = folder / "loss.png"
    try:
        figure.savefig(path, dpi=120, bbox_inches="tight")
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        pyplot.close(figure)
    return path
