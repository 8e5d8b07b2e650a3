"""quantize: what each form loses, its layout against slow words, tied heads, forms that don't fit, bad input."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from llama3_scratch.checkpoint.ggml_blocks import (
    BLOCK_FORMATS,
    TILED,
    block_format,
    blocks_of_tiles,
    tiles_of_blocks,
)
from llama3_scratch.checkpoint.ggml_blocks import (
    dequantize as floats_of_blocks,
)
from llama3_scratch.checkpoint.meta import open_pth, read_meta, write_meta
from llama3_scratch.errors import UsageError
from llama3_scratch.inference import choices
from llama3_scratch.model import forward
from llama3_scratch.params.quantize import FORMS, dequantize, quantize
from llama3_scratch.stored import NF4_LEVELS, Tiles, stored, tiled, tiled_values, untiled, untiled_values
from tests import tiny
from tests.forms import plain, with_adaptors

W = "layers.0.attention.wq"
# Bits a weight with its scales, and the part of a normal weight's size that is lost: measured, with a little room.
COSTS = {
    "int8-row": (8.0625, 0.0095),
    "int8": (8.5, 0.0056),
    "int4": (5.0, 0.076),
    "int4-sym": (4.5, 0.087),
    "nf4": (4.25, 0.094),
}


def normal(rows: int = 64, columns: int = 512, seed: int = 0) -> torch.Tensor:
    return 0.05 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def made(weight: torch.Tensor, form: str) -> dict[str, torch.Tensor]:
    return quantize({f"{W}.weight": weight}, form)


def floats(params: dict[str, torch.Tensor], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return stored(params, W).floats(slice(None), dtype)


def error(params: dict[str, torch.Tensor], weight: torch.Tensor) -> float:
    return ((floats(params) - weight).norm() / weight.norm()).item()


def test_the_command_line_knows_the_forms():
    assert tuple(FORMS) == choices.QUANTIZED


@pytest.mark.parametrize("form", FORMS)
def test_bits_and_loss(form):
    weight = normal()
    params = made(weight, form)
    bits, most = COSTS[form]
    assert 8 * sum(tensor.nbytes for tensor in params.values()) / weight.numel() == bits
    assert stored(params, W).name == form and stored(params, W).shape == (64, 512)
    assert most / 1.5 < error(params, weight) < most


@pytest.mark.parametrize("form", FORMS)
def test_the_layout_is_what_stored_says(form):
    params = made(normal(48, 192), form)
    slow = plain(params)[f"{W}.weight"]
    assert floats(params, torch.float64).equal(slow)
    form_of = stored(params, W)
    for rows in (slice(16, 32), slice(5, 39), slice(47, None), torch.tensor([[3, 40], [17, 3]])):
        assert form_of.floats(rows, torch.float64).equal(slow[rows])


@pytest.mark.parametrize("form", FORMS)
def test_integers_are_the_nearest_to_the_rounded_scale(form):
    """No other integer of the form would be nearer: half a step is the most that is lost within the range."""
    weight = normal(32, 128)
    params = made(weight, form)
    off = (floats(params, torch.float64) - weight).abs()
    if form == "nf4":
        levels = torch.tensor(NF4_LEVELS, dtype=torch.float64)
        scales = params[f"{W}.nf4_scales"].double().repeat_interleave(64, dim=1)
        nearest = (weight.double()[..., None] - scales[..., None] * levels).abs().amin(-1)
        # Where two levels are equally far in f32, either is right.
        assert torch.allclose(off, nearest, rtol=0, atol=1e-8)
        return
    (part,) = (part for part in ("scales", "int8_scales", "int4_scales") if f"{W}.{part}" in params)
    scales = params[f"{W}.{part}"].double()
    steps = (
        (scales if part == "scales" else untiled(scales))
        .abs()
        .repeat_interleave(128 if part == "scales" else 32, dim=1)
    )
    inside = off <= steps / 2 * (1 + 1e-6)
    # Numbers at the ends may be cut: by the rounding of the scale, or on purpose, for less error in all.
    assert inside.double().mean() > (0.9 if form.startswith("int4") else 0.96)
    assert (off <= 2 * steps).all()


@pytest.mark.parametrize(("form", "kind"), [("int8", "Q8_0"), ("int4", "Q4_1"), ("int4-sym", "Q4_0")])
def test_no_more_is_lost_than_in_llama_cpps_blocks(form, kind):
    gguf = pytest.importorskip("gguf")
    weight = normal(128, 2048)
    number = gguf.GGMLQuantizationType[kind]
    theirs = torch.from_numpy(gguf.dequantize(gguf.quantize(weight.numpy(), number), number))
    lost = ((theirs - weight).norm() / weight.norm()).item()
    assert error(made(weight, form), weight) < {"int8": 1.001, "int4": 0.95, "int4-sym": 0.999}[form] * lost


@pytest.mark.parametrize("form", FORMS)
def test_f214_groups_of_zeros_are_zeros(form):
    weight = normal(32, 128)
    weight[3] = 0
    weight[7, 64:] = 0
    values = floats(made(weight, form))
    assert values.isfinite().all()
    assert not values[3].any()
    assert form == "int8-row" or not values[7, 64:].any()


@pytest.mark.parametrize("value", [0.0625, -3.0, 1.0, -65504.0])
@pytest.mark.parametrize("form", FORMS)
def test_f215_groups_of_one_value_keep_it(form, value):
    weight = torch.full((16, 64), value)
    assert torch.allclose(floats(made(weight, form)), weight, rtol=1e-3)


@pytest.mark.parametrize("form", FORMS)
def test_f217_negative_zeros_and_denormals(form):
    weight = normal(16, 128)
    weight[0] = -0.0
    weight[1] = 1e-40
    weight[2, ::2] = -1e-42
    values = floats(made(weight, form))
    assert values.isfinite().all()
    assert (values[:2].abs() < 1e-6).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("form", FORMS)
def test_nan_and_infinity_are_refused_by_name(form, bad):
    weight = normal(512, 1024)
    weight[500, 77] = bad
    with pytest.raises(UsageError, match=rf"^{W}\.weight: holds NaN or infinity, which no integers can mean"):
        made(weight, form)


@pytest.mark.parametrize("form", ["int8", "int4", "int4-sym", "nf4"])
def test_what_a_float16_scale_cannot_hold_is_refused(form):
    weight = normal(16, 64)
    weight[2, 3] = 1e8
    with pytest.raises(UsageError, match=rf"^{W}\.weight: reaches 1e\+08, beyond what a float16 scale can hold"):
        made(weight, form)


def test_unknown_forms_and_quantised_weights_are_refused():
    with pytest.raises(UsageError, match="quantised to int8-row, int8, int4, int4-sym, nf4, got 'int3'"):
        quantize(tiny.params(), "int3")
    with pytest.raises(UsageError, match="got 'f32'"):
        quantize(tiny.params(), "int8", embeddings="f32")
    params = quantize(tiny.params(tiny.TILED), "nf4")
    with pytest.raises(
        UsageError, match=r"_scales: this model's weights are quantised already; take its float weights"
    ):
        quantize(params, "int8")


def test_embedding_and_head_are_int8_unless_told_otherwise():
    params = quantize(tiny.params(tiny.TILED), "int4")
    assert stored(params, "tok_embeddings").name == stored(params, "output").name == "int8"
    assert stored(params, "layers.0.feed_forward.w2").name == "int4"
    params = quantize(tiny.params(tiny.TILED), "int8", embeddings="nf4")
    assert stored(params, "output").name == "nf4"


@pytest.mark.parametrize("form", FORMS)
def test_a_tied_head_stays_the_same_tensors(form, tmp_path):
    config = replace(tiny.TILED, tied=True, vocab_size=272)
    params = quantize(tiny.params(config), form, embeddings=form)
    heads = {name: tensor for name, tensor in params.items() if name.startswith("output.")}
    assert len(heads) == (3 if form == "int4" else 2)
    assert all(tensor is params[name.replace("output", "tok_embeddings")] for name, tensor in heads.items())
    back = dequantize(params, torch.float32)
    assert back["output.weight"] is back["tok_embeddings.weight"]

    write_meta(tmp_path / "m", params, config, None)
    read_config, read = read_meta(tmp_path / "m")
    assert read_config == config and read.keys() == params.keys()
    assert all(read[name].equal(tensor) and read[name].dtype == tensor.dtype for name, tensor in params.items())
    assert all(read[name] is read[name.replace("output", "tok_embeddings")] for name in heads)
    embedding = params["tok_embeddings.weight"].nbytes
    assert (tmp_path / "m/consolidated.00.pth").stat().st_size < sum(
        tensor.nbytes for name, tensor in params.items() if name not in heads
    ) + embedding / 2 + 100_000  # stored once


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("embeddings", FORMS)
def test_a_warning_for_each_form_says_what_did_not_fit(form, embeddings, caplog):
    """tiny.CONFIG: D=48 and F=40 aren't in 32s, V=67 isn't in 16s."""
    params = quantize(tiny.params(), form, embeddings=embeddings)
    assert {stored(params, name.removesuffix(".weight")).name for name in params if name.endswith("w2.weight")} == {
        "int8-row"
    }
    its = {"int8-row": None, "nf4": "columns in 64s"} | dict.fromkeys(
        ("int8", "int4", "int4-sym"), "rows in 16s and columns in 32s"
    )
    ends = ["tok_embeddings (67 × 48)", "output (67 × 48)"]
    first = "layers.0.attention.wq (48 × 48), layers.0.attention.wk (16 × 48)"
    wanted = {
        embeddings: [f"{', '.join(ends)} are stored as int8-row: {embeddings} takes {its[embeddings]}"],
        form: [f"{first}, ", f" and 31 more are stored as int8-row: {form} takes {its[form]}"],
    }
    if form == embeddings:
        wanted = {form: [ends[0], f"{first}, ", f" and 33 more are stored as int8-row: {form} takes {its[form]}"]}
    wanted.pop("int8-row", None)
    assert len(caplog.messages) == len(wanted)
    for parts in wanted.values():
        assert any(all(part in said for part in parts) for said in caplog.messages), caplog.messages


def test_a_model_that_fits_warns_of_nothing(caplog):
    quantize(tiny.params(tiny.TILED), "int4")
    assert not caplog.records


def test_nothing_given_is_changed_or_kept(tmp_path):
    """The result doesn't share memory with the source, so a mapped file can go."""
    write_meta(tmp_path / "m", tiny.params(tiny.TILED, dtype=torch.bfloat16), tiny.TILED, None)
    source = open_pth(tmp_path / "m/consolidated.00.pth")
    before = {name: tensor.clone() for name, tensor in source.items()}
    params = quantize(source, "int4")
    theirs = {tensor.untyped_storage().data_ptr() for tensor in source.values()}
    assert not theirs & {tensor.untyped_storage().data_ptr() for tensor in params.values()}
    assert all(source[name].equal(tensor) for name, tensor in before.items())


