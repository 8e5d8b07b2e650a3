"""What more than one test file needs: the real small model, and torch on two threads."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama3_scratch.checkpoint import names
from llama3_scratch.checkpoint.names import DEFAULT
from llama3_scratch.download import download
from llama3_scratch.errors import FileError
from llama3_scratch.native import kernels


@pytest.fixture(autouse=True)
def own_user_cache(monkeypatch, tmp_path_factory):
    """What a test remembers isn't the user's."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(names, "user_cache", lambda: folder)


@pytest.fixture
def torch_only(monkeypatch):
    """No kernels in C, as where there was no compiler."""
    monkeypatch.setattr(kernels, "usable", lambda x: False)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of SmolLM2-135M-Instruct in Meta's layout, fetched once into the weights folder."""
    try:
        return download(DEFAULT)
    except FileError as error:
        pytest.skip(f"the real model can't be fetched: {error}")
