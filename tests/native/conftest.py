"""What the tests of the kernels begin with."""

from __future__ import annotations

import pytest

from llama3_scratch.native import kernels


@pytest.fixture(params=kernels.LEVELS)
def level(request):
    """Each instruction set in turn."""
    found = kernels.choose(request.param)
    if found is None:
        kernels.choose()
        pytest.skip(f"this processor has no {request.param}")
    yield found
    kernels.choose()
