"""A run says what it skipped, and under CI a skip that isn't listed is a failure."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests import skips
from tests.house import PACKAGE

SKIPPED = """
import pytest

def test_a():
    pytest.skip("this processor has no avx512")

@pytest.mark.skipif(True, reason={reason!r})
def test_b():
    pass

@pytest.mark.xfail
def test_c():
    assert False
"""


@pytest.mark.parametrize("ci", ["", "true"])
@pytest.mark.parametrize("reason", ["no fork here", "this processor has no sse"])
def test_under_ci_a_run_fails_by_a_skip_that_is_not_listed(ci, reason, tmp_path):
    tmp_path.joinpath("test_it.py").write_text(SKIPPED.format(reason=reason))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-p", "no:cacheprovider", "test_it.py"],
        cwd=tmp_path,
        env={**os.environ, "CI": ci, "PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
    )
    unlisted = reason == "no fork here"
    assert "tests or files skipped: 2, reasons: 2" in done.stdout, done.stdout + done.stderr
    assert (f"skipped 1: {reason} [not listed" in done.stdout) == unlisted
    assert done.returncode == (1 if ci and unlisted else 0)


def test_a_reason_counts_as_a_whole():
    assert skips.allowed("this processor has no amx")
    assert not skips.allowed("this processor has no amx, and besides")
    assert skips.reason(("test_it.py", 3, "Skipped: why")) == "why"
