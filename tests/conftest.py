"""What more than one test file needs: the real small model, and torch on two threads."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from llama3_scratch.checkpoint import names
from llama3_scratch.checkpoint.fetch import download
from llama3_scratch.checkpoint.names import DEFAULT
from llama3_scratch.errors import FileError
from llama3_scratch.native import kernels
from tests import tiny


def pytest_addoption(parser):
    parser.addoption("--kernels", help="the compiled kernels to test, in the place of the package's own")


def pytest_configure(config):
    if config.getoption("--kernels"):
        kernels.FILE = Path(config.getoption("--kernels"))


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
