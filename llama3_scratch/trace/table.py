"""The trace for a terminal: the line of code, then the tensor that it made."""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TextIO

import torch

from llama3_scratch.compare.tensor_names import HANDED_ON, LAYER_OUTPUT
from llama3_scratch.stored import Params, dtype_name
from llama3_scratch.system.machine import MachineLimits
from llama3_scratch.trace.roofline import beside
from llama3_scratch.trace.tracer import Statistics, TracedTensor

log = logging.getLogger("llama3_scratch")


@dataclass
class Table:
    """Prints each step as it happens: the chosen layers in full, of every other layer what it hands on.

    `layers` are those in full; `names` are the tensors to show, all where it's empty; `values` prints the tensors too,
    `machine` what each line took, beside what that machine can do; `files` says where each weight was read from.
    """

    params: Params
    layers: Collection[int] = (0,)
    names: Collection[str] = ()
    values: bool = False
    machine: MachineLimits | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    out: TextIO = field(default_factory=lambda: sys.stdout)
    _heading: tuple[int, str, str] | None = None
    _source: tuple[int, str] | None = None
    _folded: bool = False  # the layer before had one line

    def full(self, step: TracedTensor) -> bool:
        """Whether the step is shown as a step of its own."""
        if self.names and _shown_as(step) not in self.names and step.name not in self.names:
            return False
        return step.layer is None or step.layer in self.layers

    def show(self, step: TracedTensor) -> None:
        handed_on = HANDED_ON.matches(step)
        if handed_on and self._folded:
            return
        if self.full(step):
            self._step(step)
            self._folded = False
        elif LAYER_OUTPUT.matches(step) and not self.names:
            self._heading, self._folded = None, True
            print(f"{step.path}  {HANDED_ON.name}  {_numbers(step.statistics)}".rstrip(), file=self.out)

    def say_unknown(self, steps: Sequence[TracedTensor]) -> None:
        """Warn of chosen names that no step had."""
        there = {name: None for step in steps for name in (_shown_as(step), step.name)}
        if unknown := [name for name in self.names if name not in there]:
            log.warning("no step is called %s; there are %s", ", ".join(unknown), ", ".join(there))

    def _step(self, step: TracedTensor) -> None:
        heading = (step.call, step.path, step.function)
        if heading != self._heading:
            self._heading, self._source = heading, None
            where = f"{step.path} · " if step.path else ""
            print(f"\n── pass {step.call} · {where}{step.function} ──", file=self.out)
        if step.kind != "argument" and (step.line, step.source) != self._source:
            self._source = (step.line, step.source)
            print(f"{step.line:4}  {step.source}", file=self.out)
        sign = {"argument": "in ", "return": "out", "local": "   "}[step.kind]
        parts = [f"   {sign} {_shown_as(step)}  [{step.axes}]  {dtype_name(step.dtype)}"]
        if step.kind != "argument":
            parts.append(_numbers(step.statistics))
            if self.machine is not None and step.cost.bytes:
                parts.append(beside(step.cost, self.machine))
        print("  ".join(part for part in parts if part), file=self.out)
        for key in step.weights:
            weight = self.params[key]
            where = f" from {self.files[key]}" if key in self.files else ""
            print(f"        ← {key} {list(weight.shape)} {dtype_name(weight.dtype)}{where}", file=self.out)
        if self.values and step.value is not None and step.kind != "argument":
            text = torch.Tensor.__repr__(step.value)
            print("\n".join(f"        {line}" for line in text.splitlines()), file=self.out)


def print_section(title: str, lines: Iterable[str]) -> None:
    print(f"\n── {title} ──", *lines, sep="\n")


def log_section(title: str, lines: Iterable[str]) -> None:
    """`print_section` on stderr, where stdout is a machine's."""
    log.info("\n%s", "\n".join([f"── {title} ──", *lines]))


def _shown_as(step: TracedTensor) -> str:
    """A returned tensor has no name of its own and goes by its function's."""
    return step.function if step.kind == "return" else step.name


def _numbers(statistics: Statistics | None) -> str:
    if statistics is None:
        return ""
    s = statistics
    return f"min {s.min:.4g}  max {s.max:.4g}  mean {s.mean:.4g}  std {s.std:.4g}  NaN {s.nan}  Inf {s.inf}"
