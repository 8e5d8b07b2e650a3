"""Run walkthrough.md, from weights file to text: every block of code executed, every output compared.

A block is what stands between a ```python fence and its end; what it prints must be what the ```output fence after it
shows, numbers with a point to a few digits and all else exactly. All blocks share one namespace. A block that
`needs=NAME` is left out where the module NAME isn't installed or, in capitals, the environment has no such variable.
What cog writes (source code, pulled from the package) is shown and not run.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import importlib.util
import inspect
import io
import json
import logging
import math
import os
import pkgutil
import re
import textwrap
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llama3_scratch.checkpoint.names import DEFAULT, resolve
from llama3_scratch.errors import FileError, Llama3Error, MismatchError, UsageError
from llama3_scratch.system import cli
from llama3_scratch.system.files import require_file, write_whole
from llama3_scratch.system.progress import steps_bar

log = logging.getLogger("llama3_scratch")

NAMES = {"en": "walkthrough.md", "zh": "walkthrough.zh.md"}
_LOAD = f'l3.load("{DEFAULT}")'
_FENCE = re.compile(r"(`{3,})(\w*)[ ]*(.*)")
_FLOAT = re.compile(r"-?(?:\d+\.\d*(?:e[-+]?\d+)?|\d+e[-+]?\d+)")
_PICTURE = re.compile(r"!\[([^\]]*)\]\((\.pictures/[^)]+)\)")
_MIME = {".svg": "image/svg+xml", ".png": "image/png"}


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


def source(name: str, start: str = "") -> None:
    """Print a function of the package as a block of code, for cog: source("model.rms_norm"); of a long one the lines
    from the one that holds `start` on."""

    lines = inspect.getsource(pkgutil.resolve_name(f"llama3_scratch.{name}")).splitlines()
    first = next(number for number, line in enumerate(lines) if start in line)
    print("```python\n" + "\n".join(lines[first:]) + "\n```")


def c_source(file: str, name: str) -> None:
    """Print a C function of native/, with the comment above it, as a block, for cog: c_source("portable.c", "dot")."""
    lines = (Path(__file__).parent / "native" / file).read_text(encoding="utf-8").splitlines()
    begin = next(i for i, line in enumerate(lines) if re.match(rf"\S.*\b{name}\(.*\{{$", line))
    end = lines.index("}", begin)
    while lines[begin - 1].startswith(("/*", " *")):
        begin -= 1
    print("\n".join(["```c", *lines[begin : end + 1], "```"]))


def contents(path: str | Path) -> None:
    """Print the document's sections as links, for cog."""
    titles = re.findall(r"^## (.+)$", Path(path).read_text(encoding="utf-8"), re.MULTILINE)
    # GitHub's anchors: lower case, without punctuation, a hyphen for each space
    anchors = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
    print(" ·\n".join(f"[{title}](#{anchor})" for title, anchor in zip(titles, anchors, strict=True)))


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
    if not _loads(cells):
        raise UsageError(f"--model: the document has no {_LOAD} that another model could take the place of")
    other = f"l3.load({model!r})"
    return [
        replace(cell, code=cell.code.replace(_LOAD, other)) if isinstance(cell, CodeBlock) else cell for cell in cells
    ]


def _loads(cells: Sequence[Cell]) -> bool:
    return any(isinstance(cell, CodeBlock) and _LOAD in cell.code for cell in cells)


def updated(text: str, cells: Sequence[Cell], outputs: Sequence[str | None]) -> str:
    """The document with what its blocks printed in the place of what it showed."""
    lines = text.splitlines()
    for cell, output in reversed(list(zip(cells, outputs, strict=True))):
        if isinstance(cell, CodeBlock) and output is not None:
            lines[cell.shown : cell.end] = ["", "```output", *output.splitlines(), "```"] if output else []
    return "\n".join(lines) + "\n"


