"""The walkthrough runs, prints what it shows and links what is drawn, and a document that lies is caught."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import re

import nbformat
import pytest

from llama3_scratch import load, walkthrough
from llama3_scratch.documents import pictures, runner
from llama3_scratch.documents.blocks import CodeBlock, read
from llama3_scratch.documents.notebook import notebook
from llama3_scratch.documents.runner import difference, run, updated
from llama3_scratch.errors import FileError, MismatchError
from tests.house import PACKAGE

ROOT = PACKAGE.parent
ENGLISH, CHINESE = (ROOT / name for name in walkthrough.NAMES.values())

SMALL = """# A document

Why.

```python
x = 2
print(x, 0.333)
```

```output
2 0.33301
```

<!-- [[[cog anything() ]]] -->
```python
this is shown, not run
```
<!-- [[[end]]] -->

```python needs=no_such_module
import no_such_module
```

```sh
not python
```

```python
x += 1
assert x == 3
```
"""


def small(folder, old="", new=""):
    path = folder / "small.md"
    path.write_text(SMALL.replace(old, new) if old else SMALL)
    return path


@pytest.fixture(scope="module", params=[ENGLISH, CHINESE], ids=lambda path: path.name)
def ran(request, smollm2):
    cells = read(request.param)
    return cells, list(run(request.param, cells))


@pytest.mark.slow
def test_the_document_runs_and_prints_what_it_shows(ran):
    cells, outputs = ran
    assert sum(isinstance(cell, CodeBlock) for cell in cells) > 15
    left_out = {
        cell.missing for cell, out in zip(cells, outputs, strict=True) if isinstance(cell, CodeBlock) and out is None
    }
    assert left_out <= {"llama_models isn't installed", "LLAMA_WEIGHTS isn't set"}


def test_both_languages_run_the_same_code_to_the_same_outputs():
    ours, theirs = ([cell for cell in read(path) if isinstance(cell, CodeBlock)] for path in (ENGLISH, CHINESE))
    shared = [[(block.code, block.needs, block.output) for block in blocks] for blocks in (ours, theirs)]
    assert shared[0] == shared[1]


SHARED = re.compile(r"\(\.pictures/\S+\)|\[\[\[cog .*|^#+ (?:\d+\.)?|^\$\$.*|^\|.*\|.*\|", re.MULTILINE)


def test_both_languages_have_the_same_sections_functions_pictures_and_formulas_in_one_order():
    ours, theirs = (SHARED.findall(path.read_text(encoding="utf-8")) for path in (ENGLISH, CHINESE))
    kinds = [[line if line.startswith(("(", "[", "#")) else line[:2] for line in lines] for lines in (ours, theirs)]
    assert len(ours) > 80 and kinds[0] == kinds[1]


@pytest.mark.parametrize("document", [ENGLISH, CHINESE], ids=lambda path: path.name)
def test_every_section_is_linked_from_the_contents(document):
    text = document.read_text(encoding="utf-8")
    links = re.findall(r"^\[(.+)\]\(#(\S+)\)", text, re.MULTILINE)
    assert [title for title, _ in links] == re.findall(r"^## (.+)", text, re.MULTILINE)
    assert ("18. What changes in 3.1, 3.2 and 3.3", "18-what-changes-in-31-32-and-33") in links or document == CHINESE
    assert not [anchor for _, anchor in links if re.search(r"[^\w-]|[A-Z]", anchor)]


def test_no_function_is_shown_twice():
    text = ENGLISH.read_text(encoding="utf-8")
    shown = re.findall(r"source\((\"[^)]*\")\)", text)
    assert len(shown) > 30 and len(set(shown)) == len(shown)
    bodies = re.findall(r"\[\[\[cog.*?\]\]\]\s*-->\n(```.*?)<!--", text, re.DOTALL)
    assert len(set(bodies)) == len(bodies)


def test_what_runs_is_said_as_it_runs(tmp_path, caplog):
    caplog.set_level("INFO", logger="llama3_scratch")
    path = small(tmp_path, "x += 1", 'x += 1\nimport logging\nlogging.getLogger("llama3_scratch").info("here")')
    path.write_text(path.read_text().replace("```sh", "## 2. Later\n\n```sh"))
    assert walkthrough.main([str(path)]) == 0
    said = [record.message for record in caplog.records]
    assert said.index("A document") < said.index("2. Later") < said.index("here") < said.index("done")


def test_what_may_be_left_out_is_needed_by_nothing_else():
    bound: dict[bool, set[str]] = {False: set(), True: set()}
    used = set()
    for block in (cell for cell in read(ENGLISH) if isinstance(cell, CodeBlock)):
        for node in ast.walk(ast.parse(block.code)):
            if isinstance(node, ast.alias):
                bound[bool(block.needs)].add(node.asname or node.name)
            elif isinstance(node, ast.arg):
                bound[bool(block.needs)].add(node.arg)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                bound[bool(block.needs)].add(node.id)
            elif isinstance(node, ast.Name) and not block.needs:
                used.add(node.id)
    assert {"meta", "ids_8b"} <= bound[True]
    assert not used & (bound[True] - bound[False])


def test_a_small_document_is_read_and_run(tmp_path, caplog):
    path = small(tmp_path)
    cells = read(path)
    with caplog.at_level("INFO"):
        outputs = list(run(path, cells))
    assert [output for output in outputs if output is not None] == ["2 0.333\n", ""]
    assert f"{path.name}:21: left out, no_such_module isn't installed" in caplog.text
    assert [type(cell).__name__ for cell in cells] == ["Prose", "CodeBlock", "Prose", "CodeBlock", "Prose", "CodeBlock"]
    assert "this is shown, not run" in cells[2].text and "cog" not in cells[2].text


FAULTS = [
    ("0.33301", "0.34", r"small.md:6: line 1 of the output is '2 0.333', the document shows '2 0.34'"),
    ("2 0.33301\n", "2 0.33301\nmore\n", r"small.md:6: the output has 1 lines, the document shows 2"),
    ("x == 3", "x == 4", r"small.md:30: assert x == 4: AssertionError$"),
]


@pytest.mark.parametrize(("old", "new", "says"), FAULTS)
def test_a_document_that_lies_is_caught_with_its_line(tmp_path, capsys, smollm2, old, new, says):
    assert walkthrough.main([str(small(tmp_path, old, new))]) == MismatchError.exit_code
    assert re.search(says, capsys.readouterr().err.strip())


def test_code_that_fails_is_named_with_its_line(tmp_path, capsys, smollm2):
    assert walkthrough.main([str(small(tmp_path, "x += 1", "def f():\n    return y\nf()"))]) == 1
    assert re.search(r"small.md:30: return y: NameError: name 'y' is not defined$", capsys.readouterr().err.strip())
    helper = "def check(x):\n    assert x == 7, 'many\\nlines'\n```\n\n```python\nx += 1\ncheck(x)"
    assert walkthrough.main([str(small(tmp_path, "x += 1", helper))]) == MismatchError.exit_code
    assert re.search(r"small.md:35: check\(x\): AssertionError: many lines$", capsys.readouterr().err.strip())
    assert walkthrough.main([str(small(tmp_path, "x += 1", "x +="))]) == 1
    assert "small.md:29: x +=: SyntaxError" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a\n\n```python\nx = 1\n", r"small.md:3: this block has no end, expected a line of ```"),
        ("a\n```output\n1\n```\n", r"small.md:2: this output follows no code"),
    ],
)
def test_a_document_that_cannot_be_read_is_refused_with_its_line(tmp_path, text, says):
    (tmp_path / "small.md").write_text(text)
    with pytest.raises(FileError, match=says):
        read(tmp_path / "small.md")


def test_faults_of_the_command_line(tmp_path, capsys, smollm2, monkeypatch):
    path, bare = small(tmp_path), tmp_path / "bare.md"
    bare.write_text("![a picture](.pictures/none.svg)\n")
    for argv, code, says in [
        ([str(tmp_path / "none.md")], 3, "none.md: a document to run not found"),
        ([str(path), "--notebook", "a.md"], 2, "--notebook a.md: expected a name that ends in .ipynb"),
        (
            [str(bare), "--notebook", str(tmp_path / "a.ipynb")],
            3,
            "none.svg: not found, the notebook carries its pictures",
        ),
        ([str(path), "--model", str(smollm2.parent)], 2, 'the document has no l3.load("smollm2-135m")'),
        (
            [str(path), "--update", "--model", str(smollm2)],
            2,
            "--update: the document shows the outputs of the default",
        ),
    ]:
        assert walkthrough.main(argv) == code
        assert says in capsys.readouterr().err
    monkeypatch.setattr(walkthrough, "__file__", str(tmp_path / "site-packages" / "llama3_scratch" / "walkthrough.py"))
    assert walkthrough.main([]) == 3
    assert "walkthrough.md lies beside the package in a checkout and isn't installed with it" in capsys.readouterr().err


def test_outputs_differ_by_more_than_the_last_digits():
    assert not difference("a 1.0001  b\n", "a 1.0 b\n")
    assert not difference("-1.2e-07\n", "3.4e-08\n"), "both are zero but for rounding"
    assert difference("a 17\n", "a 18\n") and difference("[1, 4]\n", "[1, 5]\n")
    assert difference("1.01\n", "1.02\n") and difference("1.0\n", "-1.0\n") and difference("1.0\n", "1\n")


def test_outputs_are_written_into_the_document(tmp_path):
    stale = small(tmp_path, "2 0.33301", "old\nolder")
    cells = read(stale)
    text = updated(stale.read_text(), cells, list(run(stale, cells, compare=False)))
    assert text == SMALL.replace("0.33301", "0.333")
    (tmp_path / "bare.md").write_text("```python\nprint(1)\n```\nend\n")
    cells = read(tmp_path / "bare.md")
    outputs = list(run(tmp_path / "bare.md", cells, compare=False))
    assert updated("```python\nprint(1)\n```\nend\n", cells, outputs) == (
        "```python\nprint(1)\n```\n\n```output\n1\n```\nend\n"
    )


def test_the_notebook_is_valid_and_its_code_runs(tmp_path, capsys, smollm2):
    assert walkthrough.main([str(small(tmp_path)), "--notebook", str(tmp_path / "small.ipynb")]) == 0
    assert capsys.readouterr().out == "small.md: 2 of 3 blocks ran, their outputs are those shown\n"
    made = nbformat.read(tmp_path / "small.ipynb", as_version=4)
    nbformat.validate(made)
    code = [cell for cell in made.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [1, None, 3]
    assert "import no_such_module" in code[1].source
    namespace: dict = {}
    for cell in code:  # top to bottom, what isn't there left out
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(cell.source, namespace)
        assert out.getvalue() == "".join(output.text for output in cell.outputs)


def test_a_notebook_that_cannot_be_written_is_told_before_anything_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(runner, "run", lambda *args, **more: pytest.fail("it ran"))
    path = tmp_path / "no" / "x.ipynb"
    assert walkthrough.main([str(small(tmp_path)), "--notebook", str(path)]) == 3
    assert f"{path}: can't be written: its folder is not there" in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_document_makes_a_valid_notebook(ran):
    cells, outputs = ran
    made = nbformat.from_dict(notebook(cells, outputs, ROOT))
    nbformat.validate(made)
    prose = [cell for cell in made.cells if cell.cell_type == "markdown"]
    assert "[[[" not in "".join(cell.source for cell in prose)
    carried = {name for cell in prose for name in cell.get("attachments", {})}
    assert carried == {f"{name}.svg" for name in pictures.DRAWN}
    assert all(f"](attachment:{name})" in "".join(cell.source for cell in prose) for name in carried)


def flat(value, path=""):
    """The leaves of what JSON holds, by their paths."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: leaf for name, item in items for key, leaf in flat(item, f"{path}.{name}").items()}
    return {path: value}


