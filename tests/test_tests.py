"""The tests themselves: what they touch of the code is public, and what they share lies in helper modules."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
FILES = sorted(TESTS.rglob("*.py"))

# Private names that tests touch, and why nothing public shows the same: others' own, none of ours.
PRIVATE = {
    "_actions": "argparse's own: a verb's options, shown in its documents and compared with others'",
    "_dynamo _int_mm _scaled_mm _python_dispatch": "torch's own",
    "_is_avx512_bf16_supported _is_amx_tile_supported _is_vnni_supported": "torch's own: machines that this one isn't",
    "_compute_llama3_parameters _split_whitespaces_or_nonwhitespaces": "the references' own",
    "_exit": "os._exit, public by its documentation",
}
ALLOWED = {name for names in PRIVATE for name in names.split()}


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def touched(tree: ast.Module) -> set[str]:
    """Private names of others: attributes, imports, and names that are patched as text; not the file's own."""
    nodes, found, own = list(ast.walk(tree)), set(), set()
    for node in nodes:
        if isinstance(node, ast.Attribute) and private(node.attr):
            found.add(node.attr)
            if isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
                own.add(node.attr)
        elif isinstance(node, ast.FunctionDef):
            own.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.name for alias in node.names if private(alias.name)}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("setattr", "getattr", "delattr")):
            texts = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
            found |= {part for text in texts for part in text.split(".") if private(part)}
    return found - own


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(TESTS)))
def test_a_test_touches_nothing_private(path):
    assert not touched(ast.parse(path.read_text("utf-8"))) - ALLOWED


def test_what_would_be_seen():
    code = "from a import _b\na._c()\nmonkeypatch.setattr(a, '_d', 1)\nmonkeypatch.setattr('a._e.f', 1)\na.__g__"
    assert touched(ast.parse(code)) == {"_b", "_c", "_d", "_e"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(TESTS)))
def test_what_tests_share_lies_in_helper_modules(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tests":
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            assert not {name for name in names if re.search(r"\.test_", name)}


@pytest.mark.parametrize("path", [path for path in TESTS.glob("*.py") if path.stem != "__init__"], ids=lambda p: p.stem)
def test_a_file_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text("utf-8")))
