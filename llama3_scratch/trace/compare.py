"""Two runs side by side, step by step: where do they part?

The steps of a run, with their tensors, are held against a reference: transformers on the same weights, an earlier run
that was written to a file, or one pass through all tokens without a cache — of the same model, of another one, or in
another dtype. Such a pass has a row for every token, of which each step is given those that it is about.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from pathlib import Path

import torch
from torch import Tensor

from llama3_scratch.compare import hf_layers
from llama3_scratch.compare.difference import Difference, difference
from llama3_scratch.compare.tensor_names import FORWARD, HANDED_ON, LOGITS, TOKENS
from llama3_scratch.config import Config
from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.linear import embed
from llama3_scratch.model import block, decode, unembed
from llama3_scratch.stored import Params
from llama3_scratch.trace.tracer import Statistics, TracedTensor, summarise, watch

Take = Callable[[int | None, str, Tensor], None]  # (pass, or None: of all tokens), key, tensor

# As safetensors names them, the coarsest first: a run in bf16 has sums in f32.
_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
_LATER = re.compile(r"pass(\d+)\.(.*)")  # as Step.label says it


@dataclass(frozen=True)
class Row:
    """A step of ours beside theirs; `step` is None where only they have it, `theirs` where only we do.

    Runs part where the mean difference exceeds the tolerance: the worst is ruled by the few activations of a trained
    model that are hundreds of standard deviations large, and says little about any dtype but the widest.
    """

    step: TracedTensor | None
    difference: Difference
    theirs: Statistics | None
    note: str = ""

    @property
    def diverges(self) -> bool:
        return not self.difference.mean <= self.difference.tolerance


@dataclass(frozen=True)
class Reference:
    """The other run, in `dtype`: `run(tokens_1T, n_logits, take)` hands each of its tensors to `take`, and returns what
    else it compared. Of a `complete` one every step of ours is expected, and none besides.
    """

    name: str
    dtype: torch.dtype
    run: Callable[[Tensor, int, Take], Sequence[Row]]
    complete: bool = True


def needs(step: TracedTensor) -> bool:
    """Whether the comparison needs the step's tensor: what the lines made, and the tokens that went in.

    What passes through `forward` is what its functions made.
    """
    made = step.kind != "argument" and step.function != FORWARD
    return made or TOKENS.matches(step)


def one_pass(name: str, params: Params, config: Config, dtype: torch.dtype) -> Reference:
    """A pass of the readable model over all tokens at once, without a cache."""

    def run(tokens_1T: Tensor, n_logits: int, take: Take) -> Sequence[Row]:
        def hear(step: TracedTensor) -> None:
            if step.value is not None:
                take(None, step.key, step.value)
                step.value = None  # one at a time

        with watch(statistics=False, keep=lambda step: step.kind != "argument", on_step=hear):
            x_BTD = embed(tokens_1T, params, "tok_embeddings", dtype=dtype)
            x_BTD = decode(x_BTD, params, config, block=block)
            unembed(x_BTD[:, -n_logits:], params)
        return []

    return Reference(name, dtype, run)


def transformers(params: Params, config: Config, dtype: torch.dtype) -> Reference:
    """Hugging Face's model with the same weights, over all tokens at once."""

    def run(tokens_1T: Tensor, n_logits: int, take: Take) -> Sequence[Row]:
        other = hf_layers.theirs(params, config, tokens_1T.shape[1], dtype)
        for key, tensor in other.steps(tokens_1T, n_logits):
            take(None, key, tensor)
        return [Row(None, other.frequencies, None)]

    return Reference("transformers", dtype, run, complete=False)


