"""What is traced of a run: checked as it is made, and the same from flags as from Python."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from llama3_scratch.errors import UsageError
from llama3_scratch.generate import make_parser
from llama3_scratch.trace.choice import TraceChoice
from llama3_scratch.trace.flags import trace_choice
from tests import tiny


def test_nothing_is_traced_unless_it_is_asked_for():
    assert not TraceChoice().watches and trace_choice(make_parser().parse_args(["hi"])) == TraceChoice()


def test_flags_make_the_choice_that_python_makes(tmp_path):
    argv = ["hi", "--trace-layers", "1,2", "--trace-steps", "q_BTHK", "--trace-out", f"{tmp_path}/a.jsonl", "--lens"]
    argv += ["--attention", "2,3", "--rope-pair", "4", "--trace-tokens", "2", "--heads", "--trace-cost"]
    wanted = TraceChoice(
        trace_layers=(1, 2), trace_steps=("q_BTHK",), trace_out=tmp_path / "a.jsonl", lens=True, attention=(2, 3),
        rope_pair=4, trace_tokens=2, heads=True, trace_cost=True,
    )  # fmt: skip
    assert trace_choice(make_parser().parse_args(argv)) == wanted
    assert wanted.prints and wanted.views and wanted.watches


def test_every_field_is_a_flag():
    assert {field.name for field in fields(TraceChoice)} <= vars(make_parser().parse_args(["hi"])).keys()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"trace_tokens": 0}, "`trace_tokens`: expected a whole number at least 1, got 0"),
        ({"trace_tokens": 2}, "`trace_tokens` goes with `trace`, `trace_out` or `trace_compare`"),
        ({"trace_tolerance": 1.0}, "`trace_tolerance` goes with `trace_compare`"),
        ({"trace_out": Path("x.txt")}, "`trace_out=x.txt`: expected a name that ends in .jsonl, .safetensors or .html"),
    ],
)
def test_what_does_not_go_together_is_refused_by_the_name_of_the_field(how, message):
    with pytest.raises(UsageError) as error:
        TraceChoice(**how)
    assert str(error.value) == message


def test_what_the_model_lacks_is_refused():
    for how, message in {
        "attention": ((0, 99), "`attention`: head 99"),
        "trace_layers": ((99,), "layer 99: this model's"),
        "rope_pair": (99, "`rope_pair=99`: the pairs are 0 to"),
    }.items():
        with pytest.raises(UsageError) as error:
            TraceChoice(**{how: message[0]}).check_model(tiny.CONFIG)
        assert str(error.value).startswith(message[1])
