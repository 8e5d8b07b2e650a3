"""The walkthrough's pictures: each has its data, which a test compares, and is drawn from that alone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from llama3_scratch.checkpoint.load import Checkpoint
from llama3_scratch.compare.tensor_names import ATTENTION_WEIGHTS, LAYER_OUTPUT, ROTATION, SCORES
from llama3_scratch.config import OFFICIAL, Config, RopeScaling, expected
from llama3_scratch.errors import FileError
from llama3_scratch.inference.sample import at_temperature
from llama3_scratch.model import block, forward, rope_frequencies
from llama3_scratch.system.writing import write_whole
from llama3_scratch.trace.tracer import TracedTensor, watch

FOLDER, DATA_FILE = ".pictures", "walkthrough.json"
TEXT = "the answer to the ultimate question of life, the universe, and everything is "
LAYER, HEAD = 0, 4  # the head that the walkthrough computes by hand

Data = dict[str, Any]


def data(checkpoint: Checkpoint) -> dict[str, Data]:
    """What each picture shows, by its name, as JSON holds it: rounded to five digits."""
    assert checkpoint.tokenizer is not None
    ids = checkpoint.tokenizer.encode(TEXT, bos=checkpoint.tokenizer.add_bos, eos=False)
    words = [checkpoint.tokenizer.decode([id]) for id in ids]

    def keep(step: TracedTensor) -> bool:
        of_layer = step.layer == LAYER and (SCORES.matches(step) or ATTENTION_WEIGHTS.matches(step))
        return of_layer or LAYER_OUTPUT.matches(step) or ROTATION.matches(step)

    with torch.inference_mode(), watch(statistics=False, keep=keep) as recorded:
        logits_V = forward(torch.tensor([ids]), checkpoint.params, checkpoint.config, block=block)[0, -1]
    steps = {step.key: step.value for step in recorded if step.value is not None}
    made = {
        "rope": _rope(steps),
        "attention": _attention(steps, checkpoint.config, words),
        "residual": _residual(steps, checkpoint.config),
        "sampling": _sampling(logits_V, checkpoint.tokenizer.decode),
        "cache": _cache(OFFICIAL["llama3-8b"]),
        "rope_scaling": _rope_scaling(OFFICIAL["llama3.1-8b"]),
    }
    return {name: {key: _rounded(value) for key, value in picture.items()} for name, picture in made.items()}


def draw(found: dict[str, Data], folder: Path) -> None:
    """Write every picture as SVG and the data of all beside them. Raises FileError where matplotlib is missing."""
    try:
        import matplotlib
    except ImportError as error:
        raise FileError('pictures are drawn by matplotlib, which is missing: pip install -e ".[pictures]"') from error
    matplotlib.use("svg")
    from matplotlib import pyplot

    style: dict[Any, Any] = {
        "svg.hashsalt": "llama3_scratch",  # else the file is another one each time
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    folder.mkdir(exist_ok=True)
    with pyplot.rc_context(style):
        for name, drawn in DRAWN.items():
            figure = drawn(found[name])
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None}, bbox_inches="tight")
            pyplot.close(figure)
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(found[name], ensure_ascii=False)}" for name in found)
    write_whole(folder / DATA_FILE, f"{{\n{lines}\n}}\n")


def _rounded(value: Any) -> Any:
    """Tensors as lists of floats with five digits, −∞ as null; all else as it is."""
    if isinstance(value, torch.Tensor):
        value = value.tolist()
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value


def _rope(steps: dict[str, torch.Tensor]) -> Data:
    rotation_TJ = steps[ROTATION.key()][0]
    J = rotation_TJ.shape[1]
    pairs = [0, J // 8, J // 4, J // 2]
    return {"pairs": pairs, "cos": rotation_TJ[:, pairs].real.mT, "sin": rotation_TJ[:, pairs].imag.mT}


def _attention(steps: dict[str, torch.Tensor], config: Config, words: list[str]) -> Data:
    g, r = divmod(HEAD, config.n_heads // config.n_kv_heads)
    where = f"layers.{LAYER}.attention"
    scores_TT, weights_TT = (steps[tensor.key(where)][0, g, r] for tensor in (SCORES, ATTENTION_WEIGHTS))
    return {"words": words, "scores": scores_TT, "weights": weights_TT}


def _residual(steps: dict[str, torch.Tensor], config: Config) -> Data:
    layers_LTD = torch.stack([steps[LAYER_OUTPUT.key(f"layers.{layer}")][0] for layer in range(config.n_layers)])
    rms_LT = layers_LTD.float().square().mean(-1).sqrt()
    return {"first": rms_LT[:, 0], "others": rms_LT[:, 1:].median(dim=1).values}


def _sampling(logits_V: torch.Tensor, decode: Callable[[list[int]], str]) -> Data:
    top = logits_V.topk(10).indices
    shares = {f"{value:g}": at_temperature(value)(logits_V, []).softmax(-1)[top] for value in (0.5, 1.0, 2.0)}
    sorted_n = shares["1"]
    top_p = int((sorted_n.cumsum(-1) < 0.9).sum()) + 1
    min_p = int((sorted_n >= 0.1 * sorted_n[0]).sum())
    words = [decode([id]) for id in top.tolist()]
    return {"words": words, **{f"at {name}": share for name, share in shares.items()}, "top-p": top_p, "min-p": min_p}


def _cache(config: Config) -> Data:
    """FLOPs until so many tokens are there, in units of 10¹⁵."""
    matrices = sum(math.prod(shape) for shape in expected(config).values() if len(shape) == 2)
    matrices -= config.vocab_size * config.dim
    pair = 4 * config.n_layers * config.n_heads * config.head_dim
    tokens = list(range(0, 1001, 50))
    # Of a pass over T tokens that see S: 2·T·matrices + T·S·pair, added up over the passes.
    kept = [(2 * n * matrices + pair * n * (n + 1) / 2) / 1e15 for n in tokens]
    without = [(n * (n + 1) * matrices + pair * n * (n + 1) * (2 * n + 1) / 6) / 1e15 for n in tokens]
    return {"tokens": tokens, "with": kept, "without": without}


def _rope_scaling(config: Config) -> Data:
    """Tokens in which each pair goes round once."""
    variants = {"plain": None, "by 8": RopeScaling(8.0), "by 32": RopeScaling(32.0)}
    scaled = {name: replace(config, rope_scaling=scaling) for name, scaling in variants.items()}
    return {name: 2 * math.pi / rope_frequencies(of, torch.float32) for name, of in scaled.items()}


def _draw_rope(found: Data) -> Any:
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 4, figsize=(8, 2.3))
    for panel, pair, cos, sin in zip(panels, found["pairs"], found["cos"], found["sin"], strict=True):
        panel.set_aspect("equal")
        panel.axis("off")
        circle = [2 * math.pi * i / 60 for i in range(61)]
        panel.plot([math.cos(a) for a in circle], [math.sin(a) for a in circle], color="0.85", linewidth=1)
        panel.scatter(cos, sin, c=range(len(cos)), cmap="viridis", s=16, zorder=2)
        last = len(cos) - 1
        for position in (0, last) if math.hypot(cos[last] - 1, sin[last]) > 0.5 else (last,):
            panel.annotate(str(position), (1.25 * cos[position], 1.25 * sin[position]), ha="center", va="center")
        panel.set_title(f"pair {pair}")
        panel.set_xlim(-1.6, 1.6)
        panel.set_ylim(-1.6, 1.6)
    return figure


def _draw_attention(found: Data) -> Any:
    from matplotlib import pyplot

    words = [word.replace(" ", "␣") for word in found["words"]]
    figure, panels = pyplot.subplots(1, 2, figsize=(9, 4.4))
    for panel, name in zip(panels, ("scores", "weights"), strict=True):
        limit = max(abs(value) for row in found[name] for value in row)
        colours, low = ("RdBu_r", -limit) if name == "scores" else ("Blues", 0)
        drawn = panel.imshow(found[name], cmap=colours, vmin=low, vmax=limit)
        panel.set_xticks(range(len(words)), words, rotation=90)
        panel.set_yticks(range(len(words)), words)
        panel.tick_params(length=0)
        panel.set_title(f"{name} ({'before the mask' if name == 'scores' else 'after the softmax'})")
        panel.set_xlabel("key")
        figure.colorbar(drawn, ax=panel, shrink=0.7)
    panels[0].set_ylabel("query")
    figure.tight_layout()
    return figure


def _draw_residual(found: Data) -> Any:
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(6, 2.8))
    panel.semilogy(found["first"], marker="o", markersize=3, color="#b2182b", label="first token")
    panel.semilogy(found["others"], marker="o", markersize=3, color="#2166ac", label="the others' median")
    panel.set_xlabel("after layer")
    panel.set_ylabel("root mean square of x")
    panel.legend(frameon=False)
    return figure


def _draw_sampling(found: Data) -> Any:
    from matplotlib import pyplot

    words = [repr(word) for word in found["words"]]
    figure, panels = pyplot.subplots(1, 3, figsize=(8, 2.5), sharey=True)
    for panel, temperature in zip(panels, ("0.5", "1", "2"), strict=True):
        panel.bar(range(len(words)), found[f"at {temperature}"], color="#4393c3")
        panel.set_xticks(range(len(words)), words, rotation=90)
        panel.set_title(f"temperature {temperature}")
    for name, colour, height in (("top-p", "#b2182b", 0.7), ("min-p", "#1b7837", 0.55)):
        panels[1].axvline(found[name] - 0.5, color=colour, linewidth=1)
        said = "top-p 0.9" if name == "top-p" else "min-p 0.1"
        panels[1].annotate(said, (found[name] - 0.3, height), color=colour)
    panels[0].set_ylabel("probability")
    return figure


def _draw_cache(found: Data) -> Any:
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(6, 2.8))
    for name, colour in (("without", "#b2182b"), ("with", "#2166ac")):
        panel.plot(found["tokens"], found[name], color=colour, label=f"{name}{' a' if name == 'with' else ''} cache")
    panel.set_xlabel("tokens")
    panel.set_ylabel("FLOPs in all, 10¹⁵")
    panel.legend(frameon=False)
    return figure


def _draw_rope_scaling(found: Data) -> Any:
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(6, 3))
    for name, colour in (("by 32", "#92c5de"), ("by 8", "#2166ac"), ("plain", "#b2182b")):
        panel.semilogy(found[name], color=colour, label=name if name == "plain" else f"scaled {name}")
    for tokens in (2048, 8192):
        panel.axhline(tokens, color="0.7", linewidth=0.8, linestyle="--")
        panel.annotate(f"{tokens:,}", (0, tokens * 1.15), color="0.4")
    panel.set_xlabel("pair")
    panel.set_ylabel("tokens to go round once")
    panel.legend(frameon=False, loc="lower right")
    return figure


DRAWN: dict[str, Callable[[Data], Any]] = {
    "rope": _draw_rope,
    "attention": _draw_attention,
    "residual": _draw_residual,
    "sampling": _draw_sampling,
    "cache": _draw_cache,
    "rope_scaling": _draw_rope_scaling,
}
