"""Training: cross-entropy within documents, torch's AdamW, and runs that go on bit for bit wherever they stopped."""

from __future__ import annotations

import io
import json
import logging
import math
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from llama3_scratch.cache import NoCache
from llama3_scratch.data.batches import IGNORE, Batch
from llama3_scratch.data.shards import Shards
from llama3_scratch.errors import FileError, ResourceError, UsageError
from llama3_scratch.init import init
from llama3_scratch.model import block, forward, fused_block
from llama3_scratch.system.progress import steps_bar
from llama3_scratch.system.timings import duration
from llama3_scratch.training import checkpoints, curve, record
from llama3_scratch.training.choices import TrainingPlan
from llama3_scratch.training.flops import flops_per_token
from llama3_scratch.training.loop import NotLearningError, Training
from llama3_scratch.training.loss import cross_entropy, document_mask, next_token_loss, recomputed, unchanged
from llama3_scratch.training.optimizer import adamw, schedule
from llama3_scratch.training.run import train
from tests import tiny
from tests.compare import check
from tests.small_training import CONFIG, PLAN, batches, training
from tests.small_training import data as data


def test_loss_by_hand():
    logits_BTV = torch.randn(2, 3, 5, dtype=torch.float64)
    targets_BT = torch.tensor([[1, IGNORE, 4], [0, 2, IGNORE]])
    shares = logits_BTV.exp() / logits_BTV.exp().sum(-1, keepdim=True)
    by_hand = -sum(math.log(shares[b, t, v]) for b, t, v in [(0, 0, 1), (0, 2, 4), (1, 0, 0), (1, 1, 2)])
    assert cross_entropy(logits_BTV, targets_BT).item() == pytest.approx(by_hand)


def test_one_document_cannot_see_another():
    """The logits of packed documents are those of each on its own."""
    params = init(tiny.CONFIG, seed=3, std=0.3)
    tokens_BT = tiny.tokens(1, 12, tiny.CONFIG)
    documents_BT = torch.tensor([[0] * 5 + [1] * 4 + [2] * 3])
    cache = NoCache(document_mask(documents_BT))
    packed = forward(tokens_BT, params, tiny.CONFIG, cache=cache)
    alone = [forward(part, params, tiny.CONFIG, block=block) for part in tokens_BT.split([5, 4, 3], dim=1)]
    check(packed, torch.cat(alone, dim=1), 1e-5)
    changed_BT = tokens_BT.clone()
    changed_BT[0, 0] = (changed_BT[0, 0] + 1) % tiny.CONFIG.vocab_size
    again = forward(changed_BT, params, tiny.CONFIG, cache=cache)
    assert torch.equal(again[:, 5:], packed[:, 5:]) and not torch.equal(again[:, :5], packed[:, :5])


@pytest.mark.parametrize("packed", [False, True])
def test_recomputing_changes_nothing_but_memory(packed):
    params = {name: weight.requires_grad_() for name, weight in init(CONFIG, seed=0).items()}
    tokens_BT = tiny.tokens(2, 20, CONFIG)
    documents_BT = torch.zeros_like(tokens_BT)
    documents_BT[:, 9:] = int(packed)
    batch = Batch(tokens_BT, tokens_BT.roll(-1, 1), documents_BT)
    gradients = []
    for wrap in (unchanged, recomputed):
        next_token_loss(params, CONFIG, batch, wrap=wrap).backward()
        gradients.append({name: weight.grad for name, weight in params.items()})
        for weight in params.values():
            weight.grad = None
    for name in params:
        assert torch.equal(gradients[0][name], gradients[1][name]), name
    counted = []
    layer = recomputed(lambda *a, **k: counted.append(1) or fused_block(*a, **k))
    forward(tokens_BT, params, CONFIG, block=layer).sum().backward()
    assert len(counted) == 2 * CONFIG.n_layers


