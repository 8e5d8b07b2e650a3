"""Multiplying by every stored form: values, rounding, dtypes and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from llama3_scratch import linear as linear_module
from llama3_scratch import stored as stored_module
from llama3_scratch.linear import embed, linear, row_norms
from llama3_scratch.stored import Floats, stored
from tests import tiny
from tests.compare import check
from tests.forms import FORMS, fitting, plain, quantised, with_adaptors

NAMES = ["layers.0.attention.wk", "layers.1.feed_forward.w2", "output"]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(params=FORMS, ids=list(FORMS))
def params(request):
    return FORMS[request.param](tiny.params(fitting(request.param)))


@pytest.fixture
def small_pieces(monkeypatch):
    """Pieces of five rows, so that a weight of the tiny world has several, the last one short."""
    monkeypatch.setattr(stored_module, "PIECE_ELEMENTS", 5 * tiny.CONFIG.dim)


@pytest.mark.parametrize("name", NAMES)
def test_linear_is_the_plain_product(params, name, small_pieces, torch_only):
    dense = plain(params)[f"{name}.weight"]
    x = torch.randn(2, 5, dense.shape[1])
    for dtype, tolerance in ((torch.float32, 3e-6), (torch.float64, 1e-12)):
        out = linear(x.to(dtype), params, name)
        assert out.dtype == dtype
        check(out, x.double() @ dense.T, tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_any_leading_axes(params, name, torch_only):
    x = torch.randn(2, 3, 4, plain(params)[f"{name}.weight"].shape[1])
    whole = linear(x, params, name)
    check(linear(x[1, 2, 3], params, name), whole[1, 2, 3], 1e-5)
    assert linear(x[:0], params, name).shape == whole[:0].shape


def test_embed_is_the_plain_row(params):
    tokens_BT = tiny.tokens(2, 9)
    check(embed(tokens_BT, params, "tok_embeddings"), plain(params)["tok_embeddings.weight"][tokens_BT], 1e-6)


@pytest.mark.parametrize("group", [32, 256, 0], ids=["groups of 32", "groups of 256", "a scale a row"])
def test_metas_group_sizes(group):
    weight = torch.randn(40, 512, generator=torch.Generator().manual_seed(3))
    params = quantised({"wq.weight": weight}, group=group, bits=4 if group else 8, only=("wq",))
    assert params["wq.weight"].dtype == torch.int8
    assert params["wq.scales"].shape == (40, 512 // group if group else 1)
    x = torch.randn(3, 512)
    check(linear(x, params, "wq"), x.double() @ plain(params)["wq.weight"].T, 3e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_short_activations_are_f32_sums_rounded_once(dtype, weight_dtype, monkeypatch):
    monkeypatch.setattr(linear_module, "multiplies", lambda *_: False)  # as on a CPU without bf16 instructions
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(300, 700, generator=generator).to(weight_dtype)
    x = torch.randn(4, 700, generator=generator).to(dtype)
    out = linear(x, {"w.weight": weight}, "w")
    exact = x.double() @ weight.double().T
    half_step = torch.finfo(dtype).eps / 2
    assert out.dtype == dtype
    # Half a step of rounding, and what 700 additions in f32 lose; sums in bf16 would lose a hundred times more.
    assert ((out.double() - exact).abs() <= half_step * exact.abs() + 1e-4).all()


def test_a_frozen_weight_is_never_copied_whole(monkeypatch, torch_only):
    monkeypatch.setattr(stored_module, "PIECE_ELEMENTS", 64)
    pieces = []
    real = F.linear
    monkeypatch.setattr(linear_module.F, "linear", lambda x, weight: pieces.append(weight.numel()) or real(x, weight))
    weight = torch.randn(50, 32).bfloat16()
    linear(torch.randn(3, 32), {"w.weight": weight}, "w")
    assert len(pieces) == 25 and max(pieces) == 64


def test_same_dtype_is_one_product_without_a_copy(monkeypatch, torch_only):
    seen = []
    monkeypatch.setattr(linear_module.F, "linear", lambda x, weight: seen.append(weight) or x @ weight.T)
    params = {"w.weight": torch.randn(6, 4)}
    linear(torch.randn(3, 4), params, "w")
    assert seen[0] is params["w.weight"]


@pytest.mark.parametrize("form", ["bf16", "int4", "int4 with zeros"])
def test_gradcheck_through_a_frozen_weight(form, small_pieces):
    params = FORMS[form](tiny.params())
    x = torch.randn(1, 2, tiny.CONFIG.dim, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: linear(x, params, "layers.0.attention.wk"), (x,))


@pytest.mark.parametrize("form", ["bf16", "int4"])
def test_gradcheck_of_an_adaptor_on_a_frozen_weight(form, small_pieces):
    name = "layers.0.attention.wk"
    params = with_adaptors(FORMS[form](tiny.params()), rank=2, names=("wk",))
    x = torch.randn(2, tiny.CONFIG.dim, dtype=torch.float64, requires_grad=True)
    A, B = (params[f"{name}.adaptor.{part}.weight"].double().requires_grad_() for part in "AB")

    def product(x, A, B):
        return linear(x, params | {f"{name}.adaptor.A.weight": A, f"{name}.adaptor.B.weight": B}, name)

    assert torch.autograd.gradcheck(product, (x, A, B))


@pytest.mark.parametrize("form", ["bf16", pytest.param("nf4", marks=pytest.mark.slow)])
def test_gradcheck_of_dora_whose_lengths_are_constants(form, small_pieces, monkeypatch):
    """Of A, B and the magnitude, each row's own length held: a difference quotient would move it too."""
    name = "layers.0.attention.wk"
    params = with_adaptors(FORMS[form](tiny.params(fitting(form))), rank=2, names=("wk",), dora=True)
    names = [f"{name}.adaptor.{part}" for part in ("A.weight", "B.weight", "magnitude")]
    trained = [params[key].double().requires_grad_() for key in names]
    x = torch.randn(2, fitting(form).dim, dtype=torch.float64, requires_grad=True)

    def product(x, *trained):
        return linear(x, params | dict(zip(names, trained, strict=True)), name)

    live = torch.autograd.grad(product(x, *trained).square().sum(), (x, *trained))
    lengths = row_norms(params | dict(zip(names, trained, strict=True)), name, torch.float64)
    monkeypatch.setattr(linear_module, "row_norms", lambda *_: lengths)
    held = torch.autograd.grad(product(x, *trained).square().sum(), (x, *trained))
    assert all(one.equal(other) for one, other in zip(live, held, strict=True))
    assert torch.autograd.gradcheck(product, (x, *trained))


