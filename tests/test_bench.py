"""bench: what it computes is checked by hand, what it prints is parsed; how long anything takes is asserted nowhere."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llama3_scratch import bench, convert, generate, stored
from llama3_scratch.benchmark import measure, ours, peers, startup, worker
from llama3_scratch.benchmark.report import EngineResult, Trial, markdown, prefill_flops, report, step_bytes
from llama3_scratch.benchmark.worker import Worker
from llama3_scratch.checkpoint.description import describe
from llama3_scratch.checkpoint.load import load
from llama3_scratch.config import OFFICIAL
from llama3_scratch.errors import FileError, Llama3Error, UsageError
from llama3_scratch.inference.sample import sampler
from llama3_scratch.model import forward
from llama3_scratch.native import kernels
from llama3_scratch.params.quantize import quantize
from llama3_scratch.system.timings import peak_rss_bytes
from llama3_scratch.terminal import batches
from llama3_scratch.text.tokenizer import PATTERN, Tokenizer
from tests import tiny
from tests.batches import stream_all

# Rows and columns in whole tiles, so that the integers fit too; D=64 L=2 H=4 G=2 V=288 F=96, K=16
CONFIG = replace(
    tiny.CONFIG, dim=64, n_layers=2, n_heads=4, vocab_size=288, hidden_dim=96, max_seq_len=128, head_dim=16
)
SMALL = ["--pp", "8", "--tg", "4", "-r", "2", "--threads", "1"]
MACHINE = {"bandwidth": 1e9, "f32": 1e9, "int8": 4e9}
PP, TG, LATER = Trial(8), Trial(4, 0), Trial(4, 20)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from llama3_scratch.checkpoint.meta import write_meta

    folder = tmp_path_factory.mktemp("bench") / "tiny"
    words = Tokenizer(
        {bytes([byte]): byte for byte in range(256)} | {b"th": 256},  # llama.cpp reads no vocabulary without a merge
        pattern=PATTERN,
        special_tokens={"<s>": 257, "</s>": 258},
        bos_id=257,
        eos_id=258,
        stop_tokens=[258],
        chat_format=None,
        add_bos=True,
    )
    write_meta(folder, tiny.params(CONFIG), CONFIG, words)
    return folder


def row(engine, form, rates, **changes):
    values = {"model": "m", "kv": 32, "batch": 1, "load_s": 1.5, "read_bytes": 1000, "slot_bytes": 10}
    return EngineResult(engine=engine, form=form, config=CONFIG, rates=rates, **{**values, **changes})


@pytest.mark.slow
def test_json_has_every_sample_and_the_table_says_the_same(model, capsys):
    arguments = [str(model), "--forms", "f32,int8", "--batch", "1,3", "--contexts", "0,20", *SMALL]
    assert bench.main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tests"] == ["pp8", "tg4", "tg4@20"] and found["repeats"] == 2 and found["threads"] == 1
    assert found["command"].startswith("python -m llama3_scratch.bench")
    assert found["versions"]["torch"] and found["cpu"] and re.match(r"\d{4}-\d\d-\d\dT", found["date"])
    assert found["machine"]["bandwidth"] > 1e8 and found["machine"]["f32"] > 1e8
    assert len(found["machine"]["samples"]) == 4  # two runs of two batches
    kinds = [(row["form"], row["kv"], row["batch"]) for row in found["rows"]]
    assert kinds == [("f32", 32, 1), ("int8", 32, 1), ("f32", 32, 3), ("int8", 32, 3)]
    for row in found["rows"]:
        assert row["engine"] == "llama3_scratch" and row["load_s"] > 0
        assert row["peak_bytes"] > 20e6 and row["read_bytes"] > 0
        for cell in row["tests"].values():
            assert len(cell["samples"]) == 2 and all(rate > 0 for rate in cell["samples"])
            assert cell["median"] == pytest.approx(sum(cell["samples"]) / 2)
            assert cell["percent_of_limit"] == pytest.approx(100 * cell["median"] / cell["limit"])
    lines = markdown(found).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert len(cells) == 2 + 4 and {len(line) for line in cells} == {7 + 2 * 3}
    assert [line[2] for line in cells[2:]] == ["f32", "int8", "f32", "int8"]
    assert all(re.fullmatch(r"[\d.]+ ± [\d.]+", line[7]) for line in cells[2:])


def test_limits_by_hand():
    assert (
        prefill_flops(CONFIG, 8, 1)
        == 2 * (2 * 8 * (64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 96) + sum(4 * 64 * (t + 1) for t in range(8)))
        + 2 * 64 * 288
    )
    assert prefill_flops(CONFIG, 8, 3) == 3 * prefill_flops(CONFIG, 8, 1)
    # Each of 4 steps sees 21, 22, 23 and 24 slots.
    assert step_bytes(1000, 10, LATER, 3) == 1000 + 3 * 10 * (21 + 22 + 23 + 24) / 4
    f32, int8 = row("llama3_scratch", "f32", {}), row("llama3_scratch", "int8", {}, batch=3)
    assert f32.limit(PP, MACHINE) == pytest.approx(8 * 1e9 / prefill_flops(CONFIG, 8, 1))
    assert int8.limit(PP, MACHINE) == pytest.approx(8 * 4e9 / prefill_flops(CONFIG, 8, 1))
    assert int8.limit(LATER, MACHINE) == pytest.approx(3 * 1e9 / (1000 + 3 * 10 * 22.5))


def test_the_limit_is_the_usual_roof_and_ratios_are_of_medians():
    rows = [
        row("llama3_scratch", "int8", {"tg4": [10.0, 1000.0, 12.0]}),
        row("llama.cpp", "Q8_0", {"tg4": [6.0, 5.0, 0.1]}),
        row("llama.cpp", "Q4_0", {"tg4": [50.0, 50.0, 50.0]}),
        row("hf", "f32", {"tg4": [2.0, 2.0, 9.0]}),
        row("hf", "bf16", {"tg4": [3.0, 3.0, 3.0]}),
        row("hf", "bf16", {"tg4": [99.0]}, batch=4),
    ]
    found = report(
        rows,
        [PP, TG],
        [MACHINE, MACHINE | {"bandwidth": 2e9}, MACHINE | {"bandwidth": 9e9}],
        cpu="",
        date="",
        repeats=3,
        threads=1,
    )
    ours, theirs = found["rows"][0]["tests"]["tg4"], found["rows"][1]["tests"]["tg4"]
    assert ours["ratios"] == {"llama.cpp Q8_0": 12 / 5, "hf bf16": 12 / 3}
    assert ours["mean"] == pytest.approx(1022 / 3) and ours["sd"] == pytest.approx(571.00, abs=0.01)
    assert ours["limit"] == pytest.approx(2e9 / 1025) and theirs["ratios"] == {}
    assert "pp8" not in found["rows"][0]["tests"]  # nothing was measured
    assert "| llama.cpp Q8_0: tg4 2.40×; hf bf16: tg4 4.00× |" in markdown(found)
    assert "over 100 %" not in markdown(found)
    for cached in (True, False):
        rows[0].rates = {"tg4": [3e9]} if cached else {"pp8": [3e9]}  # 10 % of the limit were 1e5
        found = report(rows[:1], [PP, TG], [MACHINE], cpu="", date="", repeats=1, threads=1)
        assert ("over 100 % of the limit for new tokens: weights in the" in markdown(found)) == cached


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("form", [None, "int8"])
def test_what_is_measured_gives_the_tokens_of_stream(model, batch, form, monkeypatch):
    taken = []
    greedy = sampler(temperature=0)
    monkeypatch.setattr(ours, "sampler", lambda temperature: lambda *asked: taken.append(greedy(*asked)) or taken[-1])
    measured = ours.Ours(model=str(model), shape=None, form=form, kv=32, batch=batch, slots=40, threads=1)
    taken.clear()  # what woke the threads
    measured.prefill(20)
    measured.decode(5, 20)
    measured.decode(5, 20)  # as often as one likes
    # A single prompt's steps begin with its next token, those of a batch with the first that each was answered.
    n, more = (21, 0) if batch == 1 else (20, 1)
    prompts = measured.prompts_BT[:, :n].tolist()
    params = load(model).params if form is None else ours.in_form(load(model).params, form)
    steps = list(stream_all(prompts, params, CONFIG, samplers=[greedy] * batch, max_tokens=5 + more))
    wanted = [step.token for step in steps]
    assert taken[batch:] == [*wanted, *wanted]
    first = [
        step.token
        for step in stream_all([p[:20] for p in prompts], params, CONFIG, samplers=[greedy] * batch, max_tokens=1)
    ]
    assert taken[:batch] == first


def test_bytes_read_are_all_weights_but_the_embedding_and_a_slot_is_what_a_token_adds(model):
    measured = ours.Ours(model=str(model), shape=None, form="f32", kv=32, batch=1, slots=40, threads=1)
    about = measured.about()
    matrices = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96) + 64 * 288
    assert about["read_bytes"] == 4 * (matrices + 5 * 64)
    assert about["weight_bytes"] == about["read_bytes"] + 4 * 64 * 288
    assert about["slot_bytes"] == 2 * 2 * 32 * 4 == CONFIG.kv_bytes(1, 1, 4)
    assert peers.read_bytes(CONFIG, 4, 4) == about["read_bytes"]
    by_hand = (matrices - 64 * 288) * 18 / 32 + 64 * 288 * 34 / 32 + 5 * 64 * 4
    assert peers.read_bytes(CONFIG, *peers.BYTES["Q4_0"]) == by_hand


@pytest.mark.parametrize("form", ["f32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("tied", [False, True])
def test_random_weights_are_a_model_in_that_form(form, tied):
    config = replace(CONFIG, tied=tied)
    params = ours.random_params(config, form)
    assert stored.form(params) == form
    assert forward(tiny.tokens(1, 5, config), params, config, dtype=torch.float32).isfinite().all()
    wq = [params[f"layers.{layer}.attention.wq.weight"] for layer in range(2)]
    assert wq[0].equal(wq[1]) and wq[0].data_ptr() != wq[1].data_ptr()
    assert (params["output.weight"] is params["tok_embeddings.weight"]) == tied


class Here:
    """A Worker without a process of its own, which sees what a test has replaced."""

    def __init__(self, kind, **settings):
        settings = json.loads(json.dumps(settings))
        self._measured = None if kind == "roof" else worker.start(kind, settings)

    def __call__(self, method, **arguments):
        if self._measured is None:
            return {"threads": 1} if method == "about" else MACHINE
        with contextlib.redirect_stdout(sys.stderr):
            return json.loads(json.dumps(getattr(self._measured, method)(**arguments)))

    def close(self):
        pass


@pytest.fixture(scope="module")
def layouts(model, tmp_path_factory):
    """The tiny model in every layout and form of file; `mixed.gguf` as llama.cpp makes them, with another head."""
    pytest.importorskip("gguf")
    from llama3_scratch.checkpoint.gguf_out import write_gguf

    root = tmp_path_factory.mktemp("layouts")
    for kind in ("Q8_0", "Q4_0", "Q4_1", "F16", "BF16", "F32"):
        assert convert.main([str(model), str(root / f"{kind}.gguf"), "--to", "gguf", "--type", kind, "--quiet"]) == 0
    for name, how in {
        "meta-bf16": ["meta", "--dtype", "bfloat16"],
        "meta-int4": ["meta", "--quantize", "int4"],
        "hf-bf16": ["hf", "--dtype", "bfloat16"],
    }.items():
        assert convert.main([str(model), str(root / name), "--to", *how, "--quiet"]) == 0
    floats = load(model)
    params = quantize(floats.params, "int4-sym")
    for part in ("weight", "int8_scales"):
        del params[f"output.{part}"]
    params["output.weight"] = floats.params["output.weight"]
    write_gguf(root / "mixed.gguf", params, CONFIG, floats.tokenizer, kind="F32")
    return root


def measured_and_said(capsys, monkeypatch, generates, measures):
    """What `bench` says that it measured, and `generate` that it ran: the form of the weights, the type of the rest."""
    types = []
    opened = batches.open_model
    monkeypatch.setattr(batches, "open_model", lambda *args, **how: types.append(opened(*args, **how)) or types[-1])
    monkeypatch.setattr(measure, "Worker", Here)
    assert generate.main(["hi", *generates, "--max-tokens", "1", "--json"]) == 0
    captured = capsys.readouterr()
    said = json.loads(captured.out)["weights"]
    assert f" · {said} weights\n" in captured.err
    assert bench.main([*measures, *SMALL, "-r", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    [row] = found["rows"]
    assert f"| {row['form']} |" in markdown(found) and f"activations are in {row['dtype']}" in markdown(found)
    return (row["form"], row["dtype"]), (said, stored.SHORT_DTYPE[str(types[0][1]).removeprefix("torch.")])


@pytest.mark.parametrize("compiler", [True, False])
@pytest.mark.parametrize(
    "name, with_kernels, in_torch",
    [
        ("Q8_0.gguf", "int8", "f32"),
        ("Q4_0.gguf", "int4-sym", "f32"),
        ("Q4_1.gguf", "int4", "f32"),
        ("mixed.gguf", "int4-sym, head f32", "f32"),
        ("F16.gguf", "f16", "f16"),
        ("BF16.gguf", "bf16", "bf16"),
        ("F32.gguf", "f32", "f32"),
        ("meta-bf16", "bf16", "bf16"),
        ("meta-int4", "int4", "int4"),
        ("hf-bf16", "bf16", "bf16"),
    ],
)
def test_bench_measures_what_generate_runs(layouts, capsys, monkeypatch, name, with_kernels, in_torch, compiler):
    if not compiler:
        monkeypatch.setattr(kernels, "library", lambda: None)
    elif kernels.library() is None:
        pytest.skip("the kernels weren't built here")
    path, wanted = str(layouts / name), with_kernels if compiler else in_torch
    measured, said = measured_and_said(capsys, monkeypatch, ["--model", path], [path])
    assert measured == said == (wanted, "f32")
    assert describe(path).runs_as == wanted


@pytest.mark.parametrize(
    "name, generates, measures, wanted",
    [
        ("meta-bf16", ["--quantize", "int8"], ["--forms", "int8"], ("int8", "f32")),
        ("Q4_0.gguf", ["--quantize", "int4"], ["--forms", "int4"], ("int4", "f32")),
        ("Q8_0.gguf", ["--dtype", "float64"], ["--dtype", "float64"], ("f32", "f64")),
        ("Q8_0.gguf", ["--dtype", "bfloat16"], ["--dtype", "bfloat16"], ("f32", "bf16")),
        ("meta-bf16", ["--dtype", "bfloat16"], ["--dtype", "bfloat16"], ("bf16", "bf16")),
        ("meta-bf16", ["--dtype", "float32", "--device", "cpu"], ["--device", "cpu"], ("bf16", "f32")),
    ],
)
def test_bench_takes_generates_options(layouts, capsys, monkeypatch, name, generates, measures, wanted):
    path = str(layouts / name)
    measured, said = measured_and_said(capsys, monkeypatch, ["--model", path, *generates], [path, *measures])
    assert measured == said == wanted


@pytest.mark.parametrize("compiler", [True, False])
def test_bench_alone_measures_what_generate_alone_runs(smollm2, capsys, monkeypatch, compiler):
    if not compiler:
        monkeypatch.setattr(kernels, "library", lambda: None)
    measured, said = measured_and_said(capsys, monkeypatch, [], [])
    assert measured == said == ("int4" if kernels.library() else "f32", "f32")


def test_bench_alone_falls_back_as_generate_does(capsys, monkeypatch, tmp_path):
    """To the storyteller, where the default model can't be fetched."""
    monkeypatch.setenv("LLAMA3_SCRATCH_WEIGHTS", str(tmp_path / "file" / "no"))
    (tmp_path / "file").write_text("")
    measured, said = measured_and_said(capsys, monkeypatch, [], [])
    assert measured == said == ("bf16", "f32")


