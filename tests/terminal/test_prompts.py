"""A file of prompts, and prompts that are no text: what `generate` is asked, and what is refused before a model is."""

from __future__ import annotations

import io
import json
import sys

import pytest

from llama3_scratch import generate
from llama3_scratch.inference import loading, timed
from llama3_scratch.inference.engine.engine import Engine
from llama3_scratch.terminal import batches

TEXTS = ["one", "two, longer", "three", "  four", "fünf 😀", "one"]


@pytest.fixture
def run(capsys):
    def run(*argv):
        code = generate.main([*map(str, argv)])
        return code, *capsys.readouterr()

    return run


def results(run, *argv):
    code, out, err = run(*argv, "--json", "--max-tokens", 6)
    assert code == 0, err
    return [json.loads(line) for line in out.splitlines()]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\ufeff" + "\r\n".join([*TEXTS[:3], "", " \t ", *TEXTS[3:]]), encoding="utf-8")
    return path


@pytest.mark.parametrize("batch", [1, 2, 4, 100])
def test_each_line_is_answered_as_if_alone_in_batches_of_any_size(run, chats, file, batch, monkeypatch):
    most = []
    argv = ["--model", chats, "--temperature", 1, "--seed", 3]
    alone = [results(run, text, *argv)[0] for text in TEXTS]
    step = Engine.step
    monkeypatch.setattr(Engine, "step", lambda self: (step(self), most.append(self.stats.running))[0])
    together = results(run, "--prompts-file", file, *argv, "--batch", batch)
    assert 0 < max(most) <= min(batch, len(TEXTS))
    assert [answer["index"] for answer in together] == list(range(len(TEXTS)))
    assert [answer["prompt"] for answer in together] == TEXTS
    for one, other in zip(alone, together, strict=True):
        assert all(one[key] == other[key] for key in ("prompt_tokens", "tokens", "text", "finish_reason"))


def test_json_lines_hold_texts_and_chats(run, chats, tmp_path):
    chat = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "ho"},
        {"role": "user", "content": "a\nb"},
    ]
    own = [{"role": "system", "content": "own"}, {"role": "user", "content": "hi"}]
    rows = [{"prompt": "two\nlines", "id": 7}, {"messages": chat}, {"messages": own}]
    (tmp_path / "p.jsonl").write_text("\ufeff" + "\n\n".join(map(json.dumps, rows)), encoding="utf-8")
    first, second, third = results(run, "--prompts-file", tmp_path / "p.jsonl", "--model", chats, "--system", "be kind")
    assert first["prompt"] == "two\nlines" and second["messages"] == chat and "prompt" not in second
    assert (
        first["prompt_tokens"]
        == results(run, "two\nlines", "--model", chats, "--system", "be kind")[0]["prompt_tokens"]
    )
    said = bytes(token for token in second["prompt_tokens"] if token < 256).decode()
    assert said == "system\nbe kind\nuser\nhi\nassistant\nho\nuser\na\nb\nassistant\n"
    assert b"be kind" not in bytes(token for token in third["prompt_tokens"] if token < 256)


def test_answers_come_as_they_are_done(run, chats, file, capsys, monkeypatch):
    """Whoever reads the pipe has the first answers while the later ones aren't begun."""
    printed, step = [], Engine.step

    def watched(self):
        printed.append([json.loads(line)["index"] for line in capsys.readouterr().out.splitlines()])
        return step(self)

    monkeypatch.setattr(Engine, "step", watched)
    left = run("--prompts-file", file, "--model", chats, "--batch", 2, "--json", "--max-tokens", 3)[1]
    printed.append([json.loads(line)["index"] for line in left.splitlines()])
    assert [answers for answers in printed if answers] == [[0, 1], [2, 3], [4, 5]]


def test_text_has_a_heading_for_each_prompt_across_batches(run, chats, file):
    out = run("--prompts-file", file, "--model", chats, "--batch", 2, "--max-tokens", 3)[1]
    assert [line for line in out.splitlines() if line.startswith("== ")] == [f"== {i} ==" for i in range(1, 7)]


def test_ctrl_c_keeps_what_was_answered(run, chats, file, monkeypatch):
    real, counted = Engine.step, []

    def interrupted(self):
        counted.append(self)
        if len(counted) == 7:
            raise KeyboardInterrupt
        return real(self)

    monkeypatch.setattr(Engine, "step", interrupted)
    code, out, _ = run("--prompts-file", file, "--model", chats, "--batch", 2, "--json", "--max-tokens", 4)
    reasons = [json.loads(line)["finish_reason"] for line in out.splitlines()]
    assert code == 130 and reasons == ["length", "length", "interrupted", "interrupted"]


