"""What is checked before a dict of tensors is believed to be the model of its config, and the scan of its numbers."""

import logging
import re

import pytest
import torch

from llama3_scratch.checkpoint.check import check, known_names, scan
from llama3_scratch.config import expected
from llama3_scratch.errors import FileError
from llama3_scratch.params.quantize import quantize
from llama3_scratch.stored import n_bytes
from tests import tiny
from tests.forms import FORMS, fitting

W = "layers.1.feed_forward.w2"  # [48, 40]
INT4 = FORMS["adaptors on int4"](tiny.params())


@pytest.mark.parametrize("form", [form for form in FORMS if form != "f64"])
def test_every_form_is_known(form):
    config = fitting(form)
    check(FORMS[form](tiny.params(config)), config, "here")


@pytest.mark.parametrize(
    "changes, said",
    [
        pytest.param({f"{W}.weight": None}, f"{W}.weight is missing; expected 48 tensors, got", id="F017"),
        pytest.param({f"{W}.weights": torch.ones(48, 40)}, f"{W}.weights is not part of a Llama", id="F018"),
        pytest.param({f"{W}.scale": torch.ones(48, 5)}, f"{W}.scale is not part of a Llama", id="F018-sibling"),
        pytest.param({"norm.scales": torch.ones(1)}, "norm.scales is not part of a Llama", id="F018-norm"),
        pytest.param(
            {"tok_embeddings.adaptor.scale": torch.ones(1)},
            "tok_embeddings.adaptor.scale is not part of a Llama",
            id="F018-embedding",
        ),
        pytest.param(
            {f"{W}.weight": torch.ones(40, 48).char()},
            rf"{W}.weight: shape \[40, 48\], expected \[48, 40\] \(from dim, multiple_of, ffn_dim_multiplier\)",
            id="F019",
        ),
        pytest.param(
            {"layers.0.attention.wk.weight": torch.ones(48, 48).char()},
            r"wk.weight: shape \[48, 48\], expected \[16, 48\] \(from n_kv_heads, n_heads, dim\)",
            id="F019-wk",
        ),
        pytest.param(
            {"output.weight": torch.ones(68, 48).char()},
            r"output.weight: shape \[68, 48\], expected \[67, 48\] \(from vocab_size, dim\)",
            id="F019-output",
        ),
        pytest.param({"norm.weight": torch.ones(48).long()}, "norm.weight: dtype int64, expected bfloat16", id="F020"),
        pytest.param(
            {f"{W}.weight": torch.ones(48, 40)},
            f"{W}.weight: dtype float32 beside its scales, expected int8",
            id="F020-x",
        ),
        pytest.param({f"{W}.scales": None}, f"{W}.weight: dtype int8, expected bfloat16 or", id="no-scales"),
        pytest.param({f"{W}.scales": torch.ones(48, 5).int()}, f"{W}.scales: dtype int32, expected", id="int-scales"),
        pytest.param(
            {f"{W}.scales": torch.ones(48, 3)},
            rf"{W}.scales: shape \[48, 3\], expected \[48, groups\] with groups dividing 40",
            id="groups",
        ),
        pytest.param({f"{W}.scales": torch.ones(48)}, rf"{W}.scales: shape \[48\], expected", id="flat-scales"),
        pytest.param({f"{W}.scales": torch.ones(48, 0)}, rf"{W}.scales: shape \[48, 0\], expected", id="no-groups"),
        pytest.param({f"{W}.zeros": torch.ones(48, 4)}, rf"{W}.zeros: shape \[48, 4\], expected \[48, 5\]", id="zeros"),
        pytest.param(
            {f"{W}.scales": None, f"{W}.weight": torch.ones(48, 40), f"{W}.zeros": torch.ones(48, 5)},
            f"{W}.zeros without {W}.scales",
            id="zeros-alone",
        ),
        *(
            pytest.param(
                {f"{W}.adaptor.{part}": None}, f"{W}.adaptor.{part} is missing, an adapter is A, B and", id=part
            )
            for part in ("A.weight", "B.weight", "scale")
        ),
        pytest.param(
            {f"{W}.adaptor.A.weight": torch.ones(4, 40)},
            rf"{W}.adaptor: A \[4, 40\], B \[48, 3\] and scale \[\] don't fit \[48, 40\]; expected A \[rank, 40\]",
            id="ranks",
        ),
        pytest.param({f"{W}.adaptor.B.weight": torch.ones(48)}, rf"{W}.adaptor: A \[3, 40\], B \[48\]", id="vector"),
        pytest.param({f"{W}.adaptor.scale": torch.ones(2)}, rf"{W}.adaptor: .* scale \[2\] don't fit", id="scales"),
        pytest.param(
            {f"{W}.adaptor.magnitude": torch.ones(40)},
            rf"{W}.adaptor.magnitude: shape \[40\], expected \[48\] \(a length for each row\)",
            id="magnitude",
        ),
        pytest.param(
            {f"{W}.adaptor.magnitude": torch.ones(48).int()}, rf"{W}.adaptor.magnitude: dtype int32", id="int-magnitude"
        ),
        pytest.param(
            {"norm.adaptor.magnitude": torch.ones(48)},
            "norm.adaptor.magnitude is not part of a Llama",
            id="norm-magnitude",
        ),
        pytest.param(
            {f"{W}.adaptor.A.weight": torch.ones(3, 40).int()}, rf"{W}.adaptor.A.weight: dtype int32", id="int-adaptor"
        ),
    ],
)
def test_refused(changes, said):
    params = {name: tensor for name, tensor in (INT4 | changes).items() if tensor is not None}
    with pytest.raises(FileError, match=said) as caught:
        check(params, tiny.CONFIG, "here")
    assert caught.value.exit_code == 3 and str(caught.value).startswith("here: ")


