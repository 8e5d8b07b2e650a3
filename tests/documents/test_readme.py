"""What the README and the rooms' pages say to type works as they say."""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import importlib
import io
import re
import runpy
import shlex

import pytest

from llama3_scratch import __main__ as package
from llama3_scratch.__main__ import verbs
from tests import mutations as mistakes
from tests.documents.pages import PAGES
from tests.house import PACKAGE, blocks
from tests.trace.places import PLACE


def blocks_of_code(document: str) -> list[str]:
    """The examples in Python: the blocks that import the package."""
    return [block for block in blocks(document, "python") if "import llama3_scratch" in block]


SHELL = [page for page in PAGES if "```sh" in (PACKAGE.parent / page).read_text(encoding="utf-8")]
PYTHON = [page for page in PAGES if "import llama3_scratch" in (PACKAGE.parent / page).read_text(encoding="utf-8")]
PYTHON = [page for page in PYTHON if blocks_of_code(page)]


def test_the_readmes_show_an_example_in_python():
    assert {"README.md", "README.zh.md", "llama3_scratch/inference/README.md"} <= set(PYTHON)


@functools.cache
def printed(code: str) -> list[str]:
    """What an example prints, without its comments: those of a page in Chinese are the same."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(code, {})
    return out.getvalue().splitlines()


@pytest.mark.parametrize("document", PYTHON)
def test_the_python_examples_print_what_their_comments_say(document, smollm2):
    for example in blocks_of_code(document):
        assert printed(ast.unparse(ast.parse(example))) == re.findall(r'print.*# "(.*)"', example)


@pytest.mark.parametrize("document", ["README.md", "README.zh.md"])
def test_every_verb_stands_in_the_table(document):
    text = (PACKAGE.parent / document).read_text(encoding="utf-8")
    (table,) = re.findall(r"^\| `python -m llama3_scratch[.]….*?\n\n", text, re.MULTILINE | re.DOTALL)
    assert re.findall(r"^\| \[`(\w+)`\]", table, re.MULTILINE) == list(verbs())


def parser_of(scope: dict) -> argparse.ArgumentParser:
    return scope["make_parser"]()


@pytest.mark.parametrize("document", SHELL)
def test_every_command_has_the_options_that_it_is_shown_with(document):
    """Verbs and scripts, each line as it stands; a line may get its input from another command."""
    lines = [line for block in blocks(document, "sh") for line in block.splitlines()]
    typed = [line[line.index("python ") :] for line in lines if re.search(r"(^|[|] )python (-m llama3|scripts/)", line)]
    for command in typed:
        words = shlex.split(command, comments=True)[1:]
        scope = (
            vars(importlib.import_module(words[1])) if words[0] == "-m" else runpy.run_path(PACKAGE.parent / words[0])
        )
        parser_of(scope).parse_args(words[2 if words[0] == "-m" else 1 :])
    assert typed or document.startswith("llama3_scratch/system/")


def test_the_list_of_verbs_has_two_columns_of_whole_sentences(capsys):
    assert package.main() == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "python -m" in line]
    assert len(lines) == len(verbs()) and all(line.endswith(".") for line in lines)
    assert len({re.match(r" +python -m \S+ +", line).end() for line in lines}) == 1


@pytest.mark.parametrize(
    ("page", "seen", "placed"),
    [
        ("README.md", r"^\| (\d+) mistakes ", r"each of (\d+) deliberate mistakes"),
        ("README.zh.md", r"^\| 故意犯的 (\d+) 种错", r"故意犯的 (\d+) 种错误，每一种都能在它所在的那一步被找到"),
    ],
)
def test_the_mistakes_are_counted_right(page, seen, placed):
    front, compared, traced = (
        (folder / page).read_text(encoding="utf-8")
        for folder in (PACKAGE.parent, PACKAGE / "compare", PACKAGE / "trace")
    )
    tests = (PACKAGE.parent / "tests" / "test_parity_mutations.py").read_text(encoding="utf-8")
    alone = set(re.findall(r"def (test_\w+_is_seen)\(", tests)) - {"test_mistake_is_seen"}
    for text in (front, compared):
        assert re.findall(seen, text, re.MULTILINE) == [str(len(mistakes.MUTATIONS) + len(alone))]
    assert re.findall(placed, traced) == [str(len(PLACE))]
