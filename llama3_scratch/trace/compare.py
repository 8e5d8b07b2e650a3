"""Two runs side by side, step by step: where do they part?

The steps of a run, with their tensors, are held against a reference (`references`). One that takes all tokens in one
pass has a row for every token, of which each step is given those that it is about.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

import torch
from torch import Tensor

from llama3_scratch.compare.difference import Difference, difference
from llama3_scratch.compare.tensor_names import FORWARD, HANDED_ON, LOGITS, MASK, TOKENS
from llama3_scratch.errors import UsageError
from llama3_scratch.trace.references import Reference
from llama3_scratch.trace.tracer import Statistics, TracedTensor, summarise


@dataclass(frozen=True)
class ComparedStep:
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


def needs(step: TracedTensor) -> bool:
    """Whether the comparison needs the step's tensor: what the lines made, and the tokens that went in.

    What passes through `forward` is what its functions made.
    """
    made = step.kind != "argument" and step.function != FORWARD
    return made or TOKENS.matches(step)


@torch.inference_mode()
def compare(steps: Sequence[TracedTensor], reference: Reference, tolerance: float) -> list[ComparedStep]:
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
    found: dict[tuple[int, str], ComparedStep] = {}
    lacking: dict[tuple[int, str], list[ComparedStep]] = defaultdict(list)
    last = nowhere = (-1, "")

    def receive(call: int | None, key: str, theirs: Tensor) -> None:
        nonlocal last
        may_lack = key == MASK.key() or key.endswith(
            ".return"
        )  # a word may do; another dtype's casts make it, or spare it
        if key not in ours and not may_lack:
            lacking[last].append(
                ComparedStep(None, _infinite(key, tolerance), summarise(theirs), "only in the other run")
            )
        same = [step for step in ours.get(key, ()) if call in (None, step.call) and step.value is not None]
        if same and same[0].dtype.is_complex and not theirs.is_complex():  # a file has complex numbers as pairs
            theirs = torch.view_as_complex(theirs)
        for step in same:
            part = theirs if call is not None else _part(step, theirs, ends[step.call], total)
            found[step.call, key] = _row(step, part, tolerance)
        if same:
            last = same[0].call, key

    rows = [ComparedStep(None, other, None) for other in reference.run(tokens_1T, total - first_logit, receive)]
    if not found:
        raise UsageError(f"{reference.name}: no step of that run is one of those traced in this one")
    rows += lacking[nowhere]
    for step in steps:
        if row := found.get((step.call, step.key)):
            rows.append(row)
        elif reference.complete and step.value is not None and step.kind == "local" and not MASK.matches(step):
            rows.append(ComparedStep(step, _infinite(step.label, tolerance), None, "only in this run"))
        rows += lacking.pop((step.call, step.key), [])
    return rows


def first_divergence(rows: Sequence[ComparedStep]) -> ComparedStep | None:
    return next((row for row in rows if row.diverges), None)


def lines(rows: Sequence[ComparedStep], full: Callable[[TracedTensor], bool]) -> Iterator[str]:
    """The comparison for a terminal: the steps that `full` chooses and those of the layer that parts first; of every
    other layer the step that differs most. Of a tensor that is only handed on, one row is shown."""
    first = first_divergence(rows)
    parted = _layer(first) if first is not None else None
    shown: list[tuple[str, ComparedStep]] = []
    for layer, group in groupby(_once(rows, first), key=_layer):
        of_layer = list(group)
        chosen = [row for row in of_layer if row is first or row.step is None or layer == parted or full(row.step)]
        if not chosen and layer is not None:
            largest = max(of_layer, key=lambda row: row.difference.mean)
            shown.append((f"… {largest.difference.name}", largest))
        shown += [(row.difference.name, row) for row in chosen]
    width = max(len(label) for label, _ in shown)
    yield f"  {'':{width}}{'this run':>15}{'the other':>20}{'|difference| / std':>25}"
    yield f"  {'':{width}}{'mean':>10}{'std':>10}{'mean':>10}{'std':>10}{'worst':>11}{'mean':>10}"
    for label, row in shown:
        numbers = [*_moments(row.step.statistics if row.step is not None else None), *_moments(row.theirs)]
        cells = "".join(f"{'' if number is None else f'{number:.3g}':>10}" for number in numbers)
        off = f"  {row.note}" if row.note else f"{row.difference.worst:11.2e}{row.difference.mean:10.2e}"
        yield f"{'≠' if row.diverges else ' '} {label:{width}}{cells}{off}"


def _once(rows: Sequence[ComparedStep], first: ComparedStep | None) -> Iterator[ComparedStep]:
    """The rows without those that say what a neighbour says: a value is returned, bound by the caller, viewed anew.

    Of such neighbours the one stays that the outermost function's line bound, and `first`.
    """

    def same(row: ComparedStep) -> tuple[object, ...]:
        step = row.step
        if step is None or row is first:
            return (row.difference.name,)
        if HANDED_ON.matches(step):
            return ("handed on", step.call)
        return (step.call, step.layer, row.theirs, row.difference.mean, row.note)

    for said, group in groupby(rows, key=same):
        if said[0] != "handed on":
            yield min(group, key=_depth)


def _layer(row: ComparedStep) -> tuple[int, int] | None:
    """The pass and the layer that a step belongs to."""
    return (row.step.call, row.step.layer) if row.step is not None and row.step.layer is not None else None


def _depth(row: ComparedStep) -> tuple[bool, int]:
    step = row.step
    return (step.kind != "local", step.key.count(".") - (step.nth > 1)) if step is not None else (False, 0)


def _moments(statistics: Statistics | None) -> tuple[float | None, float | None]:
    return (statistics.mean, statistics.std) if statistics is not None else (None, None)


def _infinite(name: str, tolerance: float) -> Difference:
    return Difference(name, math.inf, math.inf, math.inf, tolerance)


def _row(step: TracedTensor, theirs: Tensor, tolerance: float) -> ComparedStep:
    assert step.value is not None
    theirs = theirs.to(step.value.device)
    if step.value.shape != theirs.shape:
        note = f"shape {list(step.shape)} against {list(theirs.shape)}"
        return ComparedStep(step, _infinite(step.label, tolerance), summarise(theirs), note)
    return ComparedStep(step, difference(step.label, step.value, theirs, tolerance), summarise(theirs))


def _part(step: TracedTensor, theirs: Tensor, end: int, total: int) -> Tensor:
    """Of a tensor about the last of `total` tokens, what a pass that ended with token `end` had of it."""
    for axis, letter in enumerate(step.letters):
        if theirs.dim() != len(step.letters) or letter not in "TS":
            continue
        size = min(step.shape[axis], theirs.shape[axis])
        start = end - size - (total - theirs.shape[axis]) if letter == "T" else 0
        theirs = theirs.narrow(axis, max(start, 0), size)
    return theirs