def test_a_device_that_isnt_there_is_refused_as_generate_does(layouts, capsys):
    for main, arguments in ((generate.main, ["hi", "--model"]), (bench.main, [])):
        assert main([*arguments, str(layouts / "F32.gguf"), "--device", "cuda:7"]) == 2
        assert "--device cuda:7: not on this machine, which has cpu" in capsys.readouterr().err


def test_a_cache_of_another_type_than_the_activations_is_refused(layouts, capsys, monkeypatch):
    monkeypatch.setattr(measure, "Worker", Here)
    arguments = [str(layouts / "F32.gguf"), "--dtype", "bfloat16", *SMALL]
    assert bench.main([*arguments, "--kv", "32"]) == 2
    assert "--kv 32: the cache is in the activations' bf16, or in 16, 8 or 4 bits" in capsys.readouterr().err
    assert bench.main([*arguments, "--json", "-r", "1"]) == 0
    [row] = json.loads(capsys.readouterr().out)["rows"]
    assert (row["kv"], row["slot_bytes"]) == (16, 2 * CONFIG.n_layers * CONFIG.n_kv_heads * CONFIG.head_dim * 2)


def test_a_shape_is_measured_without_weights(monkeypatch):
    monkeypatch.setitem(OFFICIAL, "llama3.2-1b", CONFIG)
    measured = ours.Ours(model=None, shape="llama3.2-1b", form=None, kv=32, batch=1, slots=40, threads=1)
    assert measured.about()["form"] == "bf16"
    assert measured.prefill(8) > 0 and measured.decode(4, 8) > 0