def recorded(path: Path) -> Reference:
    """The run that `--trace-out` wrote to a safetensors file. Raises FileError where it isn't one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            stored = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118, it's no dict
    except (OSError, SafetensorError) as error:
        raise FileError(f"{path}: can't be read as a run that --trace-out wrote: {error}") from error

    def run(tokens_1T: Tensor, n_logits: int, take: Take) -> Sequence[Row]:
        with safe_open(path, framework="pt") as file:
            for name in stored:
                later = _LATER.match(name)
                take(int(later[1]) if later else 0, later[2] if later else name, file.get_tensor(name))
        return []

    dtype = next((_DTYPES[dtype] for dtype in _DTYPES if dtype in stored.values()), None)
    if dtype is None:
        raise FileError(f"{path}: has no tensor of a run; write one with --trace-out {path.name}")
    return Reference(path.name, dtype, run, complete=False)


@torch.inference_mode()
def compare(steps: Sequence[TracedTensor], reference: Reference, tolerance: float) -> list[Row]:
    """Our steps beside theirs, in our order; a step that one side lacks differs infinitely.

    `steps` are those of one prompt's passes, with the tensors that `needs` asks for.
    """
    tokens = [step.value for step in steps if TOKENS.matches(step)]
    tokens_1T = torch.cat([some for some in tokens if some is not None], dim=1)
    ends = list(accumulate(some.shape[1] for some in tokens if some is not None))
    total = ends[-1]
    first_logit = min((ends[s.call] - s.shape[1] for s in steps if LOGITS.matches(s)), default=total - 1)
    ours: dict[str, list[TracedTensor]] = defaultdict(list)
    for step in steps:
        ours[step.key] += [step] if step.kind != "argument" else []
    found: dict[tuple[int, str], Row] = {}
    lacking: dict[tuple[int, str], list[Row]] = defaultdict(list)
    last = nowhere = (-1, "")

    def take(call: int | None, key: str, theirs: Tensor) -> None:
        nonlocal last
        if key not in ours and not key.endswith(".return"):  # which another dtype's casts make, or spare
            lacking[last].append(Row(None, _infinite(key, tolerance), summarise(theirs), "only in the other run"))
        beside = [step for step in ours.get(key, ()) if call in (None, step.call) and step.value is not None]
        if beside and beside[0].dtype.is_complex and not theirs.is_complex():  # a file has complex numbers as pairs
            theirs = torch.view_as_complex(theirs)
        for step in beside:
            its = theirs if call is not None else _rows(step, theirs, ends[step.call], total)
            found[step.call, key] = _beside(step, its, tolerance)
        if beside:
            last = beside[0].call, key

    rows = list(reference.run(tokens_1T, total - first_logit, take))
    if not found:
        raise UsageError(f"{reference.name}: no step of that run is one of those traced in this one")
    rows += lacking[nowhere]
    for step in steps:
        if row := found.get((step.call, step.key)):
            rows.append(row)
        elif reference.complete and step.value is not None and step.kind == "local":
            rows.append(Row(step, _infinite(step.label, tolerance), None, "only in this run"))
        rows += lacking.pop((step.call, step.key), [])
    return rows


def first_divergence(rows: Sequence[Row]) -> Row | None:
    return next((row for row in rows if row.diverges), None)


def lines(rows: Sequence[Row], full: Callable[[TracedTensor], bool]) -> Iterator[str]:
    """The comparison for a terminal: the steps that `full` chooses and those of the layer that parts first; of every
    other layer the step that differs most. Of a tensor that is only handed on, one row is shown."""
    first = first_divergence(rows)
    parted = _layer(first) if first is not None else None
    shown: list[tuple[str, Row]] = []
    for layer, group in groupby(_once(rows, first), key=_layer):
        of_layer = list(group)
        chosen = [row for row in of_layer if row is first or row.step is None or layer == parted or full(row.step)]
        if not chosen and layer is not None:
            most = max(of_layer, key=lambda row: row.difference.mean)
            shown.append((f"… {most.difference.name}", most))
        shown += [(row.difference.name, row) for row in chosen]
    width = max(len(label) for label, _ in shown)
    yield f"  {'':{width}}{'this run':>15}{'the other':>20}{'|difference| / std':>25}"
    yield f"  {'':{width}}{'mean':>10}{'std':>10}{'mean':>10}{'std':>10}{'worst':>11}{'mean':>10}"
    for label, row in shown:
        numbers = [*_moments(row.step.statistics if row.step is not None else None), *_moments(row.theirs)]
        cells = "".join(f"{'' if number is None else f'{number:.3g}':>10}" for number in numbers)
        off = f"  {row.note}" if row.note else f"{row.difference.worst:11.2e}{row.difference.mean:10.2e}"
        yield f"{'≠' if row.diverges else ' '} {label:{width}}{cells}{off}"


def _once(rows: Sequence[Row], first: Row | None) -> Iterator[Row]:
    """The rows without those that say what a neighbour says: a value is returned, bound by the caller, viewed anew.

    Of such neighbours the one stays that the outermost function's line bound, and `first`.
    """

    def same(row: Row) -> tuple[object, ...]:
        step = row.step
        if step is None or row is first:
            return (row.difference.name,)
        if HANDED_ON.matches(step):
            return ("handed on", step.call)
        return (step.call, step.layer, row.theirs, row.difference.mean, row.note)

    for said, group in groupby(rows, key=same):
        if said[0] != "handed on":
            yield min(group, key=_depth)


def _layer(row: Row) -> tuple[int, int] | None:
    """The pass and the layer that a step belongs to."""
    return (row.step.call, row.step.layer) if row.step is not None and row.step.layer is not None else None


def _depth(row: Row) -> tuple[bool, int]:
    step = row.step
    return (step.kind != "local", step.key.count(".") - (step.nth > 1)) if step is not None else (False, 0)


def _moments(statistics: Statistics | None) -> tuple[float | None, float | None]:
    return (statistics.mean, statistics.std) if statistics is not None else (None, None)


def _infinite(name: str, tolerance: float) -> Difference:
    return Difference(name, math.inf, math.inf, math.inf, tolerance)


def _beside(step: TracedTensor, theirs: Tensor, tolerance: float) -> Row:
    assert step.value is not None
    theirs = theirs.to(step.value.device)
    if step.value.shape != theirs.shape:
        note = f"shape {list(step.shape)} against {list(theirs.shape)}"
        return Row(step, _infinite(step.label, tolerance), summarise(theirs), note)
    return Row(step, difference(step.label, step.value, theirs, tolerance), summarise(theirs))


def _rows(step: TracedTensor, theirs: Tensor, end: int, total: int) -> Tensor:
    """Of a tensor about the last of `total` tokens, what a pass that ended with token `end` had of it."""
    for axis, letter in enumerate(step.letters):
        if theirs.dim() != len(step.letters) or letter not in "TS":
            continue
        size = min(step.shape[axis], theirs.shape[axis])
        start = end - size - (total - theirs.shape[axis]) if letter == "T" else 0
        theirs = theirs.narrow(axis, max(start, 0), size)
    return theirs