def test_a_magnitude_alone_is_refused():
    params = tiny.params() | {f"{W}.adaptor.magnitude": torch.ones(48)}
    with pytest.raises(FileError, match=f"{W}.adaptor.A.weight is missing, an adapter is A, B and scale"):
        check(params, tiny.CONFIG, "here")


V = "layers.1.feed_forward.w1"  # [64, 192] of tiny.TILED
SMALL = {form: quantize(tiny.params(tiny.TILED), form) for form in ("int8", "int4", "nf4")}


@pytest.mark.parametrize(
    "form, changes, said",
    [
        pytest.param(
            "int8",
            {f"{V}.weight": torch.ones(64, 192).char()},
            rf"{V}.weight: shape \[64, 192\], expected \[4, 6, 8, 16, 4\] \(from dim, .*, beside int8_scales\)",
            id="F019-int8",
        ),
        pytest.param(
            "int8", {f"{V}.int8_scales": None}, rf"{V}.weight: shape \[4, .*, expected \[64, 192\]", id="int8-alone"
        ),
        pytest.param(
            "int8",
            {f"{V}.int8_scales": torch.ones(64, 6).half()},
            rf"{V}.int8_scales: shape \[64, 6\], expected \[4, 6, 16\] \(of a weight of 64 × 192\)",
            id="F019-int8-scales",
        ),
        pytest.param(
            "int8",
            {f"{V}.int8_scales": torch.ones(4, 6, 16)},
            f"{V}.int8_scales: dtype float32, expected float16",
            id="F020-int8-scales",
        ),
        pytest.param(
            "int8",
            {f"{V}.weight": torch.ones(4, 6, 8, 16, 4).byte()},
            f"{V}.weight: dtype uint8 beside its scales, expected int8",
            id="F020-int8",
        ),
        pytest.param(
            "int8",
            {f"{V}.scales": torch.ones(64, 1)},
            f"{V} has scales and int8_scales, expected one form",
            id="two-forms",
        ),
        pytest.param(
            "int8",
            {f"{V}.int4_mins": torch.ones(4, 6, 16).half()},
            f"{V}.int4_mins without {V}.int4_scales, expected both or neither",
            id="mins-alone",
        ),
        pytest.param(
            "int4",
            {f"{V}.int4_mins": torch.ones(4, 6, 8).half()},
            rf"{V}.int4_mins: shape \[4, 6, 8\], expected \[4, 6, 16\] \(that of the scales\)",
            id="F019-mins",
        ),
        pytest.param(
            "int4",
            {f"{V}.int4_mins": torch.ones(4, 6, 16)},
            f"{V}.int4_mins: dtype float32, expected float16",
            id="F020-mins",
        ),
        pytest.param(
            "int4",
            {f"{V}.weight": torch.ones(4, 6, 8, 16, 4).byte()},
            rf"{V}.weight: shape .*, expected \[4, 6, 4, 16, 4\]",
            id="F019-int4",
        ),
        pytest.param(
            "nf4",
            {f"{V}.weight": torch.ones(64, 192).byte()},
            rf"{V}.weight: shape \[64, 192\], expected \[64, 96\]",
            id="F019-nf4",
        ),
        pytest.param(
            "nf4",
            {f"{V}.nf4_scales": torch.ones(64, 6).half()},
            rf"{V}.nf4_scales: shape \[64, 6\], expected \[64, 3\] \(of a weight of 64 × 192\)",
            id="F019-nf4-scales",
        ),
        pytest.param(
            "nf4", {f"{V}.nf4_scales": torch.ones(64, 3).int()}, f"{V}.nf4_scales: dtype int32", id="F020-nf4-scales"
        ),
        pytest.param(
            "int4", {"norm.int4_mins": torch.ones(4)}, "norm.int4_mins is not part of a Llama", id="F018-mins"
        ),
    ],
)
def test_quantised_forms_refused(form, changes, said):
    params = {name: tensor for name, tensor in (SMALL[form] | changes).items() if tensor is not None}
    with pytest.raises(FileError, match=said) as caught:
        check(params, tiny.TILED, "here")
    assert caught.value.exit_code == 3 and str(caught.value).startswith("here: ")


