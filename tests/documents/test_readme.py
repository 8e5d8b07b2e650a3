"""What the README says to type works as it says."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import runpy
import shlex

import pytest

from llama3_scratch import __main__ as package
from llama3_scratch.__main__ import verbs
from tests import test_parity_mutations as mistakes
from tests.house import PACKAGE, blocks
from tests.trace import test_compare

DOCUMENTS = ["README.md", "README.zh.md"]


def code(document: str) -> str:
    """The example in Python: the block that imports the package."""
    (example,) = (block for block in blocks(document, "python") if "import llama3_scratch" in block)
    return example


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_python_example_prints_what_its_comment_says(document, smollm2):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(code(document), {})
    assert out.getvalue().splitlines() == re.findall(r'print.*# "(.*)"', code(document))


def test_both_languages_show_the_same_example():
    plain = [re.sub(r"#.*", "", code(document)) for document in DOCUMENTS]
    assert plain[0] == plain[1]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_verb_stands_in_the_table(document):
    text = (PACKAGE.parent / document).read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `python -m llama3_scratch\.(\w+)` \|", text, re.MULTILINE)) == sorted(verbs())


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_has_the_options_that_it_is_shown_with(document):
    lines = [line for block in blocks(document, "sh") for line in block.splitlines()]
    commands = [line for line in lines if line.startswith("python -m llama3_scratch.")]
    assert len(commands) >= 6
    for command in commands:
        _, _, module, *argv = shlex.split(command, comments=True)
        importlib.import_module(module)._parser().parse_args(argv)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_script_has_the_options_that_it_is_shown_with(document):
    lines = [line for block in blocks(document, "sh") for line in block.splitlines()]
    commands = [shlex.split(line, comments=True) for line in lines if line.startswith("python scripts/")]
    assert len(commands) >= 5
    for _, script, *argv in commands:
        runpy.run_path(str(PACKAGE.parent / script))["_parser"]().parse_args(argv)


def test_the_list_of_verbs_has_two_columns_of_whole_sentences(capsys):
    assert package.main() == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "python -m" in line]
    assert len(lines) == len(verbs()) and all(line.endswith(".") for line in lines)
    assert len({re.match(r" +python -m \S+ +", line).end() for line in lines}) == 1


@pytest.mark.parametrize(
    ("document", "seen", "placed"),
    [
        ("README.md", r"^\| (\d+) mistakes ", r"each of (\d+) deliberate mistakes"),
        ("README.zh.md", r"^\| 故意犯的 (\d+) 种错", r"故意犯的 (\d+) 种错误，每一种都能在它所在的那一步被找到"),
    ],
)
def test_the_mistakes_are_counted_right(document, seen, placed):
    text = (PACKAGE.parent / document).read_text(encoding="utf-8")
    alone = [name for name in vars(mistakes) if name.endswith("_is_seen") and name != "test_mistake_is_seen"]
    assert re.findall(seen, text, re.MULTILINE) == [str(len(mistakes.MUTATIONS) + len(alone))]
    assert re.findall(placed, text) == [str(len(test_compare.PLACE))]