def test_gradients_numerically():
    """In f64, what autograd says of a few weights is what moving them does."""
    config = replace(CONFIG, n_layers=1)
    params = {name: w.double().requires_grad_() for name, w in init(config, seed=2, std=0.2).items()}
    tokens_BT = tiny.tokens(2, 9, config)
    batch = Batch(tokens_BT, tokens_BT.roll(-1, 1), torch.zeros_like(tokens_BT))

    def loss() -> torch.Tensor:
        return next_token_loss(params, config, batch, dtype=torch.float64)

    loss().backward()
    for name in ("tok_embeddings.weight", "layers.0.attention.wk.weight", "layers.0.ffn_norm.weight"):
        weight = params[name]
        at = int(weight.grad.abs().argmax())
        with torch.no_grad():
            flat, step = weight.view(-1), 1e-5
            flat[at] += step
            above = loss()
            flat[at] -= 2 * step
            below = loss()
            flat[at] += step
        assert weight.grad.view(-1)[at].item() == pytest.approx(((above - below) / (2 * step)).item(), rel=1e-5), name


def test_adamw_by_hand():
    matrix, vector = torch.randn(3, 4).requires_grad_(), torch.randn(4).requires_grad_()
    optimizer = adamw({"a": matrix, "b": vector, "again": matrix}, lr=0.01, weight_decay=0.1)
    ours = {"a": matrix.detach().clone(), "b": vector.detach().clone()}
    moments = {name: (torch.zeros_like(w), torch.zeros_like(w)) for name, w in ours.items()}
    for step in range(1, 4):
        gradients = {"a": torch.randn(3, 4), "b": torch.randn(4)}
        matrix.grad, vector.grad = gradients["a"].clone(), gradients["b"].clone()
        optimizer.step()
        for name, w in ours.items():
            m, v = moments[name]
            m.mul_(0.9).add_(0.1 * gradients[name])
            v.mul_(0.95).add_(0.05 * gradients[name] ** 2)
            w.mul_(1 - 0.01 * (0.1 if name == "a" else 0.0))
            w.sub_(0.01 * (m / (1 - 0.9**step)) / ((v / (1 - 0.95**step)).sqrt() + 1e-8))
        torch.testing.assert_close(matrix.detach(), ours["a"])
        torch.testing.assert_close(vector.detach(), ours["b"])


def test_schedules():
    cosine, wsd, level = (schedule(kind, 100, 10) for kind in ("cosine", "wsd", "constant"))
    for share in (cosine, wsd, level):
        assert [share(step) for step in (0, 4, 9)] == [0.1, 0.5, 1.0]
    assert cosine(10) == 1.0 and cosine(99) == pytest.approx(0.1) and 0.5 < cosine(54) < 0.6
    assert all(wsd(step) == 1.0 for step in range(10, 81)) and wsd(90) == 0.5 and 0 < wsd(99) <= 0.05
    assert level(99) == 1.0
    rising = schedule("range", 101, 0)
    assert [rising(step) for step in (0, 20, 100)] == pytest.approx([1e-5, 1e-4, 1])
    assert all(a > b for a, b in zip(map(cosine, range(10, 99)), map(cosine, range(11, 100)), strict=True))
    with pytest.raises(UsageError, match="`schedule`: expected one of cosine, wsd, constant, range, got 'linear'"):
        TrainingPlan(steps=1, lr=1, schedule="linear")
    with pytest.raises(UsageError, match="`dtype`: expected one of f32, bf16, f16, fp8, got 'int8'"):
        TrainingPlan(steps=1, lr=1, dtype="int8")


