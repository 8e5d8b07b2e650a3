"""The package's rooms. Their order is a law (test_house.py), and the README's map is made from it."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "llama3_scratch"

# The core, at the package's root, in reading order: it imports no room.
CORE = [
    "errors",
    "config",
    "stored",
    "registry",
    "linear",
    "cache",
    "token_ids",
    "tied",
    "model",
    "init",
    "torch_internals",
]

# The rooms, which are folders: one imports the core and those above it. Their verbs stand at the root again.
ROOMS = [
    "native",
    "system",
    "text",
    "params",
    "checkpoint",
    "caches",
    "data",
    "inference",
    "terminal",
    "compare",
    "trace",
    "evaluation",
    "benchmark",
    "training",
    "documents",
]


def modules() -> list[str]:
    """Every module of the package: `model`, `text.dialog`, …"""
    found = [path.relative_to(PACKAGE).with_suffix("") for path in sorted(PACKAGE.rglob("*.py"))]
    return [".".join(path.parts) for path in found if path.stem not in ("__init__", "__main__")]


VERBS = [module for module in modules() if "." not in module and module not in CORE]


def tree(module: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))


def imports(module: str) -> set[str]:
    """The package's modules that `module` imports, anywhere in it."""
    known, found = set(modules()), set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "llama3_scratch":
            inner = node.module.removeprefix("llama3_scratch").removeprefix(".")
            for alias in node.names:
                longer = f"{inner}.{alias.name}".removeprefix(".")
                found.add(longer if longer in known else inner)
    return found


def room(module: str) -> str:
    """`text` of `text.dialog`; `the core` and `a verb` of what stands at the root."""
    return module.partition(".")[0] if "." in module else "the core" if module in CORE else "a verb"


def about(module: str) -> str:
    """The first line of a module's docstring."""
    return (ast.get_docstring(tree(module)) or "").partition("\n\n")[0].replace("\n", " ")


def readme_map() -> str:
    """The map: a line a module, with the first line of its docstring."""
    lines = []
    for title in ("the core", *ROOMS, "a verb"):
        inside = CORE if title == "the core" else [module for module in modules() if room(module) == title]
        lines += ["", f"**{title}**", "", "| module | what it is |", "|---|---|"]
        lines += [f"| [`{m}`](llama3_scratch/{m.replace('.', '/')}.py) | {about(m)} |" for m in inside]
    return "\n".join(lines[1:])