def notebook(cells: Sequence[Cell], outputs: Sequence[str | None], folder: Path) -> dict[str, Any]:
    """The cells as a Jupyter notebook (nbformat 4.5) that carries its pictures, which lie in `folder`."""
    written: list[dict[str, Any]] = []
    for cell, output in zip(cells, outputs, strict=True):
        common = {"id": f"cell-{len(written)}", "metadata": {}}
        if isinstance(cell, Prose):
            attached = {}
            for _, link in _PICTURE.findall(cell.text):
                if not (folder / link).exists():
                    raise FileError(
                        f"{folder / link}: not found, the notebook carries its pictures; --pictures draws them"
                    )
                data = base64.b64encode((folder / link).read_bytes()).decode()
                attached[Path(link).name] = {_MIME[Path(link).suffix]: data}
            text = _PICTURE.sub(lambda found: f"![{found[1]}](attachment:{Path(found[2]).name})", cell.text)
            more = {"attachments": attached} if attached else {}
            written.append({"cell_type": "markdown", **common, **more, "source": text})
        else:
            source = cell.code
            if cell.needs:  # elsewhere it may be missing
                met = f"os.environ.get({cell.needs!r})" if cell.needs.isupper() else f"util.find_spec({cell.needs!r})"
                module = "import os" if cell.needs.isupper() else "from importlib import util"
                source = f"{module}\n\nif {met}:\n{textwrap.indent(cell.code, '    ')}"
            printed = [{"output_type": "stream", "name": "stdout", "text": output}] if output else []
            count = None if output is None else 1 + sum(c["cell_type"] == "code" for c in written)
            code = {"cell_type": "code", **common, "execution_count": count, "outputs": printed, "source": source}
            written.append(code)
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": metadata, "cells": written}


def _run_in_view(path: Path, cells: Sequence[Cell], *, compare: bool) -> list[str | None]:
    """What every cell printed; which section runs is said on stderr, since all of them take a minute or two."""
    titles = [_title(cell) for cell in cells]
    outputs: list[str | None] = []
    running = run(path, cells, compare=compare)
    with steps_bar(0, len(cells)) as show:
        for number, title in enumerate(titles):
            if title:
                show(number, title)
            outputs.append(next(running))
        show(len(cells), "done")
    return outputs


def _title(cell: Cell) -> str:
    """The last heading of a section in a piece of prose, "" where none begins there."""
    found = re.findall(r"^#{1,2} (.+)$", cell.text, re.MULTILINE) if isinstance(cell, Prose) else []
    return found[-1] if found else ""


def _parser() -> cli.Parser:
    parser = cli.Parser("walkthrough", (__doc__ or "").partition("\n\n")[0])
    parser.add_argument("document", nargs="?", metavar="FILE", help="another document to run in the same way")
    parser.add_argument("--language", choices=tuple(NAMES), default="en", help="which of the two (%(default)s)")
    parser.add_argument(
        "--model",
        metavar="PATH",
        help=f"run it on another model than {DEFAULT}, in Meta's layout: what it asserts must hold there too, its "
        "outputs aren't compared",
    )
    parser.add_argument("--notebook", metavar="FILE.ipynb", help="write it as a Jupyter notebook, outputs included")
    parser.add_argument("--pictures", action="store_true", help="draw its pictures again, with the default model")
    parser.add_argument("--update", action="store_true", help="write what the blocks print into the document")
    return parser


@cli.verb(_parser)
def main(options: argparse.Namespace) -> int:
    path = Path(options.document or Path(__file__).parents[1] / NAMES[options.language])
    if not options.document and not path.exists():
        raise FileError(
            f"{path}: not found; {path.name} lies beside the package in a checkout and isn't installed with it, "
            "give its path"
        )
    if options.notebook and Path(options.notebook).suffix != ".ipynb":
        raise UsageError(f"--notebook {options.notebook}: expected a name that ends in .ipynb")
    if options.notebook and not Path(options.notebook).absolute().parent.is_dir():
        raise FileError(f"{options.notebook}: can't be written: its folder is not there")
    cells = read(path)
    if options.model not in (None, DEFAULT):
        if options.update:
            raise UsageError("--update: the document shows the outputs of the default model, leave out --model")
        cells = with_model(cells, str(resolve(options.model)))
    elif _loads(cells):
        from llama3_scratch.download import download

        download(DEFAULT)
    other = options.model not in (None, DEFAULT)
    if options.pictures:
        from llama3_scratch.checkpoint.load import load
        from llama3_scratch.documents import pictures

        pictures.draw(pictures.data(load(DEFAULT)), path.parent / pictures.FOLDER)
    outputs = _run_in_view(path, cells, compare=not other and not options.update)
    if options.update:
        write_whole(path, updated(path.read_text(encoding="utf-8"), cells, outputs))
    if options.notebook:
        made = notebook(cells, outputs, path.parent)
        write_whole(Path(options.notebook), json.dumps(made, indent=1, ensure_ascii=False) + "\n")
    ran = sum(output is not None for output in outputs)
    blocks = sum(isinstance(cell, CodeBlock) for cell in cells)
    print(f"{path.name}: {ran} of {blocks} blocks ran" + ("" if other else ", their outputs are those shown"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