def test_a_step_is_the_mean_over_all_targets_of_its_batches(data):
    ours = training(data, replace(PLAN, clip=1e9))
    before = {name: w.detach().clone().requires_grad_() for name, w in ours.trainable.items()}
    before["output.weight"] = before["tok_embeddings.weight"]
    both = [batches(data).batch(index) for index in (0, 1)]
    targets = sum(int((b.targets_BT != IGNORE).sum()) for b in both)
    loss = sum(next_token_loss(before, CONFIG, b) for b in both) / targets
    loss.backward()
    unique = {id(w): w for w in before.values()}.values()
    norm = torch.stack([w.grad.norm() for w in unique]).norm().item()
    step = ours.advance()
    assert step.loss == pytest.approx(loss.item(), rel=1e-6) and step.gradient == pytest.approx(norm, rel=1e-5)
    assert step.tokens == 2 * 4 * 24 and step.lr == pytest.approx(1e-3) and ours.step == 1 and not step.skipped


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16", "fp8"])
def test_it_learns(data, dtype):
    ours = training(data, TrainingPlan(steps=40, lr=1e-2, warmup=5, dtype=dtype))
    losses = [ours.advance().loss for _ in range(40)]
    assert losses[0] == pytest.approx(math.log(258), rel=0.05) and losses[-1] < 0.55 * losses[0]
    assert all(weight.dtype == torch.float32 for weight in ours.trainable.values())
    held_out = ours.validate(batches(data, "validation"))
    assert held_out < 0.6 * losses[0]


@pytest.mark.slow
def test_a_compiled_loss_is_the_same_loss(data, tmp_path):
    """In processes of their own: the compiler wants setuptools' distutils, and other tests may have loaded Python's."""
    shape = "--dim 32 --layers 2 --heads 4 --kv-heads 2 --length 24 --batch 4 --steps 6 --warmup 2"
    losses = []
    for more in ([], ["--compile"]):
        folder = tmp_path / f"run{len(more)}"
        script = Path(__file__).parents[2] / "scripts" / "pretrain.py"
        command = [sys.executable, str(script), str(data), "--out", str(folder), *shape.split(), *more]
        subprocess.run(command, check=True, capture_output=True)
        lines = list(record.read(folder / "log.jsonl"))
        losses.append([line.get("loss", line.get("validation")) for line in lines])
    assert len(losses[0]) == 7 and losses[0][0] > losses[0][5]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_without_a_compiler_a_compiled_loss_says_so(data, monkeypatch):
    from torch._inductor.exc import InvalidCxxCompiler

    def missing(*args, **kwargs):
        raise InvalidCxxCompiler

    monkeypatch.setattr(torch, "compile", lambda loss: missing)
    with pytest.raises(UsageError, match=r"`compile=True` needs a C\+\+ compiler"):
        training(data, replace(PLAN, compile=True)).advance()


def test_only_what_learns_changes(data):
    params = init(CONFIG, seed=0)
    ours = Training(params, CONFIG, ["layers.1.ffn_norm.weight"], batches(data), PLAN)
    before = {name: weight.clone() for name, weight in params.items()}
    ours.advance()
    changed = {name for name in params if not torch.equal(ours.params[name], before[name])}
    assert changed == {"layers.1.ffn_norm.weight"}
    assert all(torch.equal(params[name], before[name]) for name in params), "the caller's own are left alone"


def finish(ours: Training, steps: int) -> list[float]:
    return [ours.advance().loss for _ in range(steps)]


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_f183_resuming_is_bit_for_bit(data, tmp_path, dtype):
    plan = replace(PLAN, dtype=dtype)
    whole = training(data, plan)
    wanted = finish(whole, 12)
    first = training(data, plan)
    finish(first, 5)
    first.save(tmp_path)
    second = training(data, plan)
    second.resume(checkpoints.newest(tmp_path))
    assert finish(second, 7) == wanted[5:]
    assert all(torch.equal(second.trainable[name], whole.trainable[name]) for name in whole.trainable)


def saved(data: Path, folder: Path, steps: int = 2) -> Training:
    ours = training(data)
    for _ in range(steps):
        ours.advance()
        ours.save(folder)
    return ours


def test_f184_f188_half_a_checkpoint_is_none(data, tmp_path):
    saved(data, tmp_path, 2)
    (tmp_path / "step_9.tmp-77").mkdir()
    (tmp_path / "step_9.tmp-77" / "weights.pth").write_bytes(b"half")
    (tmp_path / "step_3").mkdir()
    assert checkpoints.newest(tmp_path).name == "step_2"
    ours = training(data)
    ours.resume(checkpoints.newest(tmp_path))
    ours.advance()
    ours.save(tmp_path)  # in the place of the broken one
    assert checkpoints.newest(tmp_path).name == "step_3"


