"""What more than one test file needs: tiny models and the real small one; and what every run is held to: its skips."""

from __future__ import annotations

import collections
import functools
import logging
import os
import sys
from pathlib import Path

import pytest

from llama3_scratch.checkpoint import names
from llama3_scratch.checkpoint.fetch import download
from llama3_scratch.checkpoint.names import DEFAULT
from llama3_scratch.errors import FileError
from llama3_scratch.native import kernels
from tests import skips, tiny

SKIPPED = pytest.StashKey[collections.Counter[str]]()  # how often for each reason


def pytest_addoption(parser):
    parser.addoption("--kernels", help="the compiled kernels to test, in the place of the package's own")


def pytest_configure(config):
    if config.getoption("--kernels"):
        kernels.FILE = Path(config.getoption("--kernels"))
    counted = config.stash[SKIPPED] = collections.Counter()

    class Counts:
        """Of tests and of files that were skipped as a whole."""

        def pytest_runtest_logreport(self, report):
            if report.skipped and not hasattr(report, "wasxfail"):
                counted[skips.reason(report.longrepr)] += 1

        pytest_collectreport = pytest_runtest_logreport

    config.pluginmanager.register(Counts())


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session, exitstatus):
    """Under CI a skip that isn't in skips.py is a failure."""
    unlisted = [reason for reason in session.config.stash[SKIPPED] if not skips.allowed(reason)]
    if os.environ.get("CI") and unlisted and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, config):
    counted = config.stash[SKIPPED]
    for reason, count in counted.most_common():
        note = "" if skips.allowed(reason) else " [not listed in tests/skips.py: under CI a failure]"
        terminalreporter.write_line(f"skipped {count}: {reason}{note}")
    terminalreporter.write_line(f"tests or files skipped: {sum(counted.values())}, reasons: {len(counted)}")


class Stderr:
    """The standard error of the moment."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


@pytest.fixture(autouse=True)
def transformers_logs_to_the_stderr_of_the_moment():
    """Its handler keeps the one of the test in which it was imported, which is closed by now."""
    for handler in logging.getLogger("transformers").handlers:
        if type(handler) is logging.StreamHandler:  # and not pytest's
            handler.stream = Stderr()
            handler.flush = handler.stream.flush  # transformers has put the old one's there


@pytest.fixture(autouse=True)
def own_user_cache(monkeypatch, tmp_path_factory):
    """What a test remembers isn't the user's."""
    monkeypatch.setattr(names, "user_cache", functools.cache(lambda: tmp_path_factory.mktemp("cache")))


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No weights are here, and none can be fetched."""

    def unreachable(*_):
        raise FileError("smollm2-135m: couldn't be fetched: no network")

    monkeypatch.setenv("LLAMA3_SCRATCH_WEIGHTS", str(tmp_path))
    for fetches in ("download", "stored_blocks"):
        monkeypatch.setattr(f"llama3_scratch.checkpoint.fetch.{fetches}", unreachable)


@pytest.fixture
def torch_only():
    """No kernels in C, as where there was no compiler."""
    kernels.choose(kernels.TORCH)
    yield
    kernels.choose()


@pytest.fixture(scope="module")
def chats(tmp_path_factory) -> str:
    """The folder of a tiny model that chats."""
    return str(tiny.folder(tmp_path_factory.mktemp("models") / "chats"))


@pytest.fixture(scope="module")
def completes(tmp_path_factory) -> str:
    """The folder of a tiny model that completes text."""
    return str(tiny.folder(tmp_path_factory.mktemp("models") / "completes", None))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of SmolLM2-135M-Instruct in Meta's layout, fetched once into the weights folder."""
    try:
        return download(DEFAULT)
    except FileError as error:
        pytest.skip(f"the real model can't be fetched: {error}")