def test_f140_a_shape_that_memory_cant_hold_is_refused_before_it_is_made(monkeypatch):
    monkeypatch.setattr(ours, "available_memory", lambda: 10**9)
    with pytest.raises(Llama3Error, match=r"needs .* \(weights 4.94 GB.*1 GB are free") as error:
        ours.Ours(model=None, shape="llama3.2-1b", form="f32", kv=32, batch=1, slots=40, threads=1)
    assert error.value.exit_code == 5


@pytest.mark.slow
def test_llama_cpp_answers_beside_ours(model, capsys):
    pytest.importorskip("xllamacpp")
    pytest.importorskip("gguf")
    assert bench.main([str(model), "--forms", "int8", "--against", "llama.cpp", "--batch", "2", *SMALL, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["engine"], row["form"], row["kv"]) for row in rows] == [
        ("llama3_scratch", "int8", 32),
        ("llama.cpp", "Q8_0", 16),
    ]
    for test in ("pp8", "tg4"):
        ours, theirs = (row["tests"][test] for row in rows)
        assert ours["ratios"] == {"llama.cpp Q8_0": pytest.approx(ours["median"] / theirs["median"])}


# What llama-bench prints with --output json, shortened: half a second a run. Its arguments go to a file beside it.
LLAMA_BENCH = """#!{python}
import json, pathlib, sys
with pathlib.Path(__file__).with_suffix(".log").open("a") as log:
    print(json.dumps(sys.argv[1:]), file=log)
if "{fails}":
    sys.exit("{fails}")
found = {{"build_number": 7, "build_commit": "abc, native", "backends": "CPU", "n_threads": 1, "avg_ns": 500_000_000}}
print(json.dumps([found], indent=2))
"""


