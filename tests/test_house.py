"""The house: imports go one way, the core stays small, documents hold no generated text that is out of date."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys

import pytest

from tests import house


def test_every_folder_is_a_room():
    assert {house.room(module) for module in house.modules()} == {"the core", *house.ROOMS, "a verb"}


@pytest.mark.parametrize("module", house.modules())
def test_a_room_imports_only_those_above_it_and_no_verb_another(module):
    order = ["the core", *house.ROOMS, "a verb"]
    above = order[: order.index(house.room(module))]
    for imported in house.imports(module):
        if house.room(imported) == house.room(module):
            assert house.room(module) != "a verb", f"{module} imports the verb {imported}"
        else:
            assert house.room(imported) in above, f"{module} imports {imported}"


def test_no_imports_go_in_a_circle():
    graph = graphlib.TopologicalSorter({module: house.imports(module) for module in house.modules()})
    graph.prepare()  # raises CycleError, which names the circle


def test_the_core_is_about_450_lines_and_knows_nothing_of_files():
    core = ("linear", "cache", "model")
    lines = sum(len((house.PACKAGE / f"{module}.py").read_text().splitlines()) for module in core)
    assert lines <= 500
    for module in core:
        assert house.imports(module) <= set(house.CORE)


@pytest.mark.parametrize("verb", house.VERBS)
def test_a_verb_is_a_parser_and_a_call(verb):
    assert len((house.PACKAGE / f"{verb}.py").read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize("documents", ["README*.md */README*.md llama3_scratch/*/README*.md", "walkthrough*.md"])
def test_generated_parts_of_documents_are_current(documents):
    root = house.PACKAGE.parent
    found = [str(path.relative_to(root)) for pattern in documents.split() for path in sorted(root.glob(pattern))]
    command = [sys.executable, "-m", "cogapp", "--check", "-P", "-I", ".", *found]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\nrun: python -m cogapp -r -P -I . {documents}"


def test_no_text_is_in_the_locales_encoding():
    for path in [*house.PACKAGE.rglob("*.py"), *(house.PACKAGE.parent / "scripts").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            call = ast.unparse(node) if isinstance(node, ast.Call) else ""
            if re.match(r"[^(]*(^|[.])open[(]|.*[.](read_text|write_text)[(]|os[.]fdopen", call):
                assert re.search(r"encoding=|, ?'[rwax+]*b|open[(]'[rwax+]*b|os[.]O_", call), f"{path.name}: {call}"
            assert not re.match(r"subprocess[.].*(text|universal_newlines)=True", call), f"{path.name}: {call}"


def _said(node: ast.AST) -> list[str]:
    """The texts within the code that a person may read: no docstrings, no definitions of flags, no words of commands
    of other programs, which are flags and nothing else."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return []
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("add_argument"):
        return []
    if isinstance(node, ast.JoinedStr):
        return [part.value for part in node.values if isinstance(part, ast.Constant)]
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and not re.fullmatch(r"--[\w-]+", node.value):
        return [node.value]
    return [text for child in ast.iter_child_nodes(node) for text in _said(child)]


WITH_FLAGS = ("system.cli", "terminal.flags", "trace.flags", "training.flags", "checkpoint.fetch")
IN_ROOMS = [module for module in house.modules() if house.room(module) != "a verb" and module not in WITH_FLAGS]


@pytest.mark.parametrize("module", IN_ROOMS)
def test_a_room_names_settings_and_no_flags(module):
    """A caller from Python has none: `max_seq_len` in backquotes is told as a flag where there are flags."""
    found = [text for text in _said(house.tree(module)) if re.search(r"(?<![\w-])--[a-z]", text)]
    assert not found
