"""What a traced run cost, by function and by layer, beside the least that this machine could do it in.

A pass can't be quicker than its bytes can be read, nor than its products can be multiplied (the roofline model of
doi:10.1145/1498765.1498785). Bytes are counted as if no tensor stayed in a cache: one that does reaches over 100 %.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from statistics import median

from llama3_scratch.system.machine import MachineLimits
from llama3_scratch.system.memory import format_bytes
from llama3_scratch.trace.cost import Cost
from llama3_scratch.trace.tracer import TracedTensor

_COLUMNS = ("FLOP", "moved", "time", "at least", "limited by", "reached")


def beside(cost: Cost, machine: MachineLimits) -> str:
    """A step's FLOPs, bytes and time, and how near that is to the machine's limit."""
    least = machine.seconds(cost.flops, cost.bytes)
    took = f"{_time(cost.seconds)}, {least / cost.seconds:.0%} of" if cost.seconds else f"at least {_time(least)} by"
    return f"{cost.flops:,} FLOPs, {cost.bytes:,} bytes, {took} the {machine.bound(cost.flops, cost.bytes)} limit"


def lines(steps: Sequence[TracedTensor], machine: MachineLimits | None) -> Iterator[str]:
    """The sums by function, the dearest first, and by layer, equal ones as one row with their median time.

    Without a machine there are no limits, and without values (on the meta device) no times.
    """
    by_function: dict[str, Cost] = defaultdict(Cost)
    by_layer: dict[int | None, Cost] = defaultdict(Cost)
    for step in steps:
        by_function[step.function] += step.cost
        by_layer[step.layer] += step.cost
    dear = sorted(by_function.items(), key=lambda item: (item[1].seconds, item[1].flops, item[1].bytes), reverse=True)
    named = [(name, cost) for name, cost in dear if cost.bytes]
    rest = by_layer.pop(None, Cost())
    named += [("", Cost()), *_folded(by_layer), ("outside of layers", rest)]
    named.append(("all", sum(by_function.values(), Cost())))
    timed = named[-1][1].seconds > 0
    shown = [True, True, timed, machine is not None, machine is not None, machine is not None and timed]
    width = max(len(name) for name, _ in named)
    for name, cells in [("", _COLUMNS), *((name, _cells(cost, machine)) for name, cost in named)]:
        columns = (f"{cell:>13}" for cell, there in zip(cells, shown, strict=True) if there)
        yield f"  {name:{width}}{''.join(columns) if name or cells is _COLUMNS else ''}".rstrip()


def _folded(by_layer: dict[int | None, Cost]) -> Iterator[tuple[str, Cost]]:
    """Neighbouring layers of the same FLOPs and bytes as one."""
    runs: list[list[tuple[int | None, Cost]]] = []
    for layer, cost in by_layer.items():
        before = runs[-1][-1][1] if runs else None
        if before is not None and (before.flops, before.bytes) == (cost.flops, cost.bytes):
            runs[-1].append((layer, cost))
        else:
            runs.append([(layer, cost)])
    for run in runs:
        (first, cost), (last, _) = run[0], run[-1]
        seconds = median(cost.seconds for _, cost in run)
        name = f"layers.{first}" if first == last else f"layers.{first}–{last}, each"
        yield name, Cost(cost.flops, cost.bytes, seconds)


def _cells(cost: Cost, machine: MachineLimits | None) -> tuple[str, ...]:
    flops = next((f"{cost.flops / unit:.2f} {sign}" for unit, sign in _UNITS if cost.flops >= unit), str(cost.flops))
    least = machine.seconds(cost.flops, cost.bytes) if machine is not None else 0.0
    limit = machine.bound(cost.flops, cost.bytes) if machine is not None else ""
    reached = f"{least / cost.seconds:.0%}" if cost.seconds else ""
    return flops, format_bytes(cost.bytes), _time(cost.seconds), _time(least), limit, reached


_UNITS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def _time(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:,.2f} s"
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.1f} µs"