def test_only_a_piece_is_held_as_floats():
    """8 million bf16 weights, of which at most a few pieces of 1 MB are f32 at a time."""
    weight = normal(8192, 1024).bfloat16()
    with torch.profiler.profile(profile_memory=True) as profile:
        made(weight, "int4")
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert max(event.nbytes() for event in events) <= 5 * 2**20  # the result's 4 MB of integers


def test_adapters_stay_beside_the_integers():
    params = with_adaptors(tiny.params(tiny.TILED))
    small = quantize(params, "nf4")
    names = [name for name in params if ".adaptor." in name]
    assert names and all(small[name] is params[name] for name in names)
    assert set(dequantize(small, torch.float32)) == set(params)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dequantize_is_the_same_model(form, dtype, torch_only):
    params = quantize(tiny.params(tiny.TILED), form)
    back = dequantize(params, dtype)
    assert {tensor.dtype for tensor in back.values()} == {dtype}
    for name in back:
        if back[name].ndim == 2:
            wanted = stored(params, name.removesuffix(".weight")).floats(slice(None), torch.float32)
            assert back[name].equal(wanted.to(dtype))
    if dtype == torch.float32:
        tokens_BT = tiny.tokens(1, 9)
        ours = forward(tokens_BT, params, tiny.TILED, dtype=dtype)
        assert torch.allclose(ours, forward(tokens_BT, back, tiny.TILED), rtol=1e-5, atol=1e-4)


