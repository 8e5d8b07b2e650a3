"""A document as a Jupyter notebook."""

from __future__ import annotations

import base64
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama3_scratch.documents.blocks import Cell, Prose
from llama3_scratch.errors import FileError

_PICTURE = re.compile(r"!\[([^\]]*)\]\((\.pictures/[^)]+)\)")
_MIME = {".svg": "image/svg+xml", ".png": "image/png"}


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
                        f"{folder / link}: not found, the notebook carries its pictures; `pictures=True` draws them"
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
