"""`--trace-compare`: two runs beside each other part at the step where the mistake is, and only there."""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import replace

import pytest
import torch

from llama3_scratch import generate
from llama3_scratch.cache import Cache
from llama3_scratch.checkpoint.load import load
from llama3_scratch.checkpoint.meta import write_meta
from llama3_scratch.compare.difference import difference
from llama3_scratch.config import RopeScaling
from llama3_scratch.model import forward
from llama3_scratch.trace import compare
from llama3_scratch.trace.compare import first_divergence
from llama3_scratch.trace.references import one_pass, transformers
from llama3_scratch.trace.tracer import watch
from tests import mutations as mistakes
from tests import tiny
from tests.trace.places import (
    BEFORE_LAYER_0,
    EMBEDDED,
    GATE,
    MASKED,
    PLACE,
    RAW_K,
    RAW_Q,
    ROTATION,
    SCORES,
    TURNED_Q,
    VISIBLE,
)

TOLERANCE = 1e-9

# From one pass of our own, which has the steps between too.
NORM = "layers.0.attention_norm.rms_norm"
FINER = {
    "mask one too far": VISIBLE,
    "mask one too short": VISIBLE,
    "no mask": VISIBLE,
    "factor 8 for 32": "scale_frequencies.slowed_J",
    "no scaling": "scale_frequencies.wavelength_J",
    "scaling of Llama 3's 4096": "scale_frequencies.slowed_J",
    "high_freq_factor 3": "scale_frequencies.smooth_J",
    "theta 10000": "rope_frequencies.freqs_J",
    "eps 1e-6": f"{NORM}.normed_BTD",
    "eps 1e-3": f"{NORM}.normed_BTD",
    "a layer short": "layers.4.attention_norm.rms_norm.wide_BTD",
    "half rotation": "layers.0.attention.rotate.pairs_BTNJ",
    "rotation the other way": "layers.0.attention.rotate.turned_BTNJ",
    "no rotation": "layers.0.attention.rotate.pairs_BTNJ",
    "norms swapped": f"{NORM}.return",
    "first layers swapped": f"{NORM}.return",
    "norm weights left out": f"{NORM}.return",
    "LayerNorm": f"{NORM}.wide_BTD",
    "cached steps one position early": "pass1.rope_frequencies.exponents_J.2",  # the mistake makes a table of its own
}


