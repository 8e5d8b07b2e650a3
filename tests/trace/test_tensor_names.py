"""The table of tensor names that views, page, pictures and comparisons share: the model makes them, all read it."""

from __future__ import annotations

import ast
import re
from importlib import resources

import pytest
import torch

from llama3_scratch import linear, model
from llama3_scratch.cache import Cache
from llama3_scratch.compare import tensor_names
from llama3_scratch.compare.tensor_names import MODEL_TENSORS, ModelTensor
from llama3_scratch.trace.tracer import AXES, watch
from tests import house, tiny


@pytest.fixture(scope="module")
def steps():
    with torch.inference_mode(), watch(statistics=False) as steps:
        cache = Cache(8)
        for ids in ([1, 2, 3], [4, 5]):  # the second mask is a tensor
            model.forward(torch.tensor([ids]), tiny.params(), tiny.CONFIG, cache=cache, block=model.block)
    return steps


@pytest.mark.parametrize("name", MODEL_TENSORS)
def test_the_model_makes_each_tensor_of_the_table(steps, name):
    tensor = MODEL_TENSORS[name]
    how = {"local": "binds", "argument": "takes", "return": "returns an unnamed tensor, not"}[tensor.kind]
    there = [step.name for step in steps if (step.function, step.kind) == (tensor.function, tensor.kind)]
    assert any(tensor.matches(step) for step in steps), (
        f"compare/tensor_names.py: {name} says that `{tensor.function}` of model.py {how} {tensor.name} "
        f"({tensor.nth or 'some'}. of that name), but it {how.partition(' ')[0]} {', '.join(dict.fromkeys(there))}: "
        "mend the table where the model was changed"
    )


def test_the_functions_of_the_table_are_the_models():
    for function in (tensor_names.FORWARD, tensor_names.ATTEND, tensor_names.DECODE, tensor_names.UNEMBED):
        assert getattr(model, function).__module__ == model.__name__, f"model.py has no function {function}"
    for function in (tensor_names.EMBED, tensor_names.LINEAR):
        assert getattr(linear, function).__module__ == linear.__name__, f"linear.py has no function {function}"


@pytest.mark.parametrize("module", [m for m in house.modules() if house.room(m) in ("compare", "trace", "documents")])
def test_no_other_module_names_a_tensor(module):
    functions = {tensor.function for tensor in MODEL_TENSORS.values()} - {"attention"}  # which is a view's name too
    for node in ast.walk(house.tree(module)):
        if module == "compare.tensor_names" or not isinstance(node, ast.Constant) or not isinstance(node.value, str):
            continue
        named = re.fullmatch(rf"[a-z]\w*_[{AXES}1]+", node.value) or node.value in functions
        assert not named, f"{module}, line {node.lineno}: {node.value!r} belongs into compare/tensor_names.py"


def test_the_page_has_its_names_from_the_data():
    script = resources.files("llama3_scratch.trace").joinpath("page.js").read_text(encoding="utf-8")
    assert re.findall(rf"""["'`][a-z]\w*_[{AXES}1]+["'`]|["'`]linear\(""", script) == []


def test_a_key_says_where_a_tensor_is_made():
    assert ModelTensor("attention", "q_BTHK", nth=2).key("layers.0.attention") == "layers.0.attention.q_BTHK.2"
    assert ModelTensor("attend", "scores_BGRTS").key("layers.0.attention") == "layers.0.attention.attend.scores_BGRTS"
    assert ModelTensor("decode", "x_BTD", nth=0).key() == "decode.x_BTD"