def test_lines_of_stdin(run, completes, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\ufeffone\n\nzwö\n".encode())))
    answers = results(run, "--prompts-file", "-", "--model", completes)
    assert [answer["prompt"] for answer in answers] == ["one", "zwö"]


BAD = {
    "empty": (b"\n \n", 3, "p.jsonl: holds no prompt, expected one on each line"),
    "json": (b'{"prompt": "a"}\n\n{"prompt": }', 3, "p.jsonl:3:12: not valid JSON"),
    "field": (b'{"text": "a"}', 3, 'p.jsonl:1: expected a text under "prompt", or a list of messages'),
    "number": (b'{"prompt": 3}', 3, "p.jsonl:1: expected a text"),
    "both": (b'{"prompt": "a", "messages": []}', 3, "p.jsonl:1: expected a text"),
    "no-messages": (b'{"messages": []}', 3, "p.jsonl:1: expected a text"),
    "no-role": (b'{"messages": [{"content": "a"}]}', 3, "p.jsonl:1: expected a text"),
    "bytes": (b'{"prompt": "a"}\n{"prompt": "\xff"}', 3, "p.jsonl:2: byte 28 isn't UTF-8"),
    "utf-16": ('{"prompt": "a"}'.encode("utf-16"), 3, "p.jsonl:1: text in UTF-16, expected UTF-8"),
    "empty-prompt": (b'{"prompt": "a"}\n{"prompt": ""}', 2, "p.jsonl:2 is empty; say something, or take --raw"),
    "too-long": (b'{"prompt": "a"}\n{"prompt": "%s"}' % (b"x" * 80), 2, "p.jsonl:2: 99 tokens, limit 49"),
    "role": (b'{"prompt": "a"}\n{"messages": [{"role": "wizard", "content": "a"}]}', 2, "p.jsonl:2: "),
}


@pytest.mark.parametrize("data, code, message", BAD.values(), ids=BAD)
def test_a_bad_line_is_named_before_any_prompt_is_answered(run, chats, tmp_path, data, code, message, monkeypatch):
    monkeypatch.setattr(timed, "timed_stream", lambda *args, **kwargs: pytest.fail("something was generated"))
    (tmp_path / "p.jsonl").write_bytes(data)
    found = run("--prompts-file", tmp_path / "p.jsonl", "--model", chats, "--max-seq-len", 50)
    assert found[:2] == (code, "") and message in found[2] and "Traceback" not in found[2]


OPTIONS = {
    "cache": (["--prompt-cache", "x"], "--prompt-cache: takes one prompt, got 6"),
    "sliding": (["--sliding", "9"], "--sliding: takes one prompt, got 6"),
    "speculate": (["--speculate", "lookup"], "--speculate goes with one prompt"),
    "compare": (["--trace-compare", "full"], "--trace-compare takes one prompt"),
    "batch": (["--trace", "--batch", "2"], "--batch: a trace takes one prompt after the other"),
    "no-such": (["--prompts-file", "no/such/file"], "no/such/file: no such file in"),
}


@pytest.mark.parametrize("argv, message", OPTIONS.values(), ids=OPTIONS)
def test_options_that_a_file_of_prompts_cannot_have(run, chats, file, argv, message):
    code, out, err = run("--prompts-file", file, "--model", chats, *argv)
    assert code in (2, 3) and out == "" and message in err and "Traceback" not in err


def test_messages_want_a_model_that_chats(run, completes, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}]}')
    code, _, err = run("--prompts-file", tmp_path / "p.jsonl", "--model", completes)
    assert code == 2 and "p.jsonl:1: messages go with a chat" in err


def test_f106_an_empty_prompt_is_refused_before_a_model_is_loaded(run, chats, completes, tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "open_model", lambda *args, **kwargs: pytest.fail("a model was loaded"))
    (tmp_path / "empty").touch()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    for argv, source in (
        ([""], "the prompt"),
        (["", "--model", chats], "the prompt"),
        (["", "--model", completes, "--chat-format", "chatml"], "the prompt"),
        (["a", "--prompt", "", "--model", chats], "prompt 2"),
        (["--prompt-file", tmp_path / "empty", "--model", chats], f"--prompt-file {tmp_path / 'empty'}"),
        (["-", "--model", chats], "stdin"),
    ):
        code, out, err = run(*argv)
        assert (code, out) == (2, "")
        assert err.endswith(
            f"error: {source} is empty; say something, or take --raw to let the model begin by itself\n"
        )
    monkeypatch.setattr(batches, "open_model", loading.open_model)
    assert results(run, "", "--model", completes)[0]["prompt_tokens"] == [256]
    assert results(run, " ", "--model", chats)[0]["prompt"] == " "


def test_a_byte_order_mark_is_no_part_of_a_prompt(run, completes, tmp_path, monkeypatch):
    (tmp_path / "p.txt").write_text("\ufeffhi\ufeff", encoding="utf-8")
    wanted = [256, *"hi\ufeff".encode()]
    assert results(run, "--prompt-file", tmp_path / "p.txt", "--model", completes)[0]["prompt_tokens"] == wanted
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((tmp_path / "p.txt").read_bytes())))
    assert results(run, "-", "--model", completes)[0]["prompt_tokens"] == wanted
    typed = results(run, "\ufeffhi", "--model", completes)[0]["prompt_tokens"]
    assert typed == [256, *"\ufeffhi".encode()], "what is typed is meant"
    for encoding in ("utf-16", "utf-32"):
        (tmp_path / "p.txt").write_bytes("hi".encode(encoding))
        for argv in (["--errors", "replace"], []):
            code, _, err = run("--prompt-file", tmp_path / "p.txt", "--model", completes, *argv)
            assert code == 2 and f"text in {encoding.upper()}, expected UTF-8; save it as that\n" in err
