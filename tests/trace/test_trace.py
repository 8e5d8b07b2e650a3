"""The tracer: every tensor by its line, true shapes over every weight form and cache, costs that add up."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.cells import cell_len
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

import llama3_scratch as l3
from llama3_scratch import generate, model
from llama3_scratch.cache import NO_CACHE, Cache
from llama3_scratch.caches.quantized import Bf16Slots, Int4Slots, Int8Slots
from llama3_scratch.caches.sliding import SlidingCache
from llama3_scratch.checkpoint.gguf_out import write_gguf
from llama3_scratch.checkpoint.hf_out import write_hf
from llama3_scratch.checkpoint.load import Checkpoint, load, weight_files
from llama3_scratch.checkpoint.meta import write_meta
from llama3_scratch.errors import UsageError
from llama3_scratch.inference import stream
from llama3_scratch.linear import linear
from llama3_scratch.model import block, forward, fused_block
from llama3_scratch.stored import stored
from llama3_scratch.system.machine import MachineLimits, measure
from llama3_scratch.terminal import batches
from llama3_scratch.text.detokenizer import label
from llama3_scratch.trace import roofline, views
from llama3_scratch.trace.cost import Cost
from llama3_scratch.trace.tracer import ShapeError, summarise, watch
from tests import forms, tiny
from tests.batches import ragged_rows

TOKENS = tiny.tokens(2, 7)


def traced(params=None, tokens_BT=TOKENS, *, run=forward, cache=NO_CACHE, layer=block, **options):
    with torch.inference_mode(), watch(**options) as steps:
        run(tokens_BT, params or tiny.params(), tiny.CONFIG, cache=cache, block=layer)
    return steps


def by_key(steps):
    return {step.key: step for step in steps}


def test_every_tensor_of_a_layer_is_seen_where_its_line_binds_it():
    steps = by_key(traced())
    query = steps["layers.3.attention.q_BTHK"]
    assert (query.kind, query.function, query.layer) == ("local", "attention", 3)
    assert query.source == 'q_BTHK = linear(x_BTD, params, f"{name}.wq").unflatten(-1, (H, K))'
    assert query.axes == "B=2 T=7 H=6 K=8"
    assert query.weights == ("layers.3.attention.wq.weight",)
    assert steps["layers.3.attention.q_BTHK.2"].source.startswith("q_BTHK = rotate(")
    assert steps["layers.0.attention.attend.scores_BGRTS"].shape == (2, 2, 3, 7, 7)
    assert "layers.4.attention.attend.weights_BGRTS" in steps
    assert steps["layers.1.ffn_norm.rms_norm.return"].weights == ("layers.1.ffn_norm.weight",)
    assert steps["tok_embeddings.embed.rows_BTD"].weights == ("tok_embeddings.weight",)
    assert steps["unembed.logits_BTV"].weights == ("output.weight",)
    assert steps["layers.2.block.x_BTD"].kind == "argument" and steps["layers.2.block.return"].kind == "return"


def test_every_tensor_that_the_source_names_is_seen():
    source = Path(model.__file__).read_text(encoding="utf-8")
    bound = set(re.findall(r"^ {4,}(\w+_[BTSDHGNRKJFV1]+)(?:, \w+)? = ", source, re.MULTILINE))
    fused = {"q_BHTK", "k_BGSK", "mask_B1TS", "out_BHTK"}
    word = {"mask_BTS"}  # here it's "causal"
    assert len(bound) > 25
    assert bound - fused - word <= {step.name for step in traced()}


def test_returned_tensors_have_the_axes_that_their_functions_docstring_names():
    steps = by_key(traced())
    assert steps["layers.0.attention.attend.return"].axes == "B=2 T=7 G=2 R=3 K=8"
    assert all(step.letters for step in steps.values() if step.kind == "return")


def test_embedding_layers_and_head_called_one_by_one_are_one_pass():
    params, config = tiny.params(), tiny.CONFIG
    with watch() as steps:
        for _ in range(2):
            x_BTD = model.embed(TOKENS, params, "tok_embeddings")
            model.unembed(model.decode(x_BTD, params, config, block=block), params)
        model.decode(x_BTD, params, config, block=block)
    assert [step.call for step in steps if step.key == "tok_embeddings.embed.rows_BTD"] == [0, 1]
    assert [step.call for step in steps if step.key == "unembed.logits_BTV"] == [0, 1]
    assert {step.call for step in steps} == {0, 1, 2}


def test_keys_are_unique_within_a_pass_and_name_every_step():
    keys = [step.key for step in traced()]
    assert len(set(keys)) == len(keys) > 300


def test_values_are_those_of_the_model():
    with torch.inference_mode():
        logits_BTV = forward(TOKENS, tiny.params(), tiny.CONFIG, block=block)
    steps = by_key(traced(keep=lambda step: True))
    assert torch.equal(steps["unembed.return"].value if "unembed.return" in steps else logits_BTV, logits_BTV)
    weights_BGRTS = steps["layers.2.attention.attend.weights_BGRTS"].value
    assert torch.allclose(weights_BGRTS.sum(-1), torch.ones(2, 2, 3, 7))
    normed = steps["layers.0.block.normed_BTD"]
    assert normed.statistics == summarise(normed.value)


def test_statistics_count_what_is_no_number_and_leave_it_out():
    value = torch.tensor([1.0, 3.0, torch.nan, torch.inf, -torch.inf])
    found = summarise(value)
    assert (found.min, found.max, found.mean, found.std) == (1.0, 3.0, 2.0, 1.0)
    assert (found.nan, found.inf) == (1, 2)
    masked = by_key(traced())["layers.0.attention.attend.masked_BGRTS"]
    assert masked.statistics.inf == 2 * 2 * 3 * 21


@pytest.mark.parametrize("form", forms.FORMS)
@pytest.mark.parametrize("cache", ["none", "cache", "paged", "bf16", "int8", "int4 paged", "sliding"])
def test_shapes_are_what_names_say_over_every_form_and_cache(form, cache):
    params = forms.FORMS[form](tiny.params())
    kept = {
        "none": NO_CACHE,
        "cache": Cache(64),
        "paged": ragged_rows(tiny.CONFIG, 64, 2, dtype=stored(params, "tok_embeddings").dtype),
        "bf16": Cache(64, keys=Bf16Slots, values=Bf16Slots),
        "int8": Cache(64, keys=Int8Slots, values=Int8Slots),
        "int4 paged": ragged_rows(
            tiny.CONFIG, 64, 2, keys=Int4Slots, values=Int4Slots, dtype=stored(params, "tok_embeddings").dtype
        ),
        "sliding": SlidingCache(64, tiny.CONFIG, window=20),
    }[cache]
    for layer in (block, fused_block):
        assert len(traced(params, cache=kept, layer=layer, statistics=False)) > 200
    if cache != "none":
        steps = by_key(traced(params, TOKENS[:, :1], cache=kept, statistics=False))
        assert steps["layers.4.attention.k_BSGK"].axes == "B=2 S=15 G=2 K=8", "the cache of 14 tokens and one more"


def _with_seven_heads(x_BTD, params, name, config, *, rotation_BTJ, **state):
    return model.rotate(torch.zeros(1, 2, 7, config.head_dim), rotation_BTJ)


def test_a_name_that_lies_is_found(monkeypatch):
    def sideways(x, params, name):
        out = linear(x, params, name)
        return out.mT if name.endswith("w1") else out

    monkeypatch.setattr(model, "linear", sideways)
    with (
        watch(),
        pytest.raises(ShapeError, match=r"x_BTNK has shape \[1, 2, 7, 8\], its name says B=1 T=2 N=6 or 2 K=8"),
    ):
        forward(torch.zeros(1, 2, dtype=torch.long), tiny.params(), tiny.CONFIG, block=_with_seven_heads)
    with watch(), pytest.raises(ShapeError, match=r"tokens_BT has shape \[2\], its name says B=2 T$"):
        model.embed(torch.zeros(2, dtype=torch.long), tiny.params(), "tok_embeddings")
    with pytest.raises(ShapeError, match=r"gate_BTF has shape \[2, 40, 7\], its name says B=2 T=7 F=40"):
        traced()


def test_costs_agree_with_torchs_counter_and_the_closed_formula():
    steps = traced(costs=True)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        forward(TOKENS, tiny.params(), tiny.CONFIG, block=block)
    flops = sum(step.cost.flops for step in steps)
    c, (B, T) = tiny.CONFIG, TOKENS.shape
    matrices = sum(rows * columns for rows, *rest in l3.expected(c).values() for columns in rest) - c.vocab_size * c.dim
    scores = 2 * c.n_layers * c.n_heads * c.head_dim * T * T
    assert flops == counter.get_total_flops() == 2 * B * (T * matrices + scores)
    gate = by_key(steps)["layers.0.feed_forward.swiglu.gate_BTF"]
    assert gate.cost.flops == 2 * B * T * c.dim * c.hidden_dim
    assert gate.cost.bytes >= 4 * (c.dim * c.hidden_dim + B * T * (c.dim + c.hidden_dim))
    assert by_key(steps)["tok_embeddings.embed.rows_BTD"].cost.bytes == B * T * (8 + 2 * 4 * c.dim), "its rows alone"
    assert gate.cost.seconds > 0


def test_passes_are_counted_and_a_cache_grows():
    cache = Cache(64)
    with torch.inference_mode(), watch() as steps:
        for tokens_BT in (TOKENS, TOKENS[:, :1], TOKENS[:, :1]):
            forward(tokens_BT, tiny.params(), tiny.CONFIG, cache=cache, block=block)
    spans = [step.shape[1] for step in steps if step.key == "layers.0.attention.k_BSGK"]
    assert spans == [7, 8, 9]
    assert {step.call for step in steps} == {0, 1, 2}


def test_meta_tensors_are_traced_without_numbers():
    config = l3.OFFICIAL["llama3.2-1b"]
    params = {name: torch.empty(shape, device="meta") for name, shape in l3.expected(config).items()}
    with watch(costs=True) as steps:
        forward(torch.zeros(1, 17, dtype=torch.long, device="meta"), params, config, block=block)
    assert by_key(steps)["layers.15.attention.q_BTHK"].axes == "B=1 T=17 H=32 K=64"
    assert all(step.statistics is None for step in steps)


def test_nothing_is_left_behind_and_the_model_runs_untouched():
    before = sys.gettrace()
    expected = forward(TOKENS, tiny.params(), tiny.CONFIG, block=block)
    traced()
    assert sys.gettrace() is before
    assert torch.equal(forward(TOKENS, tiny.params(), tiny.CONFIG, block=block), expected)
    with pytest.raises(ZeroDivisionError), watch():
        _ = 1 / 0
    assert sys.gettrace() is before


def test_under_another_tracer_it_refuses():
    sys.settrace(lambda frame, event, arg: None)
    try:
        with pytest.raises(UsageError, match="a debugger or coverage traces this process already"), watch():
            pass
    finally:
        sys.settrace(None)


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    return str(tiny.folder(tmp_path_factory.mktemp("models") / "chats"))


@pytest.fixture
def run(chats, capsys):
    def run(*argv):
        code = generate.main(["hi", "--model", chats, "--max-tokens", "3", *map(str, argv)])
        return code, *capsys.readouterr()

    return run


def test_trace_prints_layer_0_in_full_and_a_line_for_each_other(run):
    code, out, err = run("--trace")
    assert code == 0
    assert "scores_BGRTS  [B=1 G=2 R=3 T=21 S=21]  float32" in out
    assert "← layers.0.attention.wq.weight [48, 48] float32 from consolidated.00.pth" in out
    assert re.findall(r"^layers\.(\d)  x_BTD  min.*\n(?=layers|\n)", out, re.MULTILINE) == list("1234"), "a line each"
    assert "── pass 0 · layers.1" not in out and "pass 1" not in out
    assert "logits_BTV  [B=1 T=1 V=272]" in out
    assert "tracing the readable attention" in err
    assert out.rstrip("\n").endswith(run()[1].rstrip("\n")), "then the answer, which is the same"


def test_layers_steps_tokens_values_and_costs_are_chosen(run):
    out = run("--trace-layers", "1,4", "--trace-steps", "q_BTHK", "--trace-tokens", 2, "--trace-cost")[1]
    assert re.findall(r"── pass (\d) · layers\.(\d)", out) == [("0", "1"), ("0", "4"), ("1", "1"), ("1", "4")]
    assert "scores_BGRTS =" not in out
    assert f"{2 * 21 * 48 * 48:,} FLOPs" in out
    assert re.search(r"FLOPs, [\d,]+ bytes, [\d.]+ (µs|ms), \d+% of the (memory|arithmetic) limit", out)
    assert "── cost of pass 0 · this machine reads " in out and "── cost of passes 1 to 1 together ──" in out
    assert "tensor([[[[" in run("--trace-steps", "q_BTHK", "--trace-values")[1]


def test_machine_forms(run, tmp_path):
    code, out, _ = run("--trace-out", tmp_path / "run.jsonl")
    steps = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert code == 0 and "──" not in out
    q_BTHK = next(step for step in steps if step["key"] == "layers.0.attention.q_BTHK")
    assert (q_BTHK["shape"], q_BTHK["flops"]) == ([1, 21, 6, 8], 2 * 21 * 48 * 48) and q_BTHK["seconds"] > 0
    file = {"file": "consolidated.00.pth", "shape": [48, 48], "dtype": "float32"}
    assert q_BTHK["weights"] == [{"key": "layers.0.attention.wq.weight"} | file]
    run("--trace-out", tmp_path / "run.safetensors", "--trace-tokens", 2)
    tensors = load_file(tmp_path / "run.safetensors")
    assert tensors["layers.4.attention.attend.scores_BGRTS"].shape == (1, 2, 3, 21, 21)
    assert tensors["pass1.layers.4.attention.k_BSGK"].shape == (1, 22, 2, 8)


def test_sums_of_costs_are_those_of_the_steps_beside_the_machines_limits():
    with watch(costs=True) as steps:
        forward(TOKENS, tiny.params(), tiny.CONFIG, block=block)
    machine = MachineLimits(bandwidth=1e9, flops=1e6)
    heading, *rows = roofline.lines(steps, machine)
    assert re.split(r"\s{2,}", heading.strip()) == ["FLOP", "moved", "time", "at least", "limited by", "reached"]
    cells = {row.split("  ")[1].strip(): re.split(r"\s{2,}", row.strip())[1:] for row in rows if row.strip()}
    total = sum((step.cost for step in steps), Cost())
    assert cells["all"][0] == f"{total.flops / 1e6:.2f} M" and cells["all"][4] == "arithmetic"
    assert cells["all"][5] == f"{total.flops / 1e6 / total.seconds:.0%}"
    assert cells["outside of layers"][0] == f"{2 * 14 * 67 * 48 / 1e3:.2f} k"
    assert cells["layers.0–4, each"][0] == f"{(total.flops - 2 * 14 * 67 * 48) / 5 / 1e3:.2f} k"
    assert cells["rotate"][4] == "memory" and float(cells["swiglu"][0].split()[0]) > 0
    assert "at least" not in next(roofline.lines(steps, None))


def test_the_machine_is_measured():
    machine = measure(torch.device("cpu"), torch.bfloat16)
    assert 1e8 < machine.bandwidth < 1e13 and 1e8 < machine.flops < 1e15
    assert (
        machine.seconds(int(machine.flops), 0)
        == pytest.approx(1, rel=1e-6)
        == machine.seconds(0, int(machine.bandwidth))
    )


def test_each_weights_file_is_known(tmp_path):
    config = replace(tiny.CONFIG, vocab_size=272, hidden_dim=44)
    params = tiny.params(config)
    wq, norm = "layers.0.attention.wq.weight", "norm.weight"
    write_meta(tmp_path / "two", params, config, tiny.tokenizer(None), shards=2)
    found = weight_files(Checkpoint(config, params, None, tmp_path / "two"))
    assert (found[wq], found[norm]) == ("consolidated.00.pth … consolidated.01.pth", "consolidated.00.pth")
    tied = replace(tiny.CONFIG, tied=True)
    write_hf(tmp_path / "hf", tiny.params(tied), tied, None)
    found = weight_files(Checkpoint(tied, tiny.params(tied), None, tmp_path / "hf"))
    assert found[wq] == found["output.weight"] == "model.safetensors"
    write_gguf(tmp_path / "m.gguf", params, tiny.CONFIG, None, kind="F32")
    found = weight_files(Checkpoint(tiny.CONFIG, params, None, tmp_path / "m.gguf"))
    assert found == dict.fromkeys(params, "m.gguf")
    file = weight_files(load(tiny.data("stories260k/stories260K.bin")))
    assert set(file.values()) == {"stories260K.bin"}


def test_the_last_layers_lens_is_the_models_own_choice(run):
    out = run("--lens")[1]
    last = [line for line in out.partition("the likeliest")[0].splitlines() if line.startswith("layers.4")][-1]
    answer = json.loads(run("--json")[1])
    assert last.endswith(label(answer["tokens"][0], tiny.tokenizer()))


def test_the_lens_names_its_tokens_whatever_they_are():
    """Columns under the tokens that were read, wide characters counted as two, nothing lost where lines are cut."""
    ids = [256, *"a 名\n\t ".encode(), 0x1B, 0xFF]
    config = replace(tiny.CONFIG, vocab_size=272, n_layers=2)
    params = tiny.params(config)
    with torch.inference_mode(), watch(keep=lambda step: step.kind == "return") as steps:
        forward(ids, params, config, block=block)
    for columns in (200, 40):
        lines = views.lens(steps, params, config, tiny.tokenizer(), ids, columns=columns)
        tables = "\n".join(lines).partition("\n\nthe likeliest")[0].split("\n\n")
        heads = [line for table in tables for line in table.splitlines() if line.startswith("after ")]
        shown = [cell for line in heads for cell in line.split()[1:]]
        assert shown == ["<|im_start|>", "a", "␣", "⟨E5⟩", "⟨90⟩", "⟨8D⟩", "⏎", "⇥", "␣", "␛", "⟨FF⟩"]
        assert (len(tables) > 1) == (columns == 40) and all(cell_len(line) <= columns for line in lines[:4])
        for table in tables:
            places = [[match.start() for match in re.finditer(r"\S+", line)][1:] for line in table.splitlines()[:2]]
            assert places[0] == places[1], "a token stands below its position"
    assert any(line.startswith("the likeliest after 10, ⟨FF⟩") for line in lines)
    assert "�" not in "".join(lines)


def test_attention_and_rope_views(run):
    out = run("--attention", "2,5")[1]
    assert "layers.2.attention.attend.scores_BGRTS, head 5" in out
    assert out.count("-inf") == 16 * 15 // 2
    turns = run("--rope-pair", 0)[1]
    assert re.search(r"^ +1 +1\.0000 +0\.5403 +0\.8415$", turns, re.MULTILINE), "pair 0 turns by one radian a token"


def test_which_head_looks_where_is_the_mean_of_its_weights(run, tmp_path):
    out = run("--heads", "--trace-out", tmp_path / "run.safetensors")[1]
    weights_HTS = load_file(tmp_path / "run.safetensors")["layers.3.attention.attend.weights_BGRTS"][0].flatten(0, 1)
    first_H = torch.stack([head_TS[1:, 0].mean() for head_TS in weights_HTS])
    itself_H = torch.stack([head_TS.diagonal()[1:].mean() for head_TS in weights_HTS])
    before_H = torch.stack([head_TS.diagonal(-1).mean() for head_TS in weights_HTS])
    row = next(line for line in out.splitlines() if line.startswith("layers.3 "))
    wanted = [(str(int(of_H.argmax())), f"{of_H.max():.1%}") for of_H in (first_H, itself_H, before_H)]
    assert re.findall(r"head (\d) +([\d.]+%)", row) == wanted
    assert len(re.findall(r"^layers\.", out, re.MULTILINE)) == tiny.CONFIG.n_layers
    assert "a single token" in views.heads([views.with_pass(None, torch.ones(1, 2, 3, 1, 1), 1)])[0]


def words(text):
    return re.sub(r"-?\d+\.\d+%?", " ", text).split()


def floats(text):
    return [float(number) for number in re.findall(r"-?\d+\.\d+", text)]


@pytest.mark.parametrize("view", [["--attention", "2,5"], ["--heads"], ["--lens"], ["--rope-pair", "1"]])
@pytest.mark.parametrize("chunk", [20, 9], ids=["the last token by itself", "three passes"])
def test_views_of_a_prompt_that_comes_in_chunks_are_those_of_one_that_does_not(run, monkeypatch, view, chunk):
    whole = run(*view)[1]
    monkeypatch.setitem(stream.stream.__wrapped__.__kwdefaults__, "chunk", chunk)
    in_chunks = run(*view)[1]
    if view[0] == "--attention":  # a query of the first chunk met no keys of the second, masked or not
        rows = [row for row in in_chunks.splitlines() if "-inf" in row or "head 5" in row]
        assert rows and all(row in whole.splitlines() for row in rows if "head 5" in row)
        assert floats(in_chunks.partition("weights_BGRTS")[2].splitlines()[-1]) == pytest.approx(
            floats(whole.partition("weights_BGRTS")[2].splitlines()[-1]), abs=2e-3
        )
    else:
        assert words(in_chunks) == words(whole)
        assert floats(in_chunks) == pytest.approx(floats(whole), abs=2e-3)


@pytest.mark.parametrize("view", [["--attention", "2,5"], ["--heads"], ["--lens"], ["--rope-pair", "1"]])
def test_views_of_several_prompts_are_of_the_first(chats, capsys, view):
    outs = []
    for more in ([], ["--prompt", "a longer prompt than the first one is"]):
        assert generate.main(["hi", *more, "--model", chats, "--max-tokens", "1", *view]) == 0
        outs.append(capsys.readouterr().out)
    alone, among = (out[out.index("──") :] for out in outs)
    assert floats(among)[: len(floats(alone))] == pytest.approx(floats(alone), abs=2e-3)
    assert among.count("\n") == alone.count("\n")


def test_tokens_are_counted_by_passes_whichever_prompt_stops_first(chats, capsys):
    argv = ["hi", "--prompt", "two", "--model", chats, "--max-tokens", "4", "--trace-tokens", "2", "--trace-steps"]
    first = json.loads(run_json(chats, capsys, "hi"))["text"]
    assert generate.main([*argv, "logits_BTV", "--stop", first[:1] or "x"]) == 0
    assert set(re.findall(r"── pass (\d)", capsys.readouterr().out)) <= {"0", "1"}


def run_json(chats, capsys, prompt):
    assert generate.main([prompt, "--model", chats, "--max-tokens", "1", "--json"]) == 0
    return capsys.readouterr().out


def test_a_float64_run_is_recorded_and_compared(run, tmp_path):
    path = tmp_path / "run.safetensors"
    assert run("--dtype", "float64", "--trace-out", path)[0] == 0
    code, out, err = run("--dtype", "float64", "--trace-compare", path)
    assert (code, "none of" in out) == (0, True), err
    assert load_file(path)["decode.rotation_BTJ"].dtype == torch.float64


def test_json_stays_alone_on_stdout(run, tmp_path):
    _, out, err = run("--json", "--trace-cost", "--trace-out", tmp_path / "x.jsonl")
    assert json.loads(out)["tokens"]
    assert "── cost of pass 0 · this machine reads " in err


def test_names_of_no_step_are_told_and_returns_go_by_their_function(run):
    _, out, err = run("--trace-steps", "attend,foo")
    assert "out attend  [B=1 T=21 G=2 R=3 K=8]" in out
    assert "no step is called foo; there are" in err and "q_BTHK" in err


def test_nothing_watches_after_a_run_that_failed(run):
    for _ in range(2):
        code, _, err = run("--trace", "--max-seq-len", "5")
        assert code == 2 and "limit 4" in err
    assert sys.gettrace() is None


BAD = {
    "F135": (["--trace-layers", "99"], 2, "layer 99: this model's 5 layers are 0 to 4"),
    "F136": (["--trace-out", "/no/such/folder/x.jsonl"], 3, "can't be written: its folder is not there"),
    "ending": (["--trace-out", "x.txt"], 2, "expected a name that ends in .jsonl, .safetensors or .html"),
    "head": (["--attention", "0,6"], 2, "head 6, the heads are 0 to 5"),
    "pair": (["--rope-pair", "4"], 2, "the pairs are 0 to 3"),
    "words": (["--trace-layers", "one"], 2, "expected whole numbers with commas"),
    "json": (["--trace", "--json"], 2, "with --json take --trace-out"),
    "length": (["--length", "3"], 2, "--length goes with --no-weights"),
    "no-weights": (["--no-weights", "--lens"], 2, "--no-weights has shapes and costs only"),
    "no values": (["--no-weights", "--trace-out", "x.safetensors"], 2, "it holds values, which --no-weights has none"),
    "no factor": (["--no-weights", "--rope-scale-factor", "8"], 2, "changes numbers, --no-weights has only shapes"),
    "no log p": (["--no-weights", "--logprobs", "2"], 2, "--logprobs is for a model that runs, --no-weights runs none"),
    "no device": (["--no-weights", "--device", "mps"], 2, "--device is for a model that runs, --no-weights runs none"),
    "two lengths": (["--no-weights", "--length", "9"], 2, "--length stands in the place of a prompt"),
    "no names": (["--trace-steps", ","], 2, "expected names of tensors"),
    "tokens": (["--trace-tokens", "3"], 2, "--trace-tokens goes with --trace"),
}


@pytest.mark.parametrize("argv, code, message", BAD.values(), ids=BAD)
def test_options_that_cannot_be(run, argv, code, message):
    assert (found := run(*argv))[0] == code
    assert message in found[2] and found[1] == ""


def test_f136_is_told_before_the_model_is_read(capsys, monkeypatch):
    monkeypatch.setattr(batches, "open_model", lambda options: pytest.fail("the model was read"))
    assert generate.main(["hi", "--trace-out", "/no/such/folder/x.jsonl"]) == 3


def test_any_official_size_is_traced_without_its_weights(capsys):
    code = generate.main(["--model", "llama3.2-1b", "--no-weights", "--length", "17", "--batch", "2", "--trace"])
    out = capsys.readouterr().out
    assert code == 0
    assert "q_BTHK  [B=2 T=17 H=32 K=64]  bfloat16" in out and "layers.15  x_BTD" in out
    assert "parameters    1,235,814,400, the head tied to the embedding" in out
    assert "KV cache      8.59 GB in bf16, 131,072 tokens × 2" in out
    config = l3.OFFICIAL["llama3.2-1b"]
    matrices = config.n_parameters - (2 * config.n_layers + 1) * config.dim  # the tied head multiplies, the norms don't
    flops = 2 * 2 * 17 * (matrices + 2 * config.n_layers * config.n_heads * config.head_dim * 17)
    assert f"this pass     {flops:,} FLOPs" in out


def test_a_model_that_is_here_has_its_prompt_counted(chats, capsys):
    assert generate.main(["hi", "--model", chats, "--no-weights"]) == 0
    assert "── 1 × 21 tokens ──" in capsys.readouterr().out
    assert generate.main(["--length", "9000", "--model", "llama3-8b", "--no-weights"]) == 2
    assert "--length 9000: this model's context is 8192 tokens" in capsys.readouterr().err
    assert (
        generate.main(["--length", "9", "--model", "llama3-8b", "--no-weights", "--dtype", "float32", "--trace"]) == 0
    )
    out = capsys.readouterr().out
    assert "q_BTHK  [B=1 T=9 H=32 K=128]  float32" in out and "wq.weight [4096, 4096] bfloat16" in out
    assert generate.main(["hi", "--model", "llama3-8b", "--no-weights"]) == 2
    assert "give the --length" in capsys.readouterr().err


def test_it_is_there_from_python():
    with l3.trace.watch() as steps:
        l3.forward(TOKENS, tiny.params(), tiny.CONFIG, block=l3.block)
    assert len(steps) > 300