def test_a_row_of_zeros_has_a_length_to_divide_by():
    params = {"w.weight": torch.zeros(3, 4), "w.adaptor.A.weight": torch.randn(2, 4)}
    params |= {"w.adaptor.B.weight": torch.zeros(3, 2), "w.adaptor.scale": torch.tensor(1.0)}
    params["w.adaptor.magnitude"] = torch.zeros(3)
    assert linear(torch.randn(5, 4), params, "w").equal(torch.zeros(5, 3))


def test_gradcheck_of_a_trained_weight():
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, weight: linear(x, {"w.weight": weight}, "w"), (x, weight))


def test_a_trained_weight_of_another_dtype_gets_its_gradient_in_its_own():
    weight = torch.randn(4, 5).bfloat16().requires_grad_()
    x = torch.randn(3, 5)
    linear(x, {"w.weight": weight}, "w").sum().backward()
    assert weight.grad is not None and weight.grad.dtype == torch.bfloat16
    check(weight.grad, x.sum(0).expand(4, 5), 1e-2)


def test_short_gradients_are_f32_sums_rounded_once(monkeypatch):
    monkeypatch.setattr(linear_module, "multiplies", lambda *_: False)
    generator = torch.Generator().manual_seed(6)
    weight = torch.randn(700, 30, generator=generator).bfloat16()
    x = torch.randn(2, 30, generator=generator).bfloat16().requires_grad_()
    grad = torch.randn(2, 700, generator=generator).bfloat16()
    linear(x, {"w.weight": weight}, "w").backward(grad)
    exact = grad.double() @ weight.double()
    assert x.grad is not None and x.grad.dtype == torch.bfloat16
    assert ((x.grad.double() - exact).abs() <= torch.finfo(torch.bfloat16).eps / 2 * exact.abs() + 1e-4).all()


def test_stored_reads_siblings_by_name_alone():
    """A weight that happens to be int8-sized isn't taken for a quantised one: only `scales` says so."""
    params = {"w.weight": torch.ones(2, 4, dtype=torch.int8), "w.scales": torch.full((2, 2), 0.5)}
    assert stored(params, "w").floats(slice(None), torch.float32).tolist() == [[0.5] * 4] * 2
    assert type(stored({"w.weight": params["w.weight"]}, "w")) is Floats
