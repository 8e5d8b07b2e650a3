"""Finetuning: each method learns, leaves what a verb can read, and touches nothing else."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from llama3_scratch.checkpoint.adapters import add_adapters
from llama3_scratch.checkpoint.load import load
from llama3_scratch.data.batches import IGNORE
from llama3_scratch.data.conversation_batches import Conversations
from llama3_scratch.data.conversations import read_conversations, split
from llama3_scratch.errors import UsageError
from llama3_scratch.training import checkpoints, record
from llama3_scratch.training.choices import Adapters, Finetuning
from llama3_scratch.training.finetuning import prepare
from llama3_scratch.training.loss import next_token_loss
from tests import tiny
from tests.recipes import script

FEW = ["--length", "60", "--batch", "4", "--warmup", "1", "--validation", "0.2", "--rank", "4"]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("finetune")
    rows = [{"instruction": f"Say {n % 7}", "input": "", "output": f"It is {n % 7}."} for n in range(40)]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {"data": folder / "data.jsonl", "model": tiny.folder(folder / "model", "llama3")}


def finetune(files, out: Path, *more: str) -> int:
    named = ["--model", str(files["model"]), "--data", str(files["data"]), "--out", str(out)]
    return script("finetune_lora")([*named, *FEW, *more])


def loss_of(params, config, tokenizer, data: Path) -> float:
    batches = Conversations(read_conversations(data), tokenizer, size=8, length=60, seed=0)
    total = targets = 0.0
    for index in range(len(batches)):
        batch = batches.batch(index)
        total += next_token_loss(params, config, batch, dtype=torch.float32).item()
        targets += int((batch.targets_BT != IGNORE).sum())
    return total / targets


@pytest.mark.parametrize("method", ["lora", "dora", "full"])
def test_a_method_learns_and_what_it_leaves_is_what_learnt(files, tmp_path, capsys, curves, method):
    lr = "3e-3" if method == "full" else "2e-2"
    assert finetune(files, tmp_path / "run", "--method", method, "--epochs", "8", "--lr", lr) == 0
    out, _ = capsys.readouterr()
    first, second = out.splitlines()
    before, after = (float(number) for number in first.split("loss ")[1].split(" · ")[0].split(" → "))
    assert after < 0.8 * before and second == str(tmp_path / "run" / ("model" if method == "full" else "adapter"))
    assert (tmp_path / "run" / "loss.png").exists() and (tmp_path / "run" / "log.jsonl").exists()
    base = load(files["model"])
    if method == "full":
        made = load(tmp_path / "run" / "model")
    else:
        made = add_adapters(base, [tmp_path / "run" / "adapter"])
        assert all(made.params[name] is base.params[name] for name in base.params)
    losses = [loss_of(one.params, base.config, base.tokenizer, files["data"]) for one in (base, made)]
    assert losses[1] < 0.8 * losses[0] and losses[1] == pytest.approx(after, rel=0.25)


def test_qlora_learns_beside_integers(files, tmp_path):
    base = load(files["model"])
    params, learning = prepare(base, Finetuning("lora", Adapters(rank=2, targets=["wq", "w2"])), dtype="bf16", seed=0)
    assert {name.split(".adaptor.")[1] for name in learning} == {"A.weight", "B.weight"} and len(learning) == 2 * 2 * 5
    assert params["layers.0.attention.wq.weight"].dtype == torch.bfloat16
    params, learning = prepare(base, Finetuning("qlora", Adapters(rank=2, targets=["w2"])), dtype="f32", seed=0)
    assert "layers.0.feed_forward.w1.weight" in params and len(learning) == 2 * 5
    params, learning = prepare(base, Finetuning("full"), dtype="f32", seed=0)
    assert set(learning) == set(base.params)
    with pytest.raises(UsageError, match="`method`: expected one of lora, dora, qlora, full, got 'prompt'"):
        Finetuning("prompt")
    assert finetune(files, tmp_path / "run", "--method", "qlora", "--lr", "2e-2") == 0


def test_a_part_can_be_left_out_for_later(files, tmp_path):
    assert finetune(files, tmp_path / "run", "--test", "0.1", "--lr", "1e-3") == 0
    test = read_conversations(tmp_path / "run" / "test.jsonl")
    learn, held_out, wanted = split(read_conversations(files["data"]), (0.7, 0.2, 0.1), seed=0)
    assert test == wanted and len(test) == 4 and len(learn) == 28 and len(held_out) == 8


def test_a_run_can_be_taken_up_again(files, tmp_path, capsys):
    whole = ["--epochs", "4", "--save-every", "3", "--lr", "1e-2"]
    assert finetune(files, tmp_path / "a", *whole) == 0
    first = capsys.readouterr().out.split(" → ")[0]
    assert finetune(files, tmp_path / "a", *whole) == 3 and "--resume goes on" in capsys.readouterr().err
    assert finetune(files, tmp_path / "b", *whole, "--resume") == 3
    assert "no whole checkpoint to go on from" in capsys.readouterr().err
    # A run that was ended within: the newer checkpoint is taken away, as if it had never been written.
    steps = sorted((tmp_path / "a").glob("step_*"), key=lambda path: int(path.name[5:]))
    assert finetune(files, tmp_path / "a", *whole, "--rank", "8", "--resume") == 3
    assert "rank: 4, now 8" in capsys.readouterr().err
    wanted = load_adapter(files, tmp_path / "a")
    for path in steps[-1].iterdir():
        path.unlink()
    steps[-1].rmdir()
    capsys.readouterr()
    assert finetune(files, tmp_path / "a", *whole, "--resume") == 0
    assert capsys.readouterr().out.split(" → ")[0] == first  # the loss before is the run's, not this part's
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in load_adapter(files, tmp_path / "a").items())


def load_adapter(files, run: Path):
    return {
        name: tensor
        for name, tensor in add_adapters(load(files["model"]), [run / "adapter"]).params.items()
        if ".adaptor." in name
    }


def test_whole_prompts_are_learnt_when_asked_for(files, tmp_path, capsys):
    assert finetune(files, tmp_path / "a", "--no-mask-prompt", "--steps", "1") == 0
    assert finetune(files, tmp_path / "b", "--steps", "1") == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "answer tokens" in line]
    tokens = [int(line.split(", ")[1].split(" ")[0].replace(",", "")) for line in told]
    assert tokens[0] > 2 * tokens[1]


def test_what_cant_be_finetuned(files, tmp_path, capsys):
    base = tiny.folder(tmp_path / "base", None)
    named = ["--model", str(base), "--data", str(files["data"]), "--out", str(tmp_path / "x")]
    assert script("finetune_lora")([*named, *FEW]) == 2
    assert "expected a model with a chat format" in capsys.readouterr().err
    assert finetune(files, tmp_path / "y", "--method", "prefix") == 2
    assert "--method: expected one of lora, dora, qlora, full, got 'prefix'" in capsys.readouterr().err
    assert finetune(files, tmp_path / "y", "--targets", "wz") == 2 and "'wz'" in capsys.readouterr().err
    assert finetune(files, tmp_path / "y", "--length", "4097") == 2
    assert "rows of 4097 tokens: the model was trained for 4096; lower --length" in capsys.readouterr().err
    assert finetune(files, tmp_path / "y", "--accumulate", "99") == 2
    assert "make no step of 99; lower --accumulate" in capsys.readouterr().err


def test_without_held_out_conversations_that_is_said(files, tmp_path, capsys):
    assert finetune(files, tmp_path / "run", "--steps", "2", "--validation", "0") == 0
    out, err = capsys.readouterr()
    assert out.startswith("no conversation was held out, so there is no held-out loss · ") and "nan" not in out
    assert "no conversation is held out, so there will be no held-out loss" in err
    assert "NaN" not in (tmp_path / "run" / "log.jsonl").read_text()


def test_ctrl_c_saves_and_ends_with_130(files, tmp_path, capsys, monkeypatch):
    line = record.line

    def stop(step, *rest):
        if step.step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return line(step, *rest)

    monkeypatch.setattr(record, "line", stop)
    assert finetune(files, tmp_path / "run", "--epochs", "4") == 130
    assert checkpoints.newest(tmp_path / "run").name == "step_2" and (tmp_path / "run" / "adapter").exists()
    assert "stopped after step 2 of" in capsys.readouterr().err
