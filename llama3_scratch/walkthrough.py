"""Run walkthrough.md, from weights file to text: every block of code executed, every output compared.

A block is what stands between a ```python fence and its end; what it prints must be what the ```output fence after it
shows, numbers with a point to a few digits and all else exactly. All blocks share one namespace. A block that
`needs=NAME` is left out where the module NAME isn't installed or, in capitals, the environment has no such variable.
What cog writes (source code, pulled from the package) is shown and not run.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

from llama3_scratch.checkpoint.names import DEFAULT, resolve
from llama3_scratch.documents.blocks import CodeBlock, read
from llama3_scratch.documents.notebook import notebook
from llama3_scratch.documents.runner import loads_default, run_in_view, updated, with_model
from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.system import cli
from llama3_scratch.system.writing import write_whole

log = logging.getLogger("llama3_scratch")

NAMES = {"en": "walkthrough.md", "zh": "walkthrough.zh.md"}


def make_parser() -> cli.Parser:
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


@cli.verb(make_parser)
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
    elif loads_default(cells):
        from llama3_scratch.checkpoint.fetch import download

        download(DEFAULT)
    other = options.model not in (None, DEFAULT)
    if options.pictures:
        from llama3_scratch.checkpoint.load import load
        from llama3_scratch.documents import pictures

        pictures.draw(pictures.data(load(DEFAULT)), path.parent / pictures.FOLDER)
    outputs = run_in_view(path, cells, compare=not other and not options.update)
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