def test_f187_a_full_disk_ends_no_training(data, tmp_path, monkeypatch, caplog):
    ours = saved(data, tmp_path, 1)
    there = sorted(path.name for path in tmp_path.iterdir())
    torch_save = torch.save

    def full(value, path):
        torch_save(value, path)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(ResourceError, match="step_1: can't be written: No space left on device; nothing was changed"):
        ours.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == there
    monkeypatch.setattr(torch, "save", lambda value, path: (full if ours.step < 4 else torch_save)(value, path))
    ended = train(ours, tmp_path, save_every=2, on_step=lambda step: None)
    assert ended == 0 and checkpoints.newest(tmp_path).name == "step_12"


def test_f189_f190_a_damaged_checkpoint_is_passed_over(data, tmp_path, caplog):
    saved(data, tmp_path, 3)
    assert [path.name for path in checkpoints.steps(tmp_path)] == ["step_3", "step_2"], "the newest two are kept"
    weights = tmp_path / "step_3" / "weights.pth"
    raw = bytearray(weights.read_bytes())
    raw[len(raw) // 2] ^= 1
    weights.write_bytes(raw)
    assert checkpoints.newest(tmp_path).name == "step_2" and "weights.pth isn't what was written" in caplog.text
    (tmp_path / "latest").write_text("step_8\n")
    assert checkpoints.newest(tmp_path).name == "step_2" and "names step_8, which isn't there" in caplog.text


def test_f191_without_the_optimizer_nothing_goes_on(data, tmp_path):
    saved(data, tmp_path, 1)
    (tmp_path / "step_1" / "optimizer.pth").unlink()
    assert checkpoints.newest(tmp_path) is None
    ours = training(data)
    with pytest.raises(FileError, match=r"optimizer\.pth: not found"):
        ours.resume(tmp_path / "step_1")
    ours.resume(tmp_path / "step_1", weights_only=True)
    assert ours.step == 0 and not torch.equal(ours.trainable["norm.weight"], training(data).trainable["norm.weight"])


def test_f192_f193_other_settings_are_named(data, tmp_path):
    saved(data, tmp_path, 1)
    with pytest.raises(FileError, match=r"plan\.lr: 0\.003, now 0\.1; give the same"):
        training(data, replace(PLAN, lr=0.1)).resume(tmp_path / "step_1")
    ours = training(data, about={"rank": 8})
    with pytest.raises(FileError, match="rank: nothing, now 8"):
        ours.resume(tmp_path / "step_1")
    params = init(CONFIG, seed=0)
    other = Training(params, CONFIG, list(params), Shards(data).batches("train", size=4, length=20, seed=1), PLAN)
    with pytest.raises(FileError, match=r"data: .* 4×24 seed 1, now .* 4×20 seed 1"):
        other.resume(tmp_path / "step_1")
    other.resume(tmp_path / "step_1", other_data=True)
    assert other.step == 1


def test_f194_another_torch_is_warned_of(data, tmp_path, caplog):
    ours = saved(data, tmp_path, 1)
    about = json.loads((tmp_path / "step_1" / "about.json").read_text())
    (tmp_path / "step_1" / "about.json").write_text(json.dumps(about | {"torch": "1.0"}))
    ours.resume(tmp_path / "step_1")
    assert "saved by torch 1.0" in caplog.text


def test_f195_no_number_ends_the_run_and_keeps_the_batch(data, tmp_path):
    ours = saved(data, tmp_path, 1)
    with torch.no_grad():
        ours.trainable["norm.weight"][0] = float("nan")
    with pytest.raises(NotLearningError, match="no number 5 times in a row, up to step 6"):
        train(ours, tmp_path, save_every=1000, on_step=lambda step: None)
    kept = torch.load(tmp_path / "bad_batch.pth", weights_only=True)
    assert torch.equal(kept["tokens_BT"], batches(data).batch(11).tokens_BT)
    assert checkpoints.newest(tmp_path).name == "step_1"


def test_f196_a_log_that_takes_nothing_ends_no_training(tmp_path, caplog):
    kept = record.Record(tmp_path, 0)
    kept.add({"step": 0, "loss": 1.0, "skipped": False})
    (tmp_path / record.FILE).unlink()
    (tmp_path / record.FILE).mkdir()
    kept.add({"step": 1})
    kept.add({"step": 2})
    assert caplog.text.count("training goes on") == 1


def test_the_log_is_one_story_and_draws_a_curve(tmp_path, curves):
    kept = record.Record(tmp_path, 0)
    for step in range(1, 7):
        kept.add({"step": step, "loss": 5.5 - step / 2, "skipped": False} | ({"validation": 4.0} if step == 4 else {}))
    with (tmp_path / record.FILE).open("a") as file:
        file.write('{"step": 7, "lo')
    kept = record.Record(tmp_path, 4)  # resumed from step_4
    kept.add({"step": 5, "loss": 2.9, "skipped": False})
    assert [line["step"] for line in record.read(tmp_path / record.FILE)] == [1, 2, 3, 4, 5]
    drawn = curve.draw(tmp_path)
    assert drawn is not None and drawn.read_bytes().startswith(b"\x89PNG")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("columns", [40, 100])
def test_on_a_terminal_one_line_stays_and_others_stand_above(monkeypatch, columns):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    handler = logging.StreamHandler(screen)
    log = logging.getLogger("llama3_scratch")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        with steps_bar(10, 40) as show:
            show(20, "step 20/40 · loss 3.1 · 8 s left")
            log.info("step 20 · held out 3.2")
        assert handler.stream is screen and sys.stderr is screen
        log.info("behind")
    finally:
        log.removeHandler(handler)
        log.setLevel(logging.NOTSET)
    shown = screen.getvalue()
    assert "50%" in shown and shown.count("step 20 · held out 3.2") == 1 and shown.endswith("behind\n")
    assert shown.index("step 20 · held out 3.2") < shown.rindex("step 20/40 · loss 3.1")
    assert ("8 s left" in shown) == (columns == 100) and ("…" in shown) == (columns == 40)


def test_elsewhere_each_step_is_a_line(caplog):
    caplog.set_level("INFO", logger="llama3_scratch")
    with steps_bar(0, 2) as show:
        show(1, "step 1/2")
        show(2, "step 2/2")
    assert caplog.messages == ["step 1/2", "step 2/2"]


def test_a_run_doesnt_fail_for_a_picture(tmp_path, monkeypatch, caplog, curves):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert curve.draw(tmp_path) is None and 'pip install -e ".[train]"' in caplog.text


def test_flops_are_those_that_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    untied = replace(CONFIG, tied=False)
    params = {name: weight.requires_grad_() for name, weight in init(untied, seed=0).items()}
    tokens_BT = tiny.tokens(2, 32, CONFIG)
    with FlopCounterMode(display=False) as counter:
        forward(tokens_BT, params, untied, block=block).sum().backward()
    per_token = counter.get_total_flops() / 64
    # The readable attention computes the masked half too, and the first layer needs no gradient of its input's input.
    assert flops_per_token(CONFIG, 32) == pytest.approx(per_token, rel=0.12)


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.training import test_training as t
from llama3_scratch.training import checkpoints
from llama3_scratch.training.run import train
data, folder = Path({data!r}), Path({folder!r})
ours = t.training(data, t.PLAN_OF_KILLS)
if (there := checkpoints.newest(folder)) is not None:
    ours.resume(there)
print("ready", flush=True)
with (folder / "losses").open("a") as file:
    train(ours, folder, save_every=1, on_step=lambda s: print(s.step, s.loss.hex(), file=file, flush=True))
"""
PLAN_OF_KILLS = replace(PLAN, steps=60)


def start(data: Path, folder: Path) -> subprocess.Popen:
    source = SCRIPT.format(root=str(Path(__file__).parents[2]), data=str(data), folder=str(folder))
    process = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def losses(folder: Path) -> dict[int, str]:
    """The last word on each step."""
    lines = [line.split() for line in (folder / "losses").read_text().splitlines()]
    return {int(line[0]): line[1] for line in lines if len(line) == 2}


@pytest.mark.slow
def test_f183_f184_twenty_kills_leave_the_same_curve(data, tmp_path):
    """SIGKILL at random moments, some within a save: what goes on is what would have been."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    assert start(data, whole).wait() == 0
    moments = random.Random(5)
    kills = 0
    while kills < 20:
        process = start(data, killed)
        try:
            process.wait(timeout=moments.uniform(0.02, 0.35))
            break  # it was done before
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    assert start(data, killed).wait() == 0
    assert losses(killed) == losses(whole) and len(losses(whole)) == 60
    one, two = (checkpoints.read(checkpoints.newest(folder), "weights") for folder in (whole, killed))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_f185_f186_a_signal_saves_and_ends(data, tmp_path, number):
    ours = training(data)
    ended = train(ours, tmp_path, save_every=1000, on_step=lambda step: step.step == 3 and os.kill(os.getpid(), number))
    assert ended == number and checkpoints.newest(tmp_path).name == "step_4"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_signal_within_a_validation_saves_too(data, tmp_path, number):
    hooks = [(2, lambda: os.kill(os.getpid(), number))]
    ended = train(training(data), tmp_path, save_every=1000, on_step=lambda step: None, hooks=hooks)
    assert ended == number and checkpoints.newest(tmp_path).name == "step_2"


def test_a_signal_within_a_save_that_fails_is_heard_behind_the_next_step(data, tmp_path, monkeypatch):
    ours, save = training(data), checkpoints.save

    def failing(folder, step, *rest):
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            raise ResourceError("no space left")
        return save(folder, step, *rest)

    monkeypatch.setattr(checkpoints, "save", failing)
    assert train(ours, tmp_path, save_every=2, on_step=lambda step: None) == signal.SIGTERM
    assert checkpoints.newest(tmp_path).name == "step_3"


def test_f186_a_second_ctrl_c_ends_at_once(data, tmp_path):
    def twice(step):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)

    with pytest.raises(KeyboardInterrupt):
        train(training(data), tmp_path, save_every=1000, on_step=twice)
    assert checkpoints.newest(tmp_path) is None


