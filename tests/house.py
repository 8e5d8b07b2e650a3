"""The package's rooms. Their order is a law (test_house.py); documents/pages.py makes the README's map from it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "llama3_scratch"

# The core, at the package's root, in reading order: it imports no room.
CORE = [
    "errors",
    "config",
    "stored",
    "registry",
    "torch_internals",
    "linear",
    "cache",
    "token_ids",
    "tied",
    "model",
    "init",
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
    "serving",
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


def blocks(document: str, language: str) -> list[str]:
    """The fenced blocks of a language in a document."""
    text = (PACKAGE.parent / document).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