def test_tiles_of_a_weight_that_has_none_are_refused():
    params = tiny.params() | {f"{W}.int8_scales": torch.ones(3, 1, 16).half()}
    with pytest.raises(
        FileError, match=rf"{W}.int8_scales: a weight of 48 × 40, expected rows in 16s and columns in 32s"
    ):
        check(params, tiny.CONFIG, "here")


@pytest.mark.parametrize("part", ["int4_scales", "int4_mins"])
def test_f021_in_scales_of_tiles(part):
    params = {key: tensor.clone() for key, tensor in SMALL["int4"].items()}
    params[f"{V}.{part}"][2, 1, 7] = float("nan")
    with pytest.raises(FileError, match=rf"here: {V}.{part}: 1 NaN or infinite values, the first at \[2, 1, 7\]"):
        scan(params, "here")


def test_f017_ten_names_and_a_count():
    names = [name for name in expected(tiny.CONFIG) if "wq" in name or "wk" in name or "norm" in name]
    params = {name: tensor for name, tensor in tiny.params().items() if name not in names}
    with pytest.raises(FileError) as caught:
        check(params, tiny.CONFIG, "here")
    assert f"{', '.join(names[:10])} and 11 more are missing; expected 48 tensors, got 27" in str(caught.value)


def test_siblings_stand_where_something_reads_them():
    known = known_names(tiny.CONFIG)
    assert {"output.adaptor.scale", "tok_embeddings.zeros", f"{W}.adaptor.B.weight"} <= known
    assert not {"norm.scales", "layers.0.ffn_norm.zeros", "tok_embeddings.adaptor.A.weight"} & known


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_f021_not_finite(dtype, bad):
    params = tiny.params(dtype=dtype)
    params[f"{W}.weight"][7, 3] = params[f"{W}.weight"][9, 0] = bad
    with pytest.raises(FileError, match=rf"^here: {W}.weight: 2 NaN or infinite values, the first at \[7, 3\]$"):
        scan(params, "here")


def test_f021_in_scales_and_adapters():
    for name in (f"{W}.scales", f"{W}.adaptor.B.weight"):
        params = {key: tensor.clone() for key, tensor in INT4.items()}
        params[name][5] = float("nan")
        with pytest.raises(FileError, match=rf"here: {name}: \d+ NaN or infinite values, the first at \[5, 0\]"):
            scan(params, "here")


@pytest.mark.parametrize(
    "change, said",
    [
        pytest.param(lambda weight: weight.zero_(), "root mean square 0,", id="F022-zero"),
        pytest.param(lambda weight: weight.mul_(1e6), "root mean square 303845,", id="F022-huge"),
        pytest.param(lambda weight: weight.fill_(3e38), "root mean square inf,", id="F022-beyond-f32"),
    ],
)
def test_f022_dead_or_wild(change, said, caplog):
    params = tiny.params()
    change(params[f"{W}.weight"])
    scan(params, "here")
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(f"here: {W}.weight: root mean square")
    assert re.search(said, record.getMessage())


def test_f022_a_shared_weight_is_told_once(caplog):
    params = tiny.params()
    params["output.weight"] = params["tok_embeddings.weight"].zero_()
    scan(params, "here")
    assert [record.getMessage().split(":")[1] for record in caplog.records] == [" tok_embeddings.weight"]


def test_a_good_model_passes_in_silence(caplog):
    for params in (tiny.params(), INT4):
        scan(params, "here")
    assert not caplog.records


def test_a_shared_weight_counts_once():
    params = tiny.params()
    size = n_bytes(params)
    assert size == 4 * tiny.CONFIG.n_parameters
    params["output.weight"] = params["tok_embeddings.weight"]
    assert n_bytes(params) == size - 4 * 67 * 48