def test_a_tied_head_stays_tied(data):
    ours = training(data)
    ours.advance()
    assert ours.params["output.weight"] is ours.params["tok_embeddings.weight"]
    assert F.cosine_similarity(ours.params["output.weight"][0], torch.ones(32), dim=0).isfinite()


def test_the_curve_shows_the_first_step_and_no_wild_one():
    falling = [8 - step / 50 for step in range(300)]
    low, high = curve.limits(falling, [])
    assert low < falling[-1] and high > falling[0]
    wild = [*falling[:200], 1e6, *falling[200:]]
    assert curve.limits(wild, []) == pytest.approx((low, high), abs=0.1)
    assert curve.limits([11.0, *[4.0] * 300], [])[1] > 11
    low, high = curve.limits([1.2, 1.8, 1.5, 1.1], [1.9, 0.9])  # where the first step is none of the highest
    assert low < 0.9 and high > 1.9
    assert curve.limits([3.0], []) == pytest.approx((2.85, 3.15))
    assert curve.running_mean([4.0] * 50) == pytest.approx([4.0] * 50)
    assert curve.running_mean([3.0, 1.0])[1] == pytest.approx((0.95 * 3 + 1) / 1.95)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (59.6, "1 min 0 s"), (78, "1 min 18 s"), (1000, "17 min"), (3570, "1 h 0 min"), (2e5, "2 d 7 h")],
)
def test_durations_are_said_as_a_person_says_them(seconds, said):
    assert duration(seconds) == said
