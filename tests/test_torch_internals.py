"""What torch keeps to itself is used in one place, and each part may be missing."""

from __future__ import annotations

import ast
import re
import sys

import pytest
import torch

from llama3_scratch import linear, torch_internals
from llama3_scratch.native import kernels
from llama3_scratch.system import machine
from llama3_scratch.trace.cost import Cost, Meter
from llama3_scratch.trace.shapes import meta_params, trace_shapes
from llama3_scratch.training.compiled import compiled
from tests import house, tiny


@pytest.mark.parametrize("module", [module for module in house.modules() if module != "torch_internals"])
def test_no_other_module_reaches_into_torch(module):
    for node in ast.walk(house.tree(module)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
            names = f"{node.module}.{','.join(alias.name for alias in node.names)}"
        elif isinstance(node, ast.Attribute):
            whole = ast.unparse(node)
            names = whole if re.fullmatch(r"torch([.]\w+)+", whole) else node.attr
            if names == node.attr and names not in ("_schema", "_overloadpacket"):
                continue
        else:
            continue
        assert not re.search(r"(^|[.,])_[a-z]", names), f"{module}, line {node.lineno}: {names} is torch's own"


@pytest.fixture
def without_dispatch_question(monkeypatch):
    monkeypatch.setattr(torch_internals, "_python_dispatch", object())


def test_without_the_question_our_own_modes_are_known(without_dispatch_question):
    assert not torch_internals.dispatch_mode_is_on()
    with Meter() as meter, meter.paused():
        assert torch_internals.dispatch_mode_is_on() and not kernels.usable(torch.zeros(1))
    assert not torch_internals.dispatch_mode_is_on()


def test_costs_are_the_same_whatever_operations_say_of_themselves(monkeypatch):
    def cost():
        steps = trace_shapes(meta_params(tiny.CONFIG), tiny.CONFIG, length=7, batch=2)
        return sum((step.cost for step in steps), Cost())

    wanted = cost()
    monkeypatch.setattr("llama3_scratch.trace.shapes.changes_its_input", lambda _: True)  # nothing is remembered
    assert cost() == wanted and wanted.flops > 0
    assert torch_internals.changes_its_input(object()) and torch_internals.overload_packet(3) == 3
    assert torch_internals.overload_packet(torch.ops.aten.mm.out) is torch.ops.aten.mm
    assert torch_internals.changes_its_input(torch.ops.aten.add_.Tensor)
    assert not torch_internals.changes_its_input(torch.ops.aten.add.Tensor)


@pytest.mark.parametrize("public", [True, False])
def test_what_the_processor_has_is_asked_in_either_way(monkeypatch, public):
    if public:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_tile": True}, raising=False)
    else:
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
        monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False, raising=False)
    assert torch_internals.cpu_multiplies_bf16() and torch_internals.int8_matmul() is None


def test_a_torch_that_says_nothing_of_the_processor_has_f32_alone(monkeypatch):
    for name in ("get_capabilities", "_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_vnni_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    monkeypatch.setattr(machine, "matmul_flops", lambda dtype, device: 1.0)
    monkeypatch.setattr(linear, "CPU_HAS_BF16", torch_internals.cpu_multiplies_bf16())
    assert machine.peak_flops() == {"f32": 1.0}


def test_a_torch_without_int8_products_measures_none(monkeypatch):
    monkeypatch.setattr(torch_internals, "cpu_has", lambda *_: True)
    monkeypatch.delattr(torch, "_int_mm")
    monkeypatch.setattr(machine, "matmul_flops", lambda dtype, device: 1.0)
    assert torch_internals.int8_matmul() is None and "int8" not in machine.peak_flops()


def test_an_error_of_the_compiler_without_a_name_stays_as_it_is(monkeypatch):
    def broken(*_):
        raise RuntimeError("no compiler")

    monkeypatch.setitem(sys.modules, "torch._inductor.exc", None)
    monkeypatch.setattr(torch, "compile", lambda _: broken)
    with pytest.raises(RuntimeError, match="no compiler"):
        compiled(broken)(torch.zeros(1))
