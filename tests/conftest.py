"""What more than one test file needs: the real small model, and torch on two threads."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama3_scratch.checkpoint.names import DEFAULT
from llama3_scratch.download import download


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of SmolLM2-135M-Instruct in Meta's layout, fetched once into the weights folder."""
    return download(DEFAULT)