def test_pictures_show_what_the_model_computes(smollm2):
    stored = flat(json.loads((ROOT / pictures.FOLDER / pictures.DATA_FILE).read_text(encoding="utf-8")))
    made = flat(pictures.data(load(smollm2)))
    assert made.keys() == stored.keys() and len(made) > 700
    for path, value in made.items():
        assert value == (pytest.approx(stored[path], rel=2e-3, abs=1e-3) if isinstance(value, float) else stored[path])


@pytest.mark.parametrize("document", [ENGLISH, CHINESE], ids=lambda path: path.name)
def test_every_picture_that_is_linked_is_drawn_and_the_other_way_round(document):
    linked = set(re.findall(r"\]\(\.pictures/([^)]+)\)", document.read_text(encoding="utf-8")))
    there = {path.name for path in (ROOT / pictures.FOLDER).glob("*.svg")}
    assert linked == there == {f"{name}.svg" for name in pictures.DRAWN}
    assert all((ROOT / pictures.FOLDER / name).stat().st_size <= 60_000 for name in there)


def test_pictures_are_drawn_again_as_they_were(tmp_path, capsys, smollm2):
    pytest.importorskip("matplotlib", reason="draws the pictures")
    assert walkthrough.main([str(small(tmp_path)), "--pictures"]) == 0
    drawn = {path.name for path in (tmp_path / pictures.FOLDER).iterdir()}
    assert drawn == {path.name for path in (ROOT / pictures.FOLDER).iterdir() if path.suffix != ".png"}
    assert "<svg" in (tmp_path / pictures.FOLDER / "rope.svg").read_text()


def test_every_claim_holds_for_llama_3_8b(capsys):
    path = os.environ.get("LLAMA_WEIGHTS")
    if not path:
        pytest.skip("LLAMA_WEIGHTS doesn't name a folder with Llama 3 8B's weights, which are Meta's to give")
    assert walkthrough.main(["--model", path]) == 0
    assert re.search(r"walkthrough.md: (\d+) of \1 blocks ran", capsys.readouterr().out)
