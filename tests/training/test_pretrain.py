"""From a text file to a model that tells: the scripts one after the other, at toy size, in this process."""

from __future__ import annotations

import json
import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llama3_scratch.checkpoint.load import load
from llama3_scratch.training import checkpoints, pretraining, record
from tests import tiny
from tests.recipes import script

SHAPE = ["--dim", "32", "--layers", "2", "--heads", "4", "--kv-heads", "2", "--length", "48", "--batch", "4"]
PLAN = ["--steps", "12", "--warmup", "2", "--save-every", "4", "--validate-every", "6", "--sample-every", "12"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stories")
    assert script("write_stories")(["--count", "80", "--seed", "3", "--out", str(folder / "stories.jsonl")]) == 0
    made = ["--size", "400", "--out", str(folder / "tokenizer")]
    assert script("train_tokenizer")([str(folder / "stories.jsonl"), *made]) == 0
    prepared = ["--tokenizer", str(folder / "tokenizer"), "--out", str(folder / "data"), "--validation", "0.1"]
    assert script("prepare_data")([str(folder / "stories.jsonl"), *prepared]) == 0
    return folder / "data"


def pretrain(data: Path, out: Path, *more: str) -> int:
    return script("pretrain")([str(data), "--out", str(out), *SHAPE, *PLAN, *more])


def test_a_run_leaves_a_model_that_generates(data, tmp_path, capsys, curves):
    assert pretrain(data, tmp_path / "run") == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'run' / 'model'}\n"
    assert "step 12/12 · loss " in err and "tok/s · MFU " in err and "held out " in err and "Once upon a time" in err
    lines = list(record.read(tmp_path / "run" / "log.jsonl"))
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 13))
    shown = re.findall(r"^step (\d+)/12 · loss ([\d.]+)", err, re.MULTILINE)
    assert shown == [(str(line["step"]), f"{line['loss']:.4f}") for line in lines if "loss" in line]
    held_out = re.findall(r"^step (\d+) · held out ([\d.]+)", err, re.MULTILINE)
    assert held_out == [(str(line["step"]), f"{line['validation']:.4f}") for line in lines if "validation" in line]
    assert [step for step, _ in held_out] == ["6", "12"]
    assert (tmp_path / "run" / "loss.png").exists()
    model = load(tmp_path / "run" / "model")
    assert model.config.tied and model.config.dim == 32 and model.tokenizer is not None
    from llama3_scratch.generate import main as generate

    told = ["--model", str(tmp_path / "run" / "model"), "Once upon a time", "--max-tokens", "5", "--temperature", "0"]
    assert generate(told) == 0 and capsys.readouterr().out


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "Ctrl-C"])
def test_a_stopped_run_goes_on_bit_for_bit(data, tmp_path, capsys, monkeypatch, number, code):
    assert pretrain(data, tmp_path / "whole") == 0
    line = record.line

    def stop(step, *rest):
        if step.step == 5:
            os.kill(os.getpid(), number)
        return line(step, *rest)

    with monkeypatch.context() as stopping:
        stopping.setattr(record, "line", stop)
        assert pretrain(data, tmp_path / "stopped") == code
    assert "stopped after step 6 of 12 and saved; --resume goes on" in capsys.readouterr().err
    assert checkpoints.newest(tmp_path / "stopped").name == "step_6"
    assert pretrain(data, tmp_path / "stopped") == 3
    assert "there is a run already, at step_6; --resume goes on" in capsys.readouterr().err
    assert pretrain(data, tmp_path / "stopped", "--lr", "0.1", "--resume") == 3
    assert "plan.lr: 0.002, now 0.1" in capsys.readouterr().err
    assert pretrain(data, tmp_path / "stopped", "--resume") == 0
    assert "going on after step 6 of 12" in capsys.readouterr().err
    one, two = (load(tmp_path / run / "model").params for run in ("whole", "stopped"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    curves = [
        [line["loss"] for line in record.read(tmp_path / run / "log.jsonl") if "loss" in line]
        for run in ("whole", "stopped")
    ]
    assert curves[0] == curves[1] and len(curves[0]) == 12


def test_a_long_text_is_split_and_held_out_from(tmp_path, capsys):
    """As `input.txt` of tinyshakespeare: one text, with empty lines between its speeches."""
    text = "\n\n".join(f"SPEAKER {n % 7}:\nWhat is it, number {n}, that you say?" for n in range(400))
    (tmp_path / "play.txt").write_text(text)
    assert script("train_tokenizer")([str(tmp_path / "play.txt"), "--size", "300", "--out", str(tmp_path / "tok")]) == 0
    named = [str(tmp_path / "play.txt"), "--tokenizer", str(tmp_path / "tok"), "--validation", "0.1"]
    capsys.readouterr()
    assert script("prepare_data")([*named, "--out", str(tmp_path / "whole")]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("1 documents read, 1 kept\ntrain: 1 documents, ") and "validation: 1 documents, " in out
    assert "each text file is one document; --documents blank-line, line or a mark parts it" in err
    assert "held out is the end of each of 1 documents, 10 % of it" in err
    for how, count in (("blank-line", 400), ("line", 407)):  # of which seven lines are no repetition
        assert script("prepare_data")([*named, "--documents", how, "--out", str(tmp_path / how)]) == 0
        out, err = capsys.readouterr()
        assert f"{count} kept" in out and "--documents" not in err and "held out is" not in err
    assert pretrain(tmp_path / "whole", tmp_path / "run", "--batch", "64") == 0
    assert capsys.readouterr().err.count("held out ") == 2  # of a part that is less than a batch


def test_without_held_out_text_that_is_said(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("The cat saw the dog. " * 100)
    assert (
        script("train_tokenizer")([str(tmp_path / "text.txt"), "--size", "9999", "--out", str(tmp_path / "tok")]) == 0
    )
    assert "tokens and not 9999: this text has no more pairs to merge" in capsys.readouterr().err
    named = [str(tmp_path / "text.txt"), "--tokenizer", str(tmp_path / "tok"), "--out", str(tmp_path / "data")]
    assert script("prepare_data")([*named, "--validation", "0"]) == 0
    assert "held out" not in capsys.readouterr().err  # as was asked for
    assert pretrain(tmp_path / "data", tmp_path / "run", "--length", "8", "--batch", "2") == 0
    err = capsys.readouterr().err
    assert (
        "held out are 0 tokens, too few for a row of 8, so there will be no held-out loss" in err and "nan" not in err
    )


def test_the_wrong_order_of_commands_is_told_the_right_one(data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("The cat saw the dog.")
    for name, arguments, code, said in (
        ("train_tokenizer", "none.txt --out tok", 3, "none.txt: no such file in "),
        ("prepare_data", "text.txt --tokenizer tok --out d", 3, "; scripts/train_tokenizer.py makes a tokenizer"),
        ("pretrain", "text.txt --out run", 3, "text.txt: expected a folder of prepared data, found a file; python scr"),
        ("pretrain", "d --out run", 3, "d: expected a folder of prepared data, found nothing; python scr"),
        ("pretrain", f"{data} --out text.txt", 2, "text.txt: expected a folder to write into, found a file"),
        ("train_tokenizer", "text.txt --out text.txt", 2, "text.txt: expected a folder to write into, found a file"),
        (
            "prepare_data",
            f"text.txt --tokenizer {data} --out text.txt",
            2,
            "expected a folder to write into, found a file",
        ),
        ("write_stories", "--out .", 3, ".: expected a file to write, found a folder"),
        (
            "pretrain",
            f"{data} --out run --resume",
            3,
            "no whole checkpoint to go on from; without --resume a run begins",
        ),
    ):
        assert script(name)(arguments.split()) == code
        assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]
    assert script("write_stories")(["--count", "1", "--out", "made/here/stories.jsonl"]) == 0


def test_weights_of_another_run(data, tmp_path, capsys):
    assert pretrain(data, tmp_path / "first") == 0
    newest = checkpoints.newest(tmp_path / "first")
    assert pretrain(data, tmp_path / "second", "--weights", str(newest)) == 0
    first = next(line["loss"] for line in record.read(tmp_path / "second" / "log.jsonl"))
    last = [line["loss"] for line in record.read(tmp_path / "first" / "log.jsonl") if "loss" in line]
    assert first < last[0] - 0.2
    assert pretrain(data, tmp_path / "x", "--resume") == 3 and "no whole checkpoint" in capsys.readouterr().err
    assert pretrain(data, tmp_path / "first", "--resume", "--weights", str(newest)) == 2
    assert "give one of them" in capsys.readouterr().err


def test_a_learning_rate_is_suggested(data, tmp_path, capsys):
    assert pretrain(data, tmp_path / "x", "--find-lr") == 0
    out = capsys.readouterr().out
    assert 1e-4 < float(out.splitlines()[-1].removeprefix("suggested: --lr ")) < 0.3
    assert "1.0e-05" in out and not (tmp_path / "x").exists()
    from llama3_scratch.training.pretraining import suggested

    assert suggested([(0.1, 3.0), (0.3, 2.0), (0.9, 9.0)]) == pytest.approx(0.1)


def test_stories_without_capitals_get_them_back(tmp_path):
    (tmp_path / "cased.txt").write_text("The dog saw Tim. Then Tim and Ann ran, and Ann won.\nOne day Tim met Ann.\n")
    (tmp_path / "lower.txt").write_text('one day tim said, "i am ann!" so he ran.\n\nthe end.\none day tim met ann.\n')
    out = tmp_path / "out.jsonl"
    assert script("tinystories")([str(tmp_path / "cased.txt"), str(tmp_path / "lower.txt"), "--out", str(out)]) == 0
    texts = [json.loads(line)["text"] for line in out.read_text().splitlines()]
    assert texts[2:] == ['One day Tim said, "I am Ann!" So he ran.\n\nThe end.'] and len(texts) == 3


@pytest.mark.slow
def test_a_search_ranks_its_runs_and_goes_on_where_it_stopped(data, tmp_path, capfd):
    asked = [str(data), "--out", str(tmp_path), "--steps", "4", "--try", "lr=1e-5,1e-2", "--try", "layers=1"]
    for name, value in zip(SHAPE[::2], SHAPE[1::2], strict=True):
        asked += ["--try", f"{name[2:]}={value}"] if name != "--layers" else []
    search = script("search_pretraining")
    assert search(asked) == 0
    out, err = capfd.readouterr()
    rows = [line.split() for line in out.splitlines()]
    assert (
        rows[0][:3] == ["lr", "layers", "dim"]
        and rows[0][-2:] == ["held-out", "loss"]
        and [row[:2] for row in rows[1:]]
        == [
            ["1e-2", "1"],
            ["1e-5", "1"],
        ]
    )
    for lr, *_, loss in rows[1:]:
        [folder] = tmp_path.glob(f"lr={lr},layers=1,dim=32,*")
        lines = list(record.read(folder / "log.jsonl"))
        assert float(loss) == pytest.approx(
            [line["validation"] for line in lines if "validation" in line][-1], abs=1e-4
        )
    assert err.count("step 4/4") == 2
    assert search(asked) == 0  # nothing is left to do
    again, err = capfd.readouterr()
    assert again == out and "step" not in err
    assert search([*asked, "--most", "1"]) == 0
    assert len(capfd.readouterr().out.splitlines()) == 2


def test_what_a_search_cannot_try(data, tmp_path, capfd):
    search = script("search_pretraining")
    asked = [str(data), "--out", str(tmp_path), "--steps", "2"]
    assert search([*asked, "--try", "lr="]) == 2 and "expected NAME=VALUE" in capfd.readouterr().err
    assert search([*asked, "--try", "lr=1", "--try", "lr=2"]) == 2 and "tried twice" in capfd.readouterr().err
    assert search([*asked, "--try", "nothing=1"]) == 2 and "--nothing" in capfd.readouterr().err


def test_runs_from_before_heads_had_a_width_of_their_own_go_on():
    """What a run is held against when it's resumed names the width only where it's an unusual one."""
    assert "head_dim" not in pretraining.about_config(tiny.CONFIG)
    assert pretraining.about_config(replace(tiny.CONFIG, head_dim=22))["head_dim"] == 22