def test_tiling_is_undone_by_its_inverse():
    of_groups = torch.arange(48 * 3).view(48, 3)
    assert tiled(of_groups)[2, 1, 5] == of_groups[2 * 16 + 5, 1]
    assert untiled(tiled(of_groups)).equal(of_groups)
    values = torch.arange(48 * 3 * 32).view(48, 3, 32).to(torch.int8)
    assert tiled_values(values)[2, 1, 6, 5, 3] == values[2 * 16 + 5, 1, 6 * 4 + 3]
    assert untiled_values(tiled_values(values)).equal(values)


@pytest.mark.parametrize("kind", TILED)
def test_blocks_and_tiles_are_the_same_numbers(kind):
    """Of blocks of random bytes, so that every bit pattern of integers and scales comes by; NaN stays NaN."""
    rows, columns = 48, 96
    n_bytes = BLOCK_FORMATS[kind].n_bytes
    generator = torch.Generator().manual_seed(3)
    blocks = torch.randint(256, (rows * columns // 32 * n_bytes,), generator=generator, dtype=torch.uint8)
    parts = tiles_of_blocks(blocks, kind, (rows, columns))
    form = stored({f"w.{part}": tensor for part, tensor in parts.items()}, "w")
    assert isinstance(form, Tiles) and block_format(form) == kind and form.shape == (rows, columns)
    wanted = floats_of_blocks(blocks, kind).view(rows, columns)
    ours = form.floats(slice(None), torch.float32)
    assert ours.nan_to_num(7).equal(wanted.nan_to_num(7))
    assert blocks_of_tiles(form).flatten().equal(blocks)
