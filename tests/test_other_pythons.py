"""The README's commands and the default suite, the tracer included, on the Pythons of a clean Debian: -m long."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "test_in_debian.sh"


@pytest.mark.long
@pytest.mark.parametrize("suite, version", [("trixie", "3.13"), ("sid", "3.14")])
def test_the_default_suite_passes_on_the_python_of_debian(suite, version, tmp_path):
    """Of a root that is made here, or lies in $LLAMA3_SCRATCH_DEBIAN/SUITE from an earlier run."""
    if missing := [program for program in ("debootstrap", "unshare", "chroot") if shutil.which(program) is None]:
        pytest.skip(f"{missing[0]} isn't installed")
    if os.getuid():
        pytest.skip("chroot needs root")
    root = Path(os.environ.get("LLAMA3_SCRATCH_DEBIAN", tmp_path)) / suite
    done = subprocess.run(["bash", SCRIPT, root, suite], capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert f"Python {version}" in done.stdout
    assert "The capital of France is Paris." in done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 1000
