"""A document run from its first line to its last: every block of code executed, every output compared.

A block is what stands between a ```python fence and its end; what it prints must be what the ```output fence after it
shows, numbers with a point to a few digits and all else exactly. All blocks share one namespace. A block that
`needs=NAME` is left out where the module NAME isn't installed or, in capitals, the environment has no such variable.
What cog writes (source code, pulled from the package) is shown and not run.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import re
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llama3_scratch.checkpoint.names import DEFAULT
from llama3_scratch.documents.blocks import Cell, CodeBlock, Prose, title_of
from llama3_scratch.errors import Llama3Error, MismatchError, UsageError
from llama3_scratch.system.progress import steps_bar

log = logging.getLogger("llama3_scratch")

_LOAD = f'l3.load("{DEFAULT}")'
_FLOAT = re.compile(r"-?(?:\d+\.\d*(?:e[-+]?\d+)?|\d+e[-+]?\d+)")


def run(path: Path, cells: Sequence[Cell], *, compare: bool = True) -> Iterator[str | None]:
    """Execute the blocks in order; yield for each cell what it printed, None where nothing ran.

    Raises MismatchError, with the document's line, for an assertion that fails and, if `compare`, for an output that
    isn't the one shown; Llama3Error for any other exception of a block.
    """
    namespace: dict[str, Any] = {"__name__": "walkthrough"}
    for cell in cells:
        if isinstance(cell, Prose):
            yield None
            continue
        if cell.missing:
            log.info("%s:%d: left out, %s", path.name, cell.line, cell.missing)
            yield None
            continue
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            try:
                # As many empty lines before it as there are lines above: a traceback shows the document's own.
                exec(compile("\n" * (cell.line - 1) + cell.code, str(path), "exec"), namespace)
            except Exception as error:
                raise _failed(path, cell, error) from error
        if compare and (differs := difference(printed.getvalue(), cell.output)):
            raise MismatchError(f"{path}:{cell.line}: {differs}")
        yield printed.getvalue()


def difference(printed: str, shown: str) -> str:
    """How what a block printed differs from what the document shows, in a sentence; "" where it doesn't."""
    got, wanted = printed.splitlines(), shown.splitlines()
    for number, (ours, theirs) in enumerate(zip(got, wanted, strict=False), 1):
        if not _same(ours, theirs):
            return f"line {number} of the output is {ours!r}, the document shows {theirs!r}"
    if len(got) != len(wanted):
        return f"the output has {len(got)} lines, the document shows {len(wanted)}"
    return ""


def _same(ours: str, theirs: str) -> bool:
    """Whether two lines are equal but for the last digits of their floats and for how far those are padded."""
    if _FLOAT.sub("", ours).split() != _FLOAT.sub("", theirs).split():
        return False
    pairs = zip(_FLOAT.findall(ours), _FLOAT.findall(theirs), strict=True)
    return all(math.isclose(float(a), float(b), rel_tol=2e-3, abs_tol=2e-4) for a, b in pairs)


def _failed(path: Path, block: CodeBlock, error: Exception) -> Llama3Error:
    """The error with the block's line that led to it, even where a function of an earlier block raised it."""
    lines = block.code.splitlines()
    frames = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    numbers = [error.lineno] if isinstance(error, SyntaxError) else frames
    line = next((n for n in reversed(numbers) if n and 0 <= n - block.line < len(lines)), block.line)
    said = " ".join(f"{type(error).__name__}: {error}".removesuffix(": ").split())
    kind = MismatchError if isinstance(error, AssertionError) else Llama3Error
    return kind(f"{path}:{line}: {lines[line - block.line].strip()}: {said}")


def with_model(cells: Sequence[Cell], model: str) -> list[Cell]:
    """The cells with another model in the place of the default one."""
    if not loads_default(cells):
        raise UsageError(f"`model`: the document has no {_LOAD} that another model could take the place of")
    other = f"l3.load({model!r})"
    return [
        replace(cell, code=cell.code.replace(_LOAD, other)) if isinstance(cell, CodeBlock) else cell for cell in cells
    ]


def loads_default(cells: Sequence[Cell]) -> bool:
    return any(isinstance(cell, CodeBlock) and _LOAD in cell.code for cell in cells)


def updated(text: str, cells: Sequence[Cell], outputs: Sequence[str | None]) -> str:
    """The document with what its blocks printed in the place of what it showed."""
    lines = text.splitlines()
    for cell, output in reversed(list(zip(cells, outputs, strict=True))):
        if isinstance(cell, CodeBlock) and output is not None:
            lines[cell.shown : cell.end] = ["", "```output", *output.splitlines(), "```"] if output else []
    return "\n".join(lines) + "\n"


def run_in_view(path: Path, cells: Sequence[Cell], *, compare: bool) -> list[str | None]:
    """What every cell printed; which section runs is said on stderr, since all of them take a minute or two."""
    titles = [title_of(cell) for cell in cells]
    outputs: list[str | None] = []
    running = run(path, cells, compare=compare)
    with steps_bar(0, len(cells)) as show:
        for number, title in enumerate(titles):
            if title:
                show(number, title)
            outputs.append(next(running))
        show(len(cells), "done")
    return outputs
