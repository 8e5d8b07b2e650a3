"""Every tensor of the model as its own lines of code make it, seen from outside by the interpreter's tracer.

    with watch() as steps:
        forward(tokens_BT, params, config, block=block)
    for step in steps:
        print(step.key, step.axes, step.statistics)

The model holds no code for this: `sys.settrace`, limited to model.py and `embed`, reports after each executed line the
tensors that it bound. So it costs nothing when off, and it can't tell another story than the code. Trace with the
readable `block`: the fused attention has no scores to show.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor

from llama3_scratch import linear, model
from llama3_scratch.compare.tensor_names import DECODE, EMBED, UNEMBED, step_key
from llama3_scratch.config import Config
from llama3_scratch.errors import Llama3Error, UsageError
from llama3_scratch.stored import SIBLINGS
from llama3_scratch.trace.cost import Cost, Meter

AXES = "BTSDHGNRKJFV"
_SUFFIX = re.compile(rf"_([{AXES}1]+)$")
_NAMED = re.compile(rf"\w+_([{AXES}1]+)\b")
_LAYER = re.compile(r"layers\.(\d+)\b")


@dataclass(frozen=True)
class Statistics:
    """A tensor in a few numbers; those of a complex one are of its real and imaginary parts together."""

    min: float
    max: float
    mean: float
    std: float
    nan: int
    inf: int


@dataclass
class TracedTensor:
    """A tensor that a line of the model bound, took as an argument or returned.

    `value` is the tensor itself where it was kept. `weights` are the keys that the line read, by itself or through
    `linear` and `embed`; `cost` is what the line's operations took.
    """

    call: int  # 0 for the first pass through the model within the watch, and so on
    kind: str  # "argument", "local" or "return"
    path: str  # where in the checkpoint's names: "layers.0.attention", "" outside of any
    function: str
    line: int
    source: str
    name: str
    nth: int  # 1 for the first tensor of that name there, 2 once it's bound anew
    letters: str  # its axes by its name, or by the function's docstring where it's returned without one
    shape: tuple[int, ...]
    dtype: torch.dtype
    statistics: Statistics | None = None
    value: Tensor | None = None
    weights: tuple[str, ...] = ()
    cost: Cost = field(default_factory=Cost)

    @property
    def layer(self) -> int | None:
        found = _LAYER.match(self.path)
        return int(found[1]) if found else None

    @property
    def key(self) -> str:
        """A name of its own within its call: `layers.0.attention.q_BTHK`, then `layers.0.attention.q_BTHK.2`."""
        return step_key(self.path, self.function, self.name, self.nth)

    @property
    def label(self) -> str:
        """A name of its own within the run: the key, after `pass1.` and so on in the passes that follow the first."""
        return f"pass{self.call}.{self.key}" if self.call else self.key

    @property
    def axes(self) -> str:
        """The shape with its axes' names: `B=1 T=17 H=32 K=128`."""
        if len(self.letters) != len(self.shape):
            return " ".join(map(str, self.shape))
        return " ".join(
            f"{axis}={size}" if axis != "1" else "1" for axis, size in zip(self.letters, self.shape, strict=True)
        )


def suffix(name: str) -> str:
    """The axes that a tensor's name ends in: "BTHK" for q_BTHK, "" where there are none."""
    found = _SUFFIX.search(name)
    return found[1] if found else ""


class ShapeError(Llama3Error):
    """A tensor's shape isn't what its name says."""


@contextlib.contextmanager
def watch(
    *,
    statistics: bool = True,
    keep: Callable[[TracedTensor], bool] = lambda step: False,
    costs: bool = False,
    on_step: Callable[[TracedTensor], None] = lambda step: None,
) -> Iterator[list[TracedTensor]]:
    """Yield the list that fills with every step of the model run within; shapes are checked against names as it does.

    `keep(step)` says whose tensors are kept, `on_step` hears of each step as it happens. Raises UsageError where a
    debugger or coverage traces already, ShapeError where a tensor isn't what its name's axes say.
    """
    if sys.gettrace() is not None:
        raise UsageError("a debugger or coverage traces this process already; run without it to trace the model")
    watcher = _Watcher(statistics, keep, on_step, Meter() if costs else None)
    with watcher.meter or contextlib.nullcontext():
        sys.settrace(watcher.called)
        try:
            yield watcher.steps
        finally:
            sys.settrace(None)


