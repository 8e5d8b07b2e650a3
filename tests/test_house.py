"""The house: imports go one way, the core stays small, documents hold no generated text that is out of date."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

import pytest

from tests import house


def test_every_module_has_its_place():
    there = {
        str(path.relative_to(house.PACKAGE).with_suffix("")).replace("/", ".") for path in house.PACKAGE.rglob("*.py")
    }
    there = {name for name in there if not name.endswith(("__init__", "__main__"))}
    assert there == set(house.ORDER)


@pytest.mark.parametrize("module", house.ORDER)
def test_imports_go_one_way(module):
    above = house.ORDER[: house.ORDER.index(module)]
    assert house.imports(module) <= set(above)


def test_the_core_is_about_450_lines_and_knows_nothing_of_files():
    core = ("linear", "cache", "model")
    lines = sum(len((house.PACKAGE / f"{module}.py").read_text().splitlines()) for module in core)
    assert lines <= 500
    for module in core:
        assert house.imports(module) <= set(house.ROOMS["The core: read this first"])


@pytest.mark.parametrize("document", ["README.md", "README.zh.md", "walkthrough.md", "walkthrough.zh.md"])
def test_generated_parts_of_documents_are_current(document):
    command = [sys.executable, "-m", "cogapp", "--check", "-P", "-I", ".", document]
    done = subprocess.run(command, cwd=house.PACKAGE.parent, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\nrun: python -m cogapp -r -P -I . {document}"


def test_no_text_is_in_the_locales_encoding():
    for path in [*house.PACKAGE.rglob("*.py"), *(house.PACKAGE.parent / "scripts").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            call = ast.unparse(node) if isinstance(node, ast.Call) else ""
            if re.match(r"[^(]*(^|[.])open[(]|.*[.](read_text|write_text)[(]|os[.]fdopen", call):
                assert re.search(r"encoding=|, ?'[rwax+]*b|open[(]'[rwax+]*b|os[.]O_", call), f"{path.name}: {call}"
            assert not re.match(r"subprocess[.].*(text|universal_newlines)=True", call), f"{path.name}: {call}"
