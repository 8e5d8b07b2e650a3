"""The C under the compiler's own checks: all warnings, its format, and its tests under ASan, UBSan and TSan."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import house

HERE = Path(__file__).parent
NATIVE = house.PACKAGE / "native"
SOURCES = [str(path) for path in sorted(NATIVE.glob("*.c"))]
CC = shutil.which("cc") or shutil.which("gcc")
WARNINGS = ["-std=gnu11", "-pthread", "-fno-math-errno", "-Wall", "-Wextra", "-Werror"]
needs_compiler = pytest.mark.skipif(CC is None, reason="no C compiler")


def run(*command: str | Path, **environment: str) -> str:
    """What the command says; AssertionError with all of it where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=os.environ | environment)
    assert done.returncode == 0, f"{done.stdout[-6000:]}{done.stderr[-6000:]}"
    return done.stdout + done.stderr


def build(out: Path, sanitizer: str, *more: str | Path) -> Path:
    """The C with a sanitizer in it."""
    assert CC is not None
    made = subprocess.run(
        [CC, f"-fsanitize={sanitizer}", "-x", "c", "-", "-o", out], input=b"int main(void){return 0;}"
    )
    if made.returncode or subprocess.run([out]).returncode:
        pytest.skip(f"{CC} has no -fsanitize={sanitizer}")
    sanitized = [f"-fsanitize={sanitizer}", "-g", "-O1", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"]
    run(CC, *WARNINGS, *sanitized, "-I", NATIVE, *SOURCES, *more, "-lm", "-o", out)
    return out


@needs_compiler
@pytest.mark.parametrize("level", ["-O0", "-O3"])
def test_no_warning(tmp_path, level):
    assert CC is not None
    run(CC, *WARNINGS, level, "-fPIC", "-shared", *SOURCES, "-lm", "-o", tmp_path / "kernels.so")


@pytest.mark.skipif(importlib.util.find_spec("clang_format") is None, reason="no clang-format: it comes with [dev]")
def test_the_format():
    files = [str(path) for path in (*NATIVE.glob("*.[ch]"), *HERE.glob("*.c"))]
    command = "import clang_format; raise SystemExit(clang_format.clang_format())"
    run(sys.executable, "-c", command, "--dry-run", "--Werror", *files)


@pytest.mark.slow
@needs_compiler
def test_every_call_under_address_and_undefined_behaviour_sanitizers(tmp_path):
    stress = build(tmp_path / "stress", "address,undefined", HERE / "stress.c")
    assert "all equal" in run(stress, ASAN_OPTIONS="detect_leaks=1")


@pytest.mark.slow
@needs_compiler
def test_every_call_under_thread_sanitizer(tmp_path):
    # A loop that became memcpy would be seen even in a function that is exempt.
    stress = build(tmp_path / "stress", "thread", HERE / "stress.c", "-fno-tree-loop-distribute-patterns")
    assert "all equal" in run(stress, TSAN_OPTIONS="halt_on_error=1")


@pytest.mark.slow
@needs_compiler
def test_the_tests_in_python_under_address_sanitizer(tmp_path):
    """The library that Python loads, with the sanitizer in it. Leaks are left to `stress`: Python has its own."""
    assert CC is not None
    library = build(tmp_path / "_kernels.so", "address,undefined", "-shared", "-fPIC")
    runtime = run(CC, "-print-file-name=libasan.so").strip()
    if not Path(runtime).is_file():
        pytest.skip("no libasan.so to load before Python")
    tests = [HERE / "test_native.py", HERE / "test_properties.py"]
    run(
        *(sys.executable, "-m", "pytest", "-q", "-x", "-s", "-p", "no:cacheprovider", "--kernels", library, *tests),
        LD_PRELOAD=runtime,
        ASAN_OPTIONS="detect_leaks=0",
        PYTHONPATH=str(house.PACKAGE.parent),
    )
