"""What each script's --help says to type can be typed; at toy size, with training's page, it is run as it's printed."""

from __future__ import annotations

import importlib
import io
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from storyteller.stories import stories

from llama3_scratch.checkpoint.load import load
from llama3_scratch.model import forward
from llama3_scratch.params.quantize import dequantize, quantize
from tests import tiny
from tests.house import PACKAGE, blocks
from tests.recipes import SCRIPTS, script

NAMES = sorted(path.stem for path in SCRIPTS.glob("*.py"))
LEARNING = [
    *("tinystories", "write_stories", "train_tokenizer", "prepare_data", "pretrain", "search_pretraining"),
    *("story_requests", "ask_for_stories", "tell_stories", "finetune_lora", "finetune_classifier"),
    *("bench_bpe", "bench_training", "bench_finetune"),
]
# What makes a command small; the last of an option counts.
SHAPE = "--dim 32 --layers 1 --heads 4 --kv-heads 2 --length 32 --batch 2"
SMALL = {
    "write_stories": "--count 60",
    "train_tokenizer": "--size 300",
    "pretrain": f"{SHAPE} --steps 2",
    "search_pretraining": "--steps 2 --most 1 --try dim=32 --try heads=4 --try kv-heads=2 "
    "--try length=32 --try batch=2",
    "story_requests": "--count 6",
    "finetune_lora": "--steps 1 --length 64 --batch 2 --rows 12",
    "ask_for_stories": "--count 2 --max-tokens 3",
    "tell_stories": "--count 1",
    "finetune_classifier": "--train head --length 16 --balanced 64 --limit 32",
    "bench_training": f"{SHAPE} --vocab 300 --repeats 1",
    "bench_finetune": "--steps 1 --batch 1",
    "generate": "--max-tokens 3",
    "chat": "--max-tokens 3",
    "evaluate": "--max-tokens 3 --limit 3 --tokens 100",
}


def examples(name: str) -> list[str]:
    return re.findall(r"^    (python .+)$", (SCRIPTS / f"{name}.py").read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", NAMES)
def test_help_shows_examples_that_can_be_typed(name, capsys):
    assert script(name)(["--help"]) == 0
    shown = capsys.readouterr().out
    assert examples(name) and all(f"    {line}\n" in shown for line in examples(name))
    for line in examples(name):
        _, *typed = shlex.split(line)
        if typed[0] == "-m":
            importlib.import_module(typed[1]).make_parser().parse_args(typed[2:])
        else:
            runpy.run_path(str(PACKAGE.parent / typed[0]))["make_parser"]().parse_args(typed[1:])


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder with the files that the examples name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").symlink_to(PACKAGE.parent / "weights")
    tales = list(stories(7, 120))
    (tmp_path / "train_cased.txt").write_text("\n".join(tales[:80]))
    (tmp_path / "train_lowercase.txt").write_text("\n".join(map(str.lower, tales)))
    (tmp_path / "tests").symlink_to(PACKAGE.parent / "tests")
    return tmp_path


def run(line: str, monkeypatch) -> None:
    _, *typed = shlex.split(line, comments=True)
    if typed[0] == "-m":
        name = typed[1].rpartition(".")[2]
        main, argv = importlib.import_module(typed[1]).main, typed[2:]
    else:
        name = Path(typed[0]).stem
        main, argv = script(name), typed[1:]
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\n"))
    assert main([*argv, *shlex.split(SMALL.get(name, ""))]) == 0, line


@pytest.mark.parametrize("name", NAMES)
def test_the_default_model_is_fetched_in_one_place(name):
    """A model's name is opened by `inference.loading`, which fetches the default one: no script does that by itself."""
    assert "checkpoint.fetch" not in (SCRIPTS / f"{name}.py").read_text()


def test_quality_is_what_its_two_figures_say(tmp_path, capsys):
    """Perplexity and KL of two windows, beside torch's own."""
    model = tiny.folder(tmp_path / "model", "llama3")
    (tmp_path / "text.txt").write_text("".join(stories(7, 20)))
    line = [str(tmp_path / "text.txt"), "--model", str(model), "--tokens", "1024", "--forms", "int8-row"]
    assert script("quality")(line) == 0
    whole, form = (row.split("|") for row in capsys.readouterr().out.splitlines()[2:])
    checkpoint = load(model)
    ids = checkpoint.tokenizer.encode((tmp_path / "text.txt").read_text(), bos=False, eos=False)[:1024]
    tokens_BT = torch.tensor(ids).view(2, 512)
    rounded = dequantize(quantize(checkpoint.params, "int8-row"), torch.float32)
    seen = [forward(tokens_BT, params, checkpoint.config)[:, :-1] for params in (checkpoint.params, rounded)]
    for row, logits_BTV in zip((whole, form), seen, strict=True):
        loss = F.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT[:, 1:].flatten())
        assert float(row[3]) == pytest.approx(loss.exp().item(), rel=1e-4)
    wanted, ours = (logits_BTV.flatten(0, 1).double().log_softmax(-1) for logits_BTV in seen)
    kl = F.kl_div(ours, wanted, reduction="batchmean", log_target=True).item()
    assert kl > 0 and float(form[4]) == pytest.approx(kl, rel=1e-2)


@pytest.mark.slow
def test_the_examples_of_all_that_learns_run_as_printed(here, monkeypatch, smollm2):
    pytest.importorskip("peft")
    done: list[str] = []
    for name in LEARNING:
        for line in examples(name):
            if line not in done and not (Path("data/stories").exists() and " --out data/stories" in line):
                if name == "tell_stories":
                    Path("stories.jsonl").rename("made.jsonl")
                run(line, monkeypatch)
                done.append(line)
    assert len(done) >= 17 and Path("runs/mine/adapter").exists() and Path("runs/spam/classifier").exists()


@pytest.mark.parametrize("document", ["llama3_scratch/training/README.md", "llama3_scratch/training/README.zh.md"])
def test_whatever_the_recipes_read_is_there_or_was_made_before(document):
    (recipes,) = (block for block in blocks(document, "sh") if "scripts/write_stories.py" in block)
    made: list[str] = []
    for line in recipes.splitlines():
        words = shlex.split(line, comments=True)
        for word in words[2:] if words[1] != "-m" else words[3:]:
            if re.fullmatch(r"[\w-]+(/[\w.-]+)+|[\w-]+\.[a-z]+", word):
                there = any(word == one or word.startswith(f"{one}/") for one in made)
                assert there or (PACKAGE.parent / word).exists() or words[words.index(word) - 1] == "--out", line
        made += [words[i + 1] for i, word in enumerate(words) if word == "--out"]
    assert len(made) == 7


@pytest.mark.slow
@pytest.mark.parametrize("document", ["llama3_scratch/training/README.md", "llama3_scratch/training/README.zh.md"])
def test_the_pages_recipes_run_as_printed(document, here, monkeypatch, smollm2):
    (recipes,) = (block for block in blocks(document, "sh") if "scripts/write_stories.py" in block)
    lines = [line for line in recipes.splitlines() if "--judge" not in line]  # nobody sits behind that address here
    for line in lines:
        run(line, monkeypatch)
    assert len(lines) >= 11
