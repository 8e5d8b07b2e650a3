"""What a choice's fields take: a misspelt one is named, with the one that was meant, whatever the choice."""

from __future__ import annotations

import dataclasses

import pytest

from llama3_scratch.benchmark import measure, served
from llama3_scratch.checkpoint import conversion
from llama3_scratch.errors import UsageError
from llama3_scratch.inference import choices as inference
from llama3_scratch.serving import choices as serving
from llama3_scratch.system.fields import Checked
from llama3_scratch.trace import choice as trace
from llama3_scratch.training import choices as training

MODULES = (measure, served, conversion, inference, serving, trace, training)
CHOICES = [
    kind
    for module in MODULES
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, Checked) and kind.__module__ == module.__name__
]


def test_no_choice_is_missing_here():
    assert set(CHOICES) == set(Checked.__subclasses__()) and len(CHOICES) >= 15


@pytest.mark.parametrize("kind", CHOICES)
def test_a_misspelt_field_is_named_with_the_one_that_was_meant(kind):
    for field in dataclasses.fields(kind):
        with pytest.raises(UsageError) as error:
            kind(**{f"{field.name}x": 1})
        assert str(error.value) == f"{kind.__name__} has no `{field.name}x`; did you mean {field.name}?"
    with pytest.raises(UsageError, match=f"{kind.__name__} has no `zzz`; there are {dataclasses.fields(kind)[0].name}"):
        kind(zzz=1)
