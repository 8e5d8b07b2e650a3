"""A classifier learns, is what transformers computes with the same weights, and can be put aside and taken up."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from llama3_scratch.checkpoint.load import load
from llama3_scratch.data.batches import IGNORE
from llama3_scratch.data.labelled import Labelled, balanced, read_labelled
from llama3_scratch.data.labelled_batches import LabelledTexts
from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.training import record
from llama3_scratch.training.choices import TRAINED, Classification
from llama3_scratch.training.classifier import class_logits, confusion, prepare, read_classifier
from tests import tiny
from tests.recipes import script

ROWS = [Labelled(f"{word} {n % 5} times", label) for n in range(20) for word, label in (("win", "spam"), ("hi", "ham"))]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("classify") / "model", "llama3")


@pytest.fixture
def data(tmp_path) -> Path:
    path = tmp_path / "texts.tsv"
    path.write_text("Label\tSMS\n" + "".join(f"{row.label}\t{row.text}\n" for row in ROWS))
    return path


def test_texts_come_from_tsv_and_json_lines(data, tmp_path):
    assert read_labelled(data) == ROWS
    other = tmp_path / "texts.jsonl"
    other.write_text("".join(json.dumps({"text": row.text, "label": row.label}) + "\n" for row in ROWS))
    assert read_labelled(other) == ROWS


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.tsv", "spam\ta\nham b\n", "a.tsv:2: expected a class, a tab and a text, got 'ham b'"),
        ("a.tsv", "spam\ta\nspam\tb\n", "expected texts of at least two classes, got 1"),
        (
            "a.jsonl",
            '{"text": "a", "label": "b"}\n{"text": "a"}\n',
            "a.jsonl:2: expected a text under text and a class",
        ),
        ("a.tsv", "", "empty file, expected text"),
    ],
)
def test_what_is_no_labelled_text_is_said(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(FileError, match=said):
        read_labelled(tmp_path / name)


def test_balanced_takes_equally_many_of_each_class():
    rows = [*ROWS, *(Labelled(f"more {n}", "ham") for n in range(30))]
    learn, test = balanced(rows, 24, seed=1)
    assert [sum(row.label == label for row in learn) for label in ("ham", "spam")] == [12, 12]
    assert sorted(map(repr, learn + test)) == sorted(map(repr, rows))
    assert balanced(rows, 24, seed=1)[0] == learn != balanced(rows, 24, seed=2)[0]
    rare = [Labelled(f"{n}", "ham" if n % 10 else "spam") for n in range(500)]
    first = balanced(rare, 60, seed=1)[1][:200]
    assert 4 <= sum(row.label == "spam" for row in first) <= 16  # 20 of 440 are left over, wherever one begins to look
    with pytest.raises(
        UsageError,
        match="60 texts would be 30 of each of 2 classes, and there are 20 of 'spam'; take at least `count=2` and",
    ):
        balanced(rows, 60, seed=1)


@pytest.mark.parametrize("read", ["last", "first"])
def test_the_class_is_the_only_target_at_the_token_that_is_read(model, read):
    tokenizer = load(model).tokenizer
    texts = LabelledTexts(ROWS, ["ham", "spam"], tokenizer, size=7, length=6, seed=3, read=read)
    assert len(texts) == 6 and texts.batch(5).tokens_BT.shape[0] == 5
    seen = []
    for index in range(len(texts)):
        batch = texts.batch(index)
        assert ((batch.targets_BT != IGNORE).sum(1) == 1).all()
        seen += batch.targets_BT[batch.targets_BT != IGNORE].tolist()
    assert sorted(seen) == [0] * 20 + [1] * 20
    again = texts.batch(len(texts))  # the next epoch, in another order
    assert again.tokens_BT.shape != texts.batch(0).tokens_BT.shape or not again.tokens_BT.equal(
        texts.batch(0).tokens_BT
    )
    with pytest.raises(FileError, match="'spam': a class that isn't among ham, eggs"):
        LabelledTexts(ROWS, ["ham", "eggs"], tokenizer, size=7, length=6, seed=3)


def test_what_fills_a_row_up_changes_nothing(model):
    checkpoint = load(model)
    params, _ = prepare(checkpoint, Classification("head"), 2)
    alone_BT = torch.tensor([[5, 9, 3]])
    filled_BT = torch.tensor([[5, 9, 3, 0, 0], [1, 2, 3, 4, 5]])
    one, two = (class_logits(ids, params, checkpoint.config, dtype=torch.float32) for ids in (alone_BT, filled_BT))
    torch.testing.assert_close(one[0, 2], two[0, 2])


def test_it_is_transformers_classifier(model, tmp_path):
    transformers = pytest.importorskip("transformers")
    from llama3_scratch.checkpoint.hf_out import write_hf

    checkpoint = load(model)
    write_hf(tmp_path / "hf", checkpoint.params, checkpoint.config, checkpoint.tokenizer)
    theirs = transformers.LlamaForSequenceClassification.from_pretrained(
        tmp_path / "hf", num_labels=3, dtype=torch.float32
    )
    params, _ = prepare(checkpoint, Classification("head"), 3, seed=4)
    with torch.no_grad():
        theirs.score.weight.copy_(params["score.weight"])
        tokens_BT = torch.arange(1, 12)[None]
        wanted_BC = theirs(tokens_BT).logits
        got_BTC = class_logits(tokens_BT, params, checkpoint.config, dtype=torch.float32)
    torch.testing.assert_close(got_BTC[:, -1], wanted_BC, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("trained", TRAINED)
def test_each_choice_trains_what_it_says_and_learns(model, data, tmp_path, capsys, trained):
    lr = "1e-2" if trained in ("head", "lora") else "3e-3"
    named = ["--model", str(model), "--data", str(data), "--out", str(tmp_path / "run"), "--balanced", "24"]
    assert script("finetune_classifier")([*named, "--train", trained, "--epochs", "6", "--lr", lr]) == 0
    out = capsys.readouterr().out.splitlines()
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["tested"] == 16 and result["right"] > 0.7 and out[-1] == str(tmp_path / "run" / "classifier")
    base = load(model)
    params, classes, read = read_classifier(tmp_path / "run" / "classifier", base)
    assert (classes, read) == (["ham", "spam"], "last")
    others = {name for name in params if params[name] is not base.params.get(name)}
    layers = {name.rpartition(".adaptor.")[0] or name for name in others} - {"score.weight"}
    if trained == "head":
        assert not layers
    elif trained == "last-block":
        last = base.config.n_layers - 1
        assert "norm.weight" in layers and all(f"layers.{last}." in name for name in layers - {"norm.weight"})
    elif trained == "all":
        assert layers == set(base.params) - {"output.weight"}
    else:
        assert all(name.split(".")[-1].startswith("w") for name in layers) and len(layers) == 7 * base.config.n_layers
    _, test = balanced(read_labelled(data), 24, seed=0)
    texts = LabelledTexts(test, classes, base.tokenizer, size=32, length=128, seed=None)
    assert confusion(params, base.config, texts, 2, dtype=torch.float32).tolist() == result["counts"]
    assert script("finetune_classifier")(["--model", str(model), "--apply", out[-1], "--text", "win 3 times"]) == 0
    assert capsys.readouterr().out.split()[2:] == ["win", "3", "times"]


def test_the_first_token_knows_only_itself(model, data, tmp_path, capsys):
    """Behind a begin token all texts begin alike, so that there is nothing to tell them apart by."""
    named = ["--model", str(model), "--data", str(data), "--out", str(tmp_path / "run"), "--balanced", "24"]
    assert script("finetune_classifier")([*named, "--read", "first", "--epochs", "2", "--train", "all"]) == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["right"] == 0.5


def test_what_is_wrong_is_one_sentence(model, data, tmp_path, capsys):
    named = ["--model", str(model), "--data", str(data), "--out", str(tmp_path / "run"), "--balanced", "24"]
    run = script("finetune_classifier")
    for more, said in (
        (["--train", "tail"], "--train: expected one of head, last-block, all, lora, got 'tail'"),
        (["--read", "middle"], "--read: expected one of last, first, got 'middle'"),
        (["--resume"], "no whole checkpoint to go on from"),
        (["--length", "4097"], "rows of 4097 tokens: the model was trained for 4096"),
        (
            ["--balanced", "1"],
            "1 texts would be 0 of each of 2 classes, and there are 20 of 'spam'; take at least --balanced 2",
        ),
    ):
        assert run([*named, *more]) in (2, 3) and said in capsys.readouterr().err
    assert run(named) == 0
    assert run(named) == 3 and "--resume goes on" in capsys.readouterr().err
    classifier = tmp_path / "run" / "classifier"
    about = json.loads((classifier / "classifier.json").read_text())
    (classifier / "classifier.json").write_text(json.dumps(about | {"classes": ["a", "b", "c"]}))
    assert run(["--model", str(model), "--apply", str(classifier), "--text", "hi"]) == 3
    assert "score.weight: expected [3, " in capsys.readouterr().err
    assert run(["--model", str(model), "--apply", str(tmp_path), "--text", "hi"]) == 3
    assert "expected a classifier, found no classifier.json; --data learns one" in capsys.readouterr().err
    assert run(["--model", str(model), "--apply", str(classifier)]) == 2
    assert "needs at least one --text" in capsys.readouterr().err


def test_ctrl_c_saves_and_goes_on(model, data, tmp_path, capsys, monkeypatch):
    named = ["--model", str(model), "--data", str(data), "--out", str(tmp_path / "run"), "--balanced", "24"]
    line = record.line

    def stop(step, *rest):
        if step.step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return line(step, *rest)

    with monkeypatch.context() as stopping:
        stopping.setattr(record, "line", stop)
        assert script("finetune_classifier")(named) == 130
    assert "stopped after step 2 of 3 and saved; --resume goes on" in capsys.readouterr().err
    assert script("finetune_classifier")([*named, "--resume"]) == 0
    assert capsys.readouterr().out.startswith("right: ")


def test_a_run_that_has_ended_says_so_and_is_tested_again(model, data, tmp_path, capsys):
    named = ["--model", str(model), "--data", str(data), "--out", str(tmp_path / "run"), "--balanced", "24"]
    assert script("finetune_classifier")(named) == 0
    first = capsys.readouterr().out.partition(" · ")[0]
    classifier = tmp_path / "run" / "classifier"
    written = {path.name: path.read_bytes() for path in classifier.iterdir()}
    assert script("finetune_classifier")([*named, "--resume"]) == 0
    out, err = capsys.readouterr()
    assert "all 3 steps are done: nothing more is learnt" in err and out.startswith(first)
    assert {path.name: path.read_bytes() for path in classifier.iterdir()} == written
    (classifier / "notes.txt").write_text("mine")
    assert script("finetune_classifier")([*named, "--resume"]) == 2
    assert "holds notes.txt, which no checkpoint has, and isn't replaced" in capsys.readouterr().err


def test_all_texts_may_be_learnt_from_and_long_ones_are_cut(model, data, tmp_path, capsys):
    named = ["--model", str(model), "--data", str(data), "--out", str(tmp_path / "run"), "--balanced", "40"]
    assert script("finetune_classifier")([*named, "--length", "6"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("no text is left to test on · ") and "40 of 40 texts are longer than 6 tokens" in err
    assert json.loads((tmp_path / "run" / "result.json").read_text())["right"] is None
    classifier = str(tmp_path / "run" / "classifier")
    applied = ["--model", str(model), "--apply", classifier, "--length", "6", "--text"]
    assert script("finetune_classifier")([*applied, "win 3 times"]) == 0
    one, err = capsys.readouterr()
    assert "12 tokens, of which the first 6 are read" in err
    assert script("finetune_classifier")([*applied, "win 3"]) == 0
    assert capsys.readouterr().out.split()[:2] == one.split()[:2]


def test_the_data_are_read_before_the_model(tmp_path, capsys):
    assert script("finetune_classifier")(["--model", "none", "--data", "none.tsv", "--out", str(tmp_path / "r")]) == 3
    assert "none.tsv: no such file in " in capsys.readouterr().err
