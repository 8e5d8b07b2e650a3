"""What cog writes into the documents: source code of the package, and lists of contents."""

from __future__ import annotations

import inspect
import pkgutil
import re
from pathlib import Path


def source(name: str, start: str = "") -> None:
    """Print a function of the package as a block of code, for cog: source("model.rms_norm"); of a long one the lines
    from the one that holds `start` on."""

    lines = inspect.getsource(pkgutil.resolve_name(f"llama3_scratch.{name}")).splitlines()
    first = next(number for number, line in enumerate(lines) if start in line)
    print("```python\n" + "\n".join(lines[first:]) + "\n```")


def c_source(file: str, name: str) -> None:
    """Print a C function of native/, with the comment above it, as a block, for cog: c_source("portable.c", "dot")."""
    lines = (Path(__file__).parents[1] / "native" / file).read_text(encoding="utf-8").splitlines()
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