def llama_bench(folder, fails=""):
    program = folder / "llama-bench"
    program.write_text(LLAMA_BENCH.format(python=sys.executable, fails=fails))
    program.chmod(0o755)
    return program


def test_a_llama_bench_of_ones_own_takes_the_wheels_place(model, capsys, tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    there = measure.importlib.util.find_spec
    monkeypatch.setattr(measure.importlib.util, "find_spec", lambda name: None if name == "xllamacpp" else there(name))
    monkeypatch.setattr(measure, "Worker", Here)
    program = llama_bench(tmp_path)
    arguments = ["--forms", "int8", "--against", "llama.cpp", "--llama-bench", str(program), "--contexts", "0,20"]
    assert bench.main([str(model), *arguments, *SMALL, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    ours, theirs = found["rows"]
    assert (theirs["engine"], theirs["form"], theirs["kv"]) == ("llama.cpp", "Q8_0", 16)
    assert {test: cell["samples"] for test, cell in theirs["tests"].items()} == {
        "pp8": [16.0, 16.0],
        "tg4": [8.0, 8.0],
        "tg4@20": [8.0, 8.0],
    }
    assert ours["tests"]["pp8"]["ratios"] == {"llama.cpp Q8_0": pytest.approx(ours["tests"]["pp8"]["median"] / 16)}
    assert markdown(found).endswith(f"\nllama.cpp: {program}, build 7 (abc, native), on CPU")
    asked = [json.loads(line) for line in program.with_suffix(".log").read_text().splitlines()]
    assert all(line[0] == "--model" and line[1].endswith("Q8_0.gguf") for line in asked)
    of_runs = {tuple(line[line.index("json") + 1 :]) for line in asked}
    assert of_runs == {
        ("--n-prompt", "0", "--n-gen", "1", "--no-warmup"),  # what loading takes
        ("--n-prompt", "8", "--n-gen", "0"),
        ("--n-prompt", "0", "--n-gen", "4", "--n-depth", "0"),
        ("--n-prompt", "0", "--n-gen", "4", "--n-depth", "20"),
    }


@pytest.mark.parametrize(
    "fails, more, message",
    [
        ("main: error: no such model", [], "ended with 1 and no result: main: error: no such model"),
        ("", ["--batch", "2"], "llama-bench takes one prompt at once, not 2; the wheel's llama.cpp takes more"),
    ],
)
def test_a_llama_bench_that_cant_is_left_out(model, capsys, tmp_path, monkeypatch, fails, more, message):
    pytest.importorskip("gguf")
    monkeypatch.setattr(measure, "Worker", Here)
    program = llama_bench(tmp_path, fails)
    arguments = ["--against", "llama.cpp", "--llama-bench", str(program), *more]
    assert bench.main([str(model), *arguments, *SMALL]) == 0
    captured = capsys.readouterr()
    assert f"is left out: {program}" in captured.err or "is left out: llama-bench" in captured.err
    assert message in captured.err and "| llama.cpp |" not in captured.out


@pytest.mark.slow
def test_the_wheels_build_is_named(model, capsys):
    pytest.importorskip("xllamacpp")
    pytest.importorskip("gguf")
    assert bench.main([str(model), "--against", "llama.cpp", *SMALL, "-r", "1"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.match(
        r"llama.cpp: the wheel xllamacpp [\d.]+, compiled for (\w+, )*AVX2?.*; faster where it is built for this",
        last,
    )


def test_llama_cpp_reads_a_random_shape(tmp_path, monkeypatch):
    pytest.importorskip("xllamacpp")
    pytest.importorskip("gguf")
    monkeypatch.setitem(OFFICIAL, "llama3.2-1b", CONFIG)
    file = tmp_path / "random.gguf"
    peers.Files(model=None, shape="llama3.2-1b").write(str(file), "gguf", "Q4_0")
    worker = Worker("llama.cpp", file=str(file), vocab_size=CONFIG.vocab_size, batch=1, slots=40, threads=1)
    assert worker("prefill", tokens=8) > 0 and worker("decode", tokens=4, context=8) > 0
    worker.close()


@pytest.mark.slow
def test_transformers_answers_beside_ours(model, capsys):
    pytest.importorskip("transformers")
    assert bench.main([str(model), "--against", "hf", "--contexts", "0,6", *SMALL, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["engine"], row["form"]) for row in rows] == [("llama3_scratch", "f32"), ("hf", "f32"), ("hf", "bf16")]
    assert all(len(row["tests"]["tg4@6"]["samples"]) == 2 for row in rows)


def test_a_missing_peer_is_named_and_left_out(model, capsys, monkeypatch):
    there = measure.importlib.util.find_spec
    monkeypatch.setattr(measure.importlib.util, "find_spec", lambda name: None if name == "xllamacpp" else there(name))
    assert bench.main([str(model), "--against", "llama.cpp", *SMALL, "-r", "1"]) == 0
    captured = capsys.readouterr()
    assert "--against llama.cpp needs the package xllamacpp, which isn't installed; it is left out" in captured.err
    assert captured.out.count("| llama3_scratch |") == 1 and "peer" not in captured.out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--forms", "int3"], "--forms int3: expected some of f32, bf16, f16, int8-row, int8, int4, int4-sym, nf4"),
        pytest.param(["--kv", "5"], "--kv 5: a cache is kept in 32, 16, 8, 4 bits", id="F212"),
        (["--kv", "x"], "expected a whole number at least 1, got 'x'"),
        (["--batch", "1,0"], "expected a whole number at least 1, got '0'"),
        (["--llama-bench", "llama-bench"], "--llama-bench goes with --against llama.cpp"),
        (["--against", "vllm"], "--against vllm: expected hf or llama.cpp"),
        (["--shape", "llama5"], "--shape llama5: expected one of llama3-8b"),
        (["--pp", "0", "--tg", "0"], "leave nothing to measure"),
        (["--tg", "0", "--plot", "x.svg"], "--plot draws new tokens per second"),
        (["--repeat", "3"], "unknown argument --repeat; did you mean --repeats?"),
        (["--startup", "--forms", "int8"], "--startup measures whole commands; --forms isn't for it"),
        (["--contexts", "200", *SMALL], "--pp, --tg and --contexts take 205 tokens, the model's context 128"),
    ],
)
def test_usage(model, capsys, arguments, message):
    assert bench.main([str(model), *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == ""


def test_a_llama_bench_that_isnt_there_is_refused(model, tmp_path, capsys):
    arguments = ["--against", "llama.cpp", "--llama-bench", str(tmp_path / "llama-bench")]
    assert bench.main([str(model), *arguments, *SMALL]) == 3
    assert "llama-bench: no such program; scripts/native_llama_bench.sh builds it" in capsys.readouterr().err


def test_integers_arent_turned_into_other_forms():
    params = ours.random_params(CONFIG, "int8")
    with pytest.raises(UsageError, match="are stored as integers; leave `forms` out"):
        ours.in_form(params, "f32")


def test_f136_a_picture_that_cant_be_written_is_refused_before_loading(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    nowhere = tmp_path / "no" / "x.svg"
    assert bench.main([str(tmp_path / "no model"), "--plot", str(nowhere)]) == 3
    assert f"there is no folder {nowhere.parent} to write it in" in capsys.readouterr().err


@pytest.mark.slow
def test_the_picture_has_a_line_for_each_form(model, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path = tmp_path / "rates.svg"
    arguments = [str(model), "--forms", "f32,int8", "--batch", "1,2", "--contexts", "0,9", "--plot", str(path)]
    assert bench.main([*arguments, *SMALL, "-r", "1"]) == 0
    assert path.read_text().count('<g id="line2d') > 4


@pytest.mark.slow
def test_startup_times_whole_commands(model, capsys):
    assert bench.main([str(model), "--startup", "-r", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    generate, torch_alone = found["rows"]
    assert generate["command"] == f"python -m llama3_scratch.generate Hello --model {model} --max-tokens 1"
    assert torch_alone["command"] == "python -c 'import torch'"
    assert all(len(row["seconds"]) == 1 and row["peak_bytes"] > 50e6 for row in found["rows"])


def test_startup_of_a_command_that_fails_is_an_error(model):
    with pytest.raises(Llama3Error, match=r"ended with 3: error: .*no such file"):
        startup.whole_command(["-m", "llama3_scratch.verify", str(model / "nowhere")])


def test_a_workers_error_keeps_its_kind_and_its_death_is_told(model):
    with pytest.raises(FileError, match="no such file"):
        Worker("ours", model=str(model / "no"), shape=None, form=None, kv=32, batch=1, slots=9, threads=1)
    worker = Worker("roof", threads=1)
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(Llama3Error, match="ended by itself, with -9: it said nothing"):
        worker("about")
    worker.close()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells a process's memory so")
def test_the_memory_of_a_worker_is_its_own():
    ballast = torch.ones(75_000_000)  # 300 MB, which a child's getrusage would begin with
    assert peak_rss_bytes() > ballast.nbytes
    worker = Worker("files", model=None, shape=None)
    status = Path(f"/proc/{worker.pid}/status").read_text()
    assert int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024 < ballast.nbytes
    worker.close()
