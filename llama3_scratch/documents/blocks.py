"""The cells of a document that is run: its prose, and its blocks of code with what they're said to print."""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path

from llama3_scratch.errors import FileError
from llama3_scratch.system.files import require_file

_FENCE = re.compile(r"(`{3,})(\w*)[ ]*(.*)")


@dataclass(frozen=True)
class Prose:
    """Text between blocks, what cog wrote in it included and cog's own marks left out."""

    text: str


@dataclass(frozen=True)
class CodeBlock:
    """Code of the document: `line` is its first one, `output` what it's said to print, on the lines from `shown` up to
    `end` (where it would stand if it printed nothing)."""

    line: int
    code: str
    needs: str
    output: str
    shown: int
    end: int

    @property
    def missing(self) -> str:
        """Why the block can't run here, "" where it can."""
        if self.needs.isupper():
            return "" if os.environ.get(self.needs) else f"{self.needs} isn't set"
        return "" if not self.needs or importlib.util.find_spec(self.needs) else f"{self.needs} isn't installed"


Cell = Prose | CodeBlock


def read(path: Path) -> list[Cell]:
    """The document's cells in order. Raises FileError, with the line, for a fence that isn't closed or is misplaced."""
    require_file(path, "a document to run")
    lines = path.read_text(encoding="utf-8").splitlines()
    cells: list[Cell] = []
    prose: list[str] = []
    at, generated, marks = 0, False, False  # within what cog wrote; within its instructions

    def fenced(opened: int) -> int:
        ticks = _FENCE.match(lines[opened])
        assert ticks
        for end in range(opened + 1, len(lines)):
            if lines[end].rstrip() == ticks[1]:
                return end
        raise FileError(f"{path}:{opened + 1}: this block has no end, expected a line of {ticks[1]}")

    while at < len(lines):
        line = lines[at]
        fence = _FENCE.match(line)
        if "[[[cog" in line:
            generated = marks = True
        if marks or "[[[end]]]" in line:
            generated &= "[[[end]]]" not in line
            marks &= "]]]" not in line
            at += 1
        elif not fence:
            prose.append(line)
            at += 1
        elif generated or fence[2] not in ("python", "output"):
            end = fenced(at)
            prose += lines[at : end + 1]
            at = end + 1
        elif fence[2] == "output":
            raise FileError(f"{path}:{at + 1}: this output follows no code, expected a ```python block before it")
        else:
            if any(prose):
                cells.append(Prose("\n".join(prose).strip("\n")))
            prose = []
            end = fenced(at)
            after = next((i for i in range(end + 1, len(lines)) if lines[i].strip()), len(lines))
            follows = _FENCE.match(lines[after]) if after < len(lines) else None
            has_output = follows is not None and follows[2] == "output"
            shown = fenced(after) if has_output else end
            output = "".join(f"{text}\n" for text in lines[after + 1 : shown]) if has_output else ""
            code = "\n".join(lines[at + 1 : end])
            cells.append(CodeBlock(at + 2, code, fence[3].removeprefix("needs="), output, end + 1, shown + 1))
            at = shown + 1
    return [*cells, Prose("\n".join(prose).strip("\n"))] if any(prose) else cells


def title_of(cell: Cell) -> str:
    """The last heading of a section in a piece of prose, "" where none begins there."""
    found = re.findall(r"^#{1,2} (.+)$", cell.text, re.MULTILINE) if isinstance(cell, Prose) else []
    return found[-1] if found else ""
