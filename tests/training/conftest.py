"""What a training run does besides and takes longer than these small ones: once for all, or where it's looked at."""

from __future__ import annotations

import functools

import pytest

from llama3_scratch.training import curve, record


@pytest.fixture(autouse=True, scope="session")
def measured_once():
    """This machine's peak, which a run's report measures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record, "peak_flops", functools.cache(record.peak_flops))
        yield


@pytest.fixture
def curves():
    """Runs draw their curves."""


@pytest.fixture(autouse=True)
def no_curves_unless_wanted(request, monkeypatch):
    if "curves" not in request.fixturenames:
        monkeypatch.setattr(curve, "draw", lambda folder: None)
