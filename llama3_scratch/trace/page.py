"""The trace as one HTML file that needs no network: each step is reduced to a picture of itself as it comes.

What the file holds of a tensor is its statistics, a histogram and a heat map of at most 64 × 48 cells. The views hold
more: every head's attention, the likeliest tokens after each layer, the query and the key of each layer's head 0 before
and after RoPE, and the residual stream's numbers. They show all tokens of a pass, or the first 8 and the last ones
where there are more than fit a file that a browser opens with ease. A long prompt comes in pieces, a pass each, which
share that room.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llama3_scratch.compare.tensor_names import (
    ANGLES,
    ATTENDED,
    ATTENTION_WEIGHTS,
    DECODE,
    FED,
    KEYS,
    LAYER_OUTPUT,
    LAYERS_INPUT,
    LINEAR,
    POSITIONS,
    QUERIES,
    SCORES,
    TOKENS,
    TURNED_KEYS,
    TURNED_QUERIES,
)
from llama3_scratch.config import Config
from llama3_scratch.stored import Params, dtype_name
from llama3_scratch.system.writing import write_whole
from llama3_scratch.text.detokenizer import legible, piece
from llama3_scratch.text.tokenizer import Tokenizer
from llama3_scratch.trace.tracer import TracedTensor
from llama3_scratch.trace.views import likeliest

HEAT_ROWS, HEAT_COLUMNS, HISTOGRAM_BINS = 64, 48, 32  # of a heat map, of a histogram
MAX_TOKENS, FIRST_TOKENS = 256, 8  # of a pass that are shown, and how many of these are its first
MAX_ATTENTION_BYTES = 16e6  # of all heads' scores and weights in the file, before compression
LENS_TOKENS = 5  # likeliest tokens after each layer
SCORE_STEPS = 63  # between a head's least and largest score: more of them are noise that doesn't compress
# The page's names of head 0 of a layer's queries and keys, before RoPE and after it.
_TURNED = {"q_before": QUERIES, "k_before": KEYS, "q_after": TURNED_QUERIES, "k_after": TURNED_KEYS}


class TracePage:
    """What the page shows of a run of one prompt: `take` every step, then `write`. Keeps no tensor.

    `files` says where each weight was read from, `pieces` how many passes take the prompt in. `asked` and `answered`
    are what stands on top: the prompt as it was given, and what the model said.
    """

    def __init__(
        self,
        params: Params,
        config: Config,
        tokenizer: Tokenizer | None,
        title: str,
        files: Mapping[str, str] = MappingProxyType({}),
        pieces: int = 1,
    ) -> None:
        self._params, self._config, self._tokenizer, self._title, self._files = params, config, tokenizer, title, files
        self.asked = self.answered = ""
        self.n_answered = 0  # tokens
        self._left, self._pieces = int(MAX_ATTENTION_BYTES), pieces
        self._heat_rows = max(HEAT_ROWS // 8, HEAT_ROWS // pieces)
        self._strings: dict[str, int] = {}
        self._vocabulary: dict[int, str] = {}
        self._weights: dict[str, list[Any]] = {}
        self._tokens: list[int] = []
        self._passes: list[dict[str, Any]] = []
        self._heats: dict[str, int] = {}  # as the page gets it → its number
        self._blobs = bytearray()
        self._offsets: dict[bytes, int] = {}  # of each array in the blobs, by its hash: equal ones share their bytes
        self._before_RD = torch.empty(0)  # the residual stream as the layer found it, in the rows that are shown

    def take(self, step: TracedTensor) -> None:
        """Reduce a step; its tensor isn't needed any more after this."""
        if not self._passes or step.call >= len(self._passes):
            self._passes.append({"rows": [], "columns": [], "steps": [], "residual": [], "layers": {}, "last": -2})
        of = self._passes[-1]
        if step.value is not None:
            self._views(of, step, step.value)
        of["last"] = group = self._group(of["last"], step)
        heat = self._heat(step, step.value) if step.value is not None and step.kind != "argument" else -1
        s = step.statistics
        for key in step.weights:
            weight = self._params[key]
            self._weights[key] = [list(weight.shape), dtype_name(weight.dtype), self._files.get(key, "")]
        texts = (step.path, step.function, step.source, step.name, step.letters, dtype_name(step.dtype))
        of["steps"].append([
            group, ("argument", "local", "return").index(step.kind), *map(self._string, texts), step.line, step.nth,
            list(step.shape), [*map(_short, (s.min, s.max, s.mean, s.std)), s.nan, s.inf] if s else None,
            list(step.weights), step.cost.flops, step.cost.bytes, _short(step.cost.seconds), heat,
        ])  # fmt: skip

    def write(self, path: Path) -> None:
        """Write the page."""
        write_whole(path, self.html())

    def html(self) -> str:
        """The page: the template with style, script and data put in, and a policy that lets only those run."""
        c = self._config
        known = {
            "title": self._title,
            "said": [self.asked, self.answered, self.n_answered],
            "config": {"layers": c.n_layers, "heads": c.n_heads, "kv_heads": c.n_kv_heads, "width": c.dim,
                       "head_dim": c.head_dim, "theta": c.rope_theta},
            "names": {"scores": SCORES.name, "weights": ATTENTION_WEIGHTS.name, "linear": LINEAR},
            "tokens": [self._text(id) for id in self._tokens],
            "ids": self._tokens,
            "strings": list(self._strings),
            "vocabulary": self._vocabulary,
            "weights": self._weights,
            "heats": [json.loads(heat) for heat in self._heats],
            "passes": [{key: value for key, value in of.items() if key != "last"} for of in self._passes],
        }  # fmt: skip
        head = json.dumps(known, separators=(",", ":"), allow_nan=False).encode()
        packed = gzip.compress(len(head).to_bytes(4, "little") + head + self._blobs, mtime=0)
        return _filled(base64.b64encode(packed).decode())

    @property
    def max_tokens(self) -> int:
        """How many tokens the next pass may show; each of the prompt's has an equal share of the file."""
        heads, share = self._config.n_layers * self._config.n_heads, max(0, self._left) // max(1, self._pieces)
        return min(MAX_TOKENS, max(4 * FIRST_TOKENS, math.isqrt(share // (2 * heads))))

    def _group(self, last: int, step: TracedTensor) -> int:
        """Where on the page a step stands: its layer, -1 before the first, n_layers after the last."""
        if step.layer is not None:
            return step.layer
        if last < 0:
            return -1
        handed_on = step.function == DECODE and step.kind == "local" and last < self._config.n_layers
        return last if handed_on else self._config.n_layers

    def _views(self, of: dict[str, Any], step: TracedTensor, value: Tensor) -> None:
        """Add what the views show of this step, if any."""
        if TOKENS.matches(step):
            self._tokens += value[0].tolist()
        elif LAYERS_INPUT.matches(step):
            of["rows"], of["rowsOf"] = self._shown(value.shape[1]), value.shape[1]
            self._before_RD = value[0, of["rows"]].float()
            of["residual"].append(self._residual(self._before_RD, {}))
        elif POSITIONS.matches(step):
            of["positions"], of["start"] = value[0, of["rows"]].tolist(), int(value[0, 0])
        elif ANGLES.matches(step):
            of["angles"] = self._blob(_numpy(value[0, of["rows"]]))
        if step.layer is None:
            return
        layer = of["layers"].setdefault(step.layer, {})
        if turned := next((field for field, tensor in _TURNED.items() if tensor.matches(step)), None):
            layer[turned] = self._linear(_numpy(value[0, of["rows"], 0]))
        elif SCORES.matches(step):
            if "span" not in of:
                self._see(of, value.shape[-1])
            layer["scores"] = self._scores(_heads(of, value))
        elif ATTENTION_WEIGHTS.matches(step):
            layer["weights"] = self._blob(_numpy(_heads(of, value).sqrt() * 255, np.uint8))
        elif ATTENDED.matches(step) or FED.matches(step):
            layer[step.name] = value[0, of["rows"]].float().norm(dim=-1)
        elif LAYER_OUTPUT.matches(step):
            after_RD = value[0, of["rows"]].float()
            of["residual"].append(self._residual(after_RD, layer))
            self._before_RD = after_RD
            layer["lens"] = self._lens(value[:, of["rows"]])

    def _see(self, of: dict[str, Any], span: int) -> None:
        """Choose which of the `span` tokens that a pass sees are shown, and take them off what is left of the file."""
        of["columns"], of["span"] = self._shown(span), span
        self._left -= 2 * self._config.n_layers * self._config.n_heads * len(of["rows"]) * len(of["columns"])
        self._pieces -= 1

    def _residual(self, x_RD: Tensor, layer: dict[str, Any]) -> list[int]:
        """Norm, change, attention's part, feed-forward's part and largest magnitude, for each row."""
        norm_R = x_RD.norm(dim=-1)
        change_R = (x_RD - self._before_RD).norm(dim=-1) / self._before_RD.norm(dim=-1).clamp_min(1e-30)
        parts = [layer.pop(name, torch.zeros_like(norm_R)) for name in (ATTENDED.name, FED.name)]
        return self._blob(_numpy(torch.stack([norm_R, change_R, *parts, x_RD.abs().amax(-1)])))

    def _lens(self, x_1RD: Tensor) -> list[list[int]]:
        """The likeliest tokens and their probabilities, were this the last layer."""
        top = [likeliest(part, self._params, self._config, LENS_TOKENS) for part in x_1RD.split(32, dim=1)]
        ids, shares = (torch.cat(parts, dim=1)[0] for parts in zip(*top, strict=True))
        for id in ids.unique().tolist():
            self._vocabulary[id] = self._text(id)
        return [self._blob(_numpy(ids, np.uint32)), self._blob(_numpy(shares))]

    def _scores(self, scores_HTS: Tensor) -> list[Any]:
        low_H, high_H = scores_HTS.nan_to_num().flatten(1).aminmax(dim=1)
        scaled = (scores_HTS.nan_to_num() - low_H[:, None, None]) / (high_H - low_H).clamp_min(1e-30)[:, None, None]
        return [self._blob(_numpy(scaled * SCORE_STEPS, np.uint8)), [*map(_short, low_H)], [*map(_short, high_H)]]

    def _linear(self, values: np.ndarray) -> list[Any]:
        peak = float(np.abs(np.nan_to_num(values)).max(initial=0)) or 1.0
        return [self._blob(np.rint(np.nan_to_num(values) / peak * 127).astype(np.int8)), _short(peak)]

    def _heat(self, step: TracedTensor, value: Tensor) -> int:
        """The number of the step's heat map and histogram; tensors that look the same share one."""
        plane, rows, columns, head = _plane(value, step.letters)
        cells, row_block, column_block = _largest(plane, self._heat_rows)
        finite = np.abs(cells[np.isfinite(cells)])
        peak = float(finite.max(initial=0)) or 1.0
        with np.errstate(invalid="ignore"):
            coded = np.where(np.isfinite(cells), np.rint(np.sign(cells) * np.sqrt(np.abs(cells) / peak) * 127), -128)
        about = [*cells.shape, row_block, column_block, rows, columns, head, _short(peak)]
        drawn = json.dumps([self._blob(coded.astype(np.int8)), self._blob(_histogram(value)), *about])
        return self._heats.setdefault(drawn, len(self._heats))

    def _blob(self, array: np.ndarray) -> list[int]:
        """[type, offset, number of elements] of the array among the data; a type is its place in TYPES of page.js."""
        data = array.tobytes()
        mark = hashlib.sha256(data).digest()
        if mark not in self._offsets:
            self._offsets[mark] = len(self._blobs)
            self._blobs += data
        kind = ("int8", "uint8", "uint32", "float32").index(array.dtype.name)
        return [kind, self._offsets[mark], array.size]

    def _shown(self, n: int) -> list[int]:
        if n <= self.max_tokens:
            return list(range(n))
        return [*range(FIRST_TOKENS), *range(n - self.max_tokens + FIRST_TOKENS, n)]

    def _string(self, text: str) -> int:
        return self._strings.setdefault(text, len(self._strings))

    def _text(self, id: int) -> str:
        return legible(piece(id, self._tokenizer)) if self._tokenizer else str(id)


def needs(step: TracedTensor) -> bool:
    """Whether the page needs the step's tensor."""
    return step.kind != "argument" or TOKENS.matches(step) or LAYERS_INPUT.matches(step)


def _heads(of: dict[str, Any], scores_BGRTS: Tensor) -> Tensor:
    """Of the first prompt's scores or weights those that are shown, in heads_HTS."""
    return scores_BGRTS[0].flatten(0, 1)[:, of["rows"]][:, :, of["columns"]].float()


def _plane(value: Tensor, letters: str) -> tuple[np.ndarray, list[Any], list[list[Any]], bool]:
    """The tensor as a matrix of its first prompt, the [axis, size] of its rows and of what its columns run through.

    Rows are tokens where it has them; of attention's scores it is head 0, which the last item tells.
    """
    if value.is_complex():
        value, letters = torch.view_as_real(value.resolve_conj()), letters + "c" * bool(letters)
    letters = letters if len(letters) == value.ndim else "?" * value.ndim
    if letters[:1] == "B":
        value, letters = value[0], letters[1:]
    head = "T" in letters and "S" in letters and letters.index("T") > 0
    while head and letters[0] != "T":
        value, letters = value[0], letters[1:]
    if value.ndim < 2:
        value, letters = value.reshape(1, -1), ("1" + letters)[-2:].rjust(2, "1")
    axes: list[list[Any]] = [[axis, size] for axis, size in zip(letters, value.shape, strict=True)]
    return _numpy(value.flatten(1)), axes[0], axes[1:], head


def _largest(plane: np.ndarray, max_rows: int) -> tuple[np.ndarray, int, int]:
    """At most max_rows × HEAT_COLUMNS cells, each the value of largest magnitude in its block, and a block's two sizes.

    Infinities count only where a block has nothing else, a NaN always.
    """
    (n_rows, n_columns) = plane.shape
    tall, wide = max(1, -(-n_rows // max_rows)), max(1, -(-n_columns // HEAT_COLUMNS))
    padding = ((0, -n_rows % tall), (0, -n_columns % wide))
    blocks = np.pad(plane, padding, constant_values=np.inf)
    blocks = blocks.reshape(blocks.shape[0] // tall, tall, -1, wide).swapaxes(1, 2)
    blocks = blocks.reshape(*blocks.shape[:2], tall * wide)
    size = np.where(np.isinf(blocks), -1, np.where(np.isnan(blocks), np.inf, np.abs(blocks)))
    return np.take_along_axis(blocks, size.argmax(-1)[..., None], -1)[..., 0], tall, wide


def _histogram(value: Tensor) -> np.ndarray:
    """How many finite values lie in each of HISTOGRAM_BINS equal steps from least to largest: roots, at most 255.

    Outliers are few, and roots leave them in sight.
    """
    flat = torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
    flat = flat.flatten().to(torch.promote_types(flat.dtype, torch.float32)).cpu()
    counts = torch.histc(flat[flat.isfinite()], HISTOGRAM_BINS)
    return _numpy((counts / counts.max().clamp_min(1)).sqrt() * 255, np.uint8)


def _numpy(value: Tensor, dtype: Any = np.float32) -> np.ndarray:
    array = value.detach().cpu().to(torch.float64 if dtype == np.uint32 else torch.float32).numpy()
    if dtype == np.uint8:
        array = np.clip(np.rint(np.nan_to_num(array)), 0, 255)
    return array.astype(dtype)


def _short(value: Any) -> float:
    return float(f"{float(value):.6g}")


def _filled(data: str) -> str:
    folder = resources.files("llama3_scratch.trace")
    html, css, js = (folder.joinpath(f"page.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js"))
    policy = f"default-src 'none'; style-src {_hash(css)}; script-src {_hash(js)}; base-uri 'none'; form-action 'none'"
    for mark, text in {"policy": policy, "style": css, "script": js, "data": data}.items():
        html = html.replace(f"@{mark}@", text)
    return html


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