@pytest.fixture(scope="module")
def shorter():
    """The mistakes' run, short enough to be traced sixty times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mistakes, "T", 28)
        patch.setattr(mistakes, "STEPS", 2)
        yield


@pytest.fixture(scope="module")
def references(shorter):
    """Honest runs by name, each computed once and told again to every test."""
    params = tiny.params(dtype=torch.float64)
    made = {"one pass": one_pass("one pass", params, tiny.CONFIG, torch.float64)}
    if importlib.util.find_spec("transformers"):
        made["transformers"] = transformers(params, tiny.CONFIG, torch.float64)
    return {name: told_again(reference) for name, reference in made.items()}


def told_again(reference):
    @functools.cache
    def heard(n_logits):
        told = []
        with torch.inference_mode():
            rows = reference.run(tiny.tokens(1, mistakes.T), n_logits, lambda *tensor: told.append(tensor))
        return told, rows

    def run(tokens_1T, n_logits, take):
        told, rows = heard(n_logits)
        for tensor in told:
            take(*tensor)
        return rows

    return replace(reference, run=run)


def against(reference, params, config):
    with watch(keep=compare.needs) as steps:
        mistakes.ours(params, config)
    return compare.compare(steps, reference, TOLERANCE)


@pytest.mark.parametrize("name", ["one pass", "transformers"])
def test_honest_runs_agree_in_every_step_and_every_pass(references, name):
    if name not in references:
        pytest.skip("the parity extra: pip install -e '.[parity]'")
    rows = against(references[name], tiny.params(dtype=torch.float64), tiny.CONFIG)
    assert first_divergence(rows) is None
    assert {row.step.call for row in rows if row.step} == {0, 1, 2}
    compared = {row.step.key for row in rows if row.step and row.step.call == 2}
    assert {EMBEDDED, ROTATION, BEFORE_LAYER_0, RAW_Q, RAW_K, TURNED_Q, SCORES, MASKED, GATE} <= compared
    assert max(row.difference.worst for row in rows) < 1e-11


@pytest.mark.parametrize("mistake", mistakes.MUTATIONS)
def test_each_mistake_is_found_at_its_step(references, mistake):
    with pytest.MonkeyPatch.context() as patch:
        params, config = mistakes.MUTATIONS[mistake](patch, tiny.params(dtype=torch.float64), tiny.CONFIG)
        with watch(keep=compare.needs) as steps:
            mistakes.ours(params, config)
    for reference in references.values():
        first = first_divergence(compare.compare(steps, reference, TOLERANCE))
        places = PLACE if reference.name == "transformers" else PLACE | FINER
        assert (reference.name, first.difference.name) == (reference.name, places[mistake])


def test_what_one_run_lacks_is_said():
    params, config = tiny.params(), tiny.CONFIG
    with watch(keep=compare.needs) as steps:
        forward(tiny.tokens(1, 9), params, config, block=mistakes.block)
    shorter = replace(config, n_layers=4)
    for ours, theirs, note in [(config, shorter, "only in this run"), (shorter, config, "only in the other run")]:
        with watch(keep=compare.needs) as steps:
            forward(tiny.tokens(1, 9), params, ours, block=mistakes.block)
        first = first_divergence(compare.compare(steps, one_pass("", params, theirs, torch.float32), 1e-6))
        assert (first.note, first.difference.name) == (note, "layers.4.attention_norm.rms_norm.wide_BTD")


def test_difference_is_in_standard_deviations_of_theirs():
    theirs = torch.tensor([-1.0, 1.0, -1.0, 1.0]) * 4
    found = difference("", theirs + torch.tensor([0.0, 0.0, 0.0, 2.0]), theirs, 0.1)
    assert (found.worst, found.mean, found.std, found.diverges) == (0.5, 0.125, 4.0, True)
    assert difference("", torch.tensor([1e6, 1e6]), torch.tensor([1e6, 1e6 + 1]), 0.1).worst == pytest.approx(1e-5)
    for value in (torch.nan, torch.inf):
        assert difference("", torch.tensor([value, 1.0]), torch.tensor([0.0, 1.0]), 0.1).mean == torch.inf
    masked = torch.tensor([-torch.inf, 1.0])
    assert not difference("", masked, masked.clone(), 0.0).diverges


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    return str(tiny.folder(tmp_path_factory.mktemp("compare") / "chats"))


@pytest.fixture
def run(chats, capsys):
    def run(*argv, model=chats):
        code = generate.main(["Hi", "--model", model, "--max-tokens", "2", *argv])
        out, err = capsys.readouterr()
        return code, out, err.splitlines()[-1]

    return run


@pytest.mark.parametrize("other", ["hf", "full", "float64", "bfloat16", "float16", "model", "recorded"])
def test_the_same_model_differs_by_rounding_alone(run, chats, tmp_path, other):
    if other == "hf":
        pytest.importorskip("transformers", reason="the parity extra: pip install -e '.[parity]'")
    names = {"model": chats, "recorded": str(tmp_path / "run.safetensors")}
    if other == "recorded":
        assert run("--trace-out", names[other], "--trace-tokens", "2")[0] == 0
    code, out, _ = run("--trace-compare", names.get(other, other), "--trace-tokens", "2")
    assert code == 0 and "── this run and " in out
    assert out.splitlines()[-1].startswith("none of ") and "pass1.unembed.logits_BTV" in out


def test_another_models_first_different_step_is_named_with_its_line(run, tmp_path, chats):
    other = load(chats)
    params = dict(other.params)
    params["layers.3.attention.wk.weight"] = params["layers.3.attention.wk.weight"] * 1.01
    write_meta(tmp_path / "other", params, other.config, other.tokenizer)
    code, out, error = run("--trace-compare", str(tmp_path / "other"))
    assert code == 4
    assert error.startswith(
        f"error: layers.3.attention.k_BTGK is the first step that differs from {tmp_path / 'other'}: by "
    )
    assert 'of attention: k_BTGK = linear(x_BTD, params, f"{name}.wk").unflatten(-1, (G, K))' in error
    unlike = [line for line in out.splitlines() if line.startswith("≠")]
    assert (
        unlike[0].split()[1] == "layers.3.attention.k_BTGK" and "… layers.4." in out and "layers.3.attention.q" in out
    )
    assert run("--trace-compare", str(tmp_path / "other"), "--trace-tolerance", "1")[0] == 0
    assert run("--trace-compare", str(tmp_path / "other"), "--trace-layers", "0,1", "--trace-steps", "q_BTHK")[0] == 0


def test_what_rope_scaling_changes_is_seen_in_one_command(run, tmp_path):
    """A newcomer's question: which step differs when RoPE's scaling is off?"""
    scaled = load(str(tiny.folder(tmp_path / "plain")))
    config = replace(scaled.config, rope_scaling=RopeScaling(8.0), rope_theta=100_000.0)  # one pair of 4 is slowed
    write_meta(tmp_path / "scaled", scaled.params, config, scaled.tokenizer)
    model = str(tmp_path / "scaled")
    code, _, error = run("--rope-scale-factor", "1", "--trace-compare", model, model=model)
    assert code == 4 and error.startswith("error: scale_frequencies.slowed_J is the first step that differs from ")


def test_a_run_of_another_prompt_or_no_run_at_all_is_told(run, tmp_path, chats, capsys):
    path = str(tmp_path / "run.safetensors")
    assert generate.main(["Longer", "--model", chats, "--max-tokens", "1", "--trace-out", path]) == 0
    capsys.readouterr()
    code, _, error = run("--trace-compare", path)
    assert code == 4 and "tok_embeddings.embed.rows_BTD is the first step" in error and "shape [1, " in error
    (tmp_path / "no.safetensors").write_bytes(b"nothing")
    assert run("--trace-compare", str(tmp_path / "no.safetensors"))[0] == 3
    assert run("--trace-compare", str(tmp_path / "absent.safetensors"))[0] == 3
    code, _, error = run("--trace-compare", f"{chats}/no-such-folder")
    assert code == 3
    weights = tmp_path / "weights.safetensors"
    from safetensors.torch import save_file

    save_file({"model.norm.weight": torch.ones(48)}, weights)
    code, _, error = run("--trace-compare", str(weights))
    assert (code, error) == (2, "error: weights.safetensors: no step of that run is one of those traced in this one")
    save_file({"ids": torch.ones(3, dtype=torch.int64)}, weights)
    code, _, error = run("--trace-compare", str(weights))
    assert code == 3 and error.endswith("has no tensor of a run; write one with --trace-out weights.safetensors")


def test_a_model_with_other_tokens_cannot_be_compared(run, tmp_path):
    config = replace(tiny.CONFIG, vocab_size=300, hidden_dim=44)
    write_meta(tmp_path / "other", tiny.params(config), config, tiny.tokenizer())
    code, _, error = run("--trace-compare", str(tmp_path / "other"))
    assert code == 2 and error.endswith(
        "its vocabulary has 300 tokens, this model's 272; the same text is no run of both"
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--trace-tolerance", "1"], "--trace-tolerance goes with --trace-compare"),
        (["--trace-compare", "full", "--json"], "prints numbers for people"),
        (["--trace-compare", "full", "--no-weights"], "prints numbers for people"),
        (["--trace-compare", "full", "--prompt", "two"], "takes one prompt"),
        (["--trace-compare", "hf", "--dtype", "bfloat16"], "expected --device cpu and --dtype float32 or float64"),
    ],
)
def test_options_that_cannot_be(run, argv, message):
    code, _, error = run(*argv)
    assert code == 2 and message in error


def test_a_cached_pass_has_rows_of_the_tokens_that_they_are_about():
    """Every pass is given its own tokens of the one pass: a cached step sees all keys and one query."""
    params, tokens_1T, cache = tiny.params(dtype=torch.float64), tiny.tokens(1, 9), Cache(9)
    with watch(keep=compare.needs) as steps:
        for piece in (tokens_1T[:, :4], tokens_1T[:, 4:8], tokens_1T[:, 8:]):
            forward(piece, params, tiny.CONFIG, cache=cache, block=mistakes.block)
    reference = one_pass("", params, tiny.CONFIG, torch.float64)
    rows = compare.compare(steps, reference, TOLERANCE)
    assert first_divergence(rows) is None
    scores = [row.step.shape for row in rows if row.step and row.step.key == SCORES]
    assert [shape[-2:] for shape in scores] == [(4, 4), (4, 8), (1, 9)]
    assert sum(row.step.name == "logits_BTV" for row in rows if row.step) == 3