class _Frame:
    """One running function of the model: what it has bound so far."""

    def __init__(self, frame: FrameType, path: str) -> None:
        self.path = path
        self.code = frame.f_code
        self.function = frame.f_code.co_name
        self.line = frame.f_lineno
        self.own = f"{path}.weight" if f"{path}.weight" in frame.f_locals.get("params", ()) else None
        self.bound: dict[str, Tensor] = {}
        self.weights: list[str] = []


class _Watcher:
    def __init__(
        self,
        statistics: bool,
        keep: Callable[[TracedTensor], bool],
        on_step: Callable[[TracedTensor], None],
        meter: Meter | None,
    ) -> None:
        self.steps: list[TracedTensor] = []
        self.meter = meter
        self._statistics, self._keep, self._on_step = statistics, keep, on_step
        self._seen = _weight_readers() | _statements().keys()
        self._frames: list[_Frame] = []
        self._call = -1
        self._begun = False  # by an embedding that waits for its layers
        self._sizes: dict[str, int] = {}
        self._counts: dict[tuple[str, str, str], int] = {}

    def called(self, frame: FrameType, event: str, arg: Any) -> Any:
        """The tracer of calls: the model's functions are followed line by line, all others run as ever."""
        code = frame.f_code
        if code not in self._seen:  # first, since torch has calls by the thousand
            return None
        if code not in _statements():
            if self._frames:
                self._frames[-1].weights += _keys(frame)
            return None
        if not self._frames:
            self._sizes = {}
            if self.meter is not None:
                self.meter.take()  # what ran between the passes is no line of the model
            # The head belongs to the pass that went before it, the layers to the embedding's where that was called.
            if code.co_name != UNEMBED and not (code.co_name == DECODE and self._begun):
                self._call += 1
                self._counts = {}
            self._begun = code.co_name == EMBED
        values = frame.f_locals
        if isinstance(values.get("config"), Config):
            self._learn(values["config"])
        path = values.get("name", self._frames[-1].path if self._frames else "")
        inner = _Frame(frame, path)
        self._frames.append(inner)
        for name, value in values.items():
            if isinstance(value, Tensor):
                self._record(inner, "argument", name, value)
        return functools.partial(self._ran, inner)

    def _ran(self, inner: _Frame, frame: FrameType, event: str, arg: Any) -> Any:
        """The tracer of lines, called before each and at the return: what is new was bound by the line before."""
        if event == "line":
            self._look(inner, frame)
            inner.line = frame.f_lineno
        elif event == "return":
            self._look(inner, frame)
            if isinstance(arg, Tensor) and not any(arg is value for value in inner.bound.values()):
                self._record(inner, "return", "return", arg)
            self._frames.pop()
            return None
        return functools.partial(self._ran, inner)

    def _look(self, inner: _Frame, frame: FrameType) -> None:
        for name, value in frame.f_locals.items():
            if isinstance(value, Tensor) and value is not inner.bound.get(name):
                self._record(inner, "local", name, value)

    def _record(self, inner: _Frame, kind: str, name: str, value: Tensor) -> None:
        inner.bound[name] = value
        counted = inner.path, inner.function, name
        nth = self._counts[counted] = self._counts.get(counted, 0) + 1
        line, source = _statements()[inner.code].get(inner.line, (inner.line, ""))
        letters = _returned(inner.code) if kind == "return" else suffix(name)
        step = TracedTensor(
            self._call, kind, inner.path, inner.function, line, source, name, nth, letters, tuple(value.shape),
            value.dtype,
        )  # fmt: skip
        if kind != "argument":
            if inner.own and "params[" in source:
                inner.weights.append(inner.own)
            step.weights, inner.weights = tuple(dict.fromkeys(inner.weights)), []
            if self.meter is not None:
                cost = self.meter.take()
                step.cost = replace(cost, seconds=0.0) if value.device.type == "meta" else cost
        self._check(step, inner.code)
        with _unmetered(self.meter):
            if self._statistics and value.device.type != "meta":
                step.statistics = summarise(value)
            if self._keep(step):
                step.value = value.detach().clone()
            self._on_step(step)
        self.steps.append(step)

    def _learn(self, config: Config) -> None:
        H, G, K = config.n_heads, config.n_kv_heads, config.head_dim
        self._sizes |= {"D": config.dim, "H": H, "G": G, "R": H // G, "K": K, "J": K // 2}
        self._sizes |= {"F": config.hidden_dim, "V": config.vocab_size}

    def _check(self, step: TracedTensor, code: CodeType) -> None:
        """Hold the shape against the name; an axis seen for the first time in a call is learnt. B may be 1: broadcast,
        and N is either of H and G."""
        letters = step.letters
        if not letters:
            return
        fits = len(letters) == len(step.shape)
        heads = [self._sizes[axis] for axis in "HG" if axis in self._sizes]
        for axis, size in zip(letters, step.shape, strict=False):
            if axis == "N":
                fits &= size in (heads or [size])
                continue
            wanted = 1 if axis == "1" else self._sizes.setdefault(axis, size)
            if axis == "B" and wanted == 1:
                wanted = self._sizes["B"] = size
            fits &= size == wanted or (axis == "B" and size == 1)
        if not fits:
            known = self._sizes | {"1": 1, "N": " or ".join(map(str, heads))}
            sizes = " ".join(f"{axis}={known[axis]}" if axis in known else axis for axis in letters)
            where = f"{Path(code.co_filename).name}:{step.line}"
            raise ShapeError(f"{where}: {step.key} has shape {list(step.shape)}, its name says {sizes}")


def summarise(value: Tensor) -> Statistics:
    """Minimum, maximum, mean and standard deviation of the finite values, and how many aren't."""
    flat = torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
    flat = flat.detach().to(torch.promote_types(flat.dtype, torch.float32)).flatten()
    finite = torch.isfinite(flat)
    n_nan = int(flat.isnan().sum())
    n_inf = flat.numel() - int(finite.sum()) - n_nan
    if n_nan or n_inf:
        flat = flat[finite]
    if not flat.numel():
        return Statistics(0.0, 0.0, 0.0, 0.0, n_nan, n_inf)
    low, high = flat.aminmax()
    std, mean = torch.std_mean(flat, correction=0)
    return Statistics(low.item(), high.item(), mean.item(), std.item(), n_nan, n_inf)


def _unmetered(meter: Meter | None) -> contextlib.AbstractContextManager[None]:
    return meter.paused() if meter is not None else contextlib.nullcontext()


@functools.cache
def _statements() -> dict[CodeType, dict[int, tuple[int, str]]]:
    """Of every function that is followed: line number → (its statement's first line, the statement's text)."""
    found: dict[CodeType, dict[int, tuple[int, str]]] = {}
    for module in (model, linear):
        source = inspect.getsource(module)
        lines = source.splitlines()
        for node in ast.parse(source).body:
            if not isinstance(node, ast.FunctionDef) or node.name not in _functions()[module.__name__]:
                continue
            of = found[getattr(module, node.name).__code__] = {
                node.lineno: (node.lineno, lines[node.lineno - 1].strip())
            }
            for statement in ast.walk(node):
                if isinstance(statement, ast.stmt) and not isinstance(statement, ast.FunctionDef):
                    compound = isinstance(statement, ast.For | ast.If | ast.With)
                    end = statement.lineno if compound else statement.end_lineno or statement.lineno
                    text = textwrap.dedent("\n".join(lines[statement.lineno - 1 : end]))
                    joined = re.sub(r"\s*\n\s*", " ", text).strip()
                    joined = re.sub(r"\( | ?,? \)", lambda found: found[0].strip(" ,"), joined)
                    of |= {line: (statement.lineno, joined) for line in range(statement.lineno, end + 1)}
    return found


@functools.cache
def _functions() -> dict[str, tuple[str, ...]]:
    """The functions that are followed, by module: all of model.py, and the embedding, whose seam lies in linear.py."""
    own = [name for name, of in vars(model).items() if inspect.isfunction(of) and of.__module__ == model.__name__]
    return {model.__name__: tuple(own), linear.__name__: (EMBED,)}


@functools.cache
def _returned(code: CodeType) -> str:
    """The axes of what a function returns, as the first line of its docstring says: the last tensor that it names."""
    first = str(code.co_consts[0] or "").partition("\n\n")[0]
    return (_NAMED.findall(first) or [""])[-1]


@functools.cache
def _weight_readers() -> frozenset[CodeType]:
    return frozenset((linear.linear.__code__, linear.stored.__code__))


def _keys(frame: FrameType) -> list[str]:
    """The stored tensors behind the `name` that `linear` or `stored` was called with."""
    params, name = frame.f_locals["params"], frame.f_locals["name"]
    return [f"{name}.{part}" for part in ("weight", *SIBLINGS) if f"{name}.{part}" in params]
