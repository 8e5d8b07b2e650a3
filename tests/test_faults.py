"""The catalogue of faults and the tests name the same numbers."""

from __future__ import annotations

import re
from pathlib import Path

from tests.house import PACKAGE

TESTS = Path(__file__).parent
NUMBER = re.compile(r"(?<![0-9A-Za-z])[Ff](\d{3})(?![0-9A-Za-z])")  # F137-a, test_f137_, f137_f138_
RUFF = re.compile(r"noqa: [A-Z0-9, ]+")  # F401 is a rule of ruff's
ROWS = [
    (int(number), wrong.strip(), must.strip())
    for number, wrong, must in re.findall(
        r"^\| F(\d{3}) \|(.*?)\|(.*?)\|$", TESTS.joinpath("faults.md").read_text("utf-8"), flags=re.M
    )
]
UNTESTED: dict[int, str] = {}  # number: why a row has no test


def named(*folders: Path) -> dict[int, str]:
    """The numbers in the folders' code, each with a file that names it."""
    files = (path for folder in folders for path in folder.rglob("*.py") if path.name != Path(__file__).name)
    return {
        int(number): str(path) for path in files for number in NUMBER.findall(RUFF.sub("", path.read_text("utf-8")))
    }


def test_every_number_that_is_named_stands_in_the_catalogue():
    rows = {number for number, *_ in ROWS}
    assert not {f"F{number:03}": path for number, path in named(TESTS, PACKAGE).items() if number not in rows}


def test_every_row_has_a_test():
    assert {number for number, *_ in ROWS} - named(TESTS).keys() == UNTESTED.keys(), (
        "a row without a test, or a reason too many"
    )


def test_rows_are_in_order_and_whole():
    numbers = [number for number, *_ in ROWS]
    assert numbers == sorted(set(numbers))
    assert all(wrong and must for _, wrong, must in ROWS)
