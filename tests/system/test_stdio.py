"""Terminals in any encoding, pipes in UTF-8, streams that are closed: nothing that is printed ends a program."""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import io
import json
import os
import pty
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama3_scratch import __main__, chat
from llama3_scratch.system import cli, machine, stdio
from llama3_scratch.terminal import word_wrap
from llama3_scratch.text.detokenizer import visible
from tests import house, tiny
from tests.house import PACKAGE
from tests.recipes import SCRIPTS

ENCODINGS = ["ascii", "cp1252", "cp437", "cp932", "koi8-r", "utf-8"]
stdio.prepare()


class Screen(io.TextIOWrapper):
    """A terminal of an encoding."""

    def __init__(self, encoding: str, typed: bytes = b"") -> None:
        super().__init__(io.BytesIO(typed), encoding=encoding, errors="strict")

    def isatty(self) -> bool:
        return True

    def shown(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)


class Pipe(Screen):
    def isatty(self) -> bool:
        return False


@pytest.fixture
def on(monkeypatch):
    """Call a main on streams of a kind and an encoding; its code and what stands on both."""

    def on(kind, encoding, main, *argv, typed=b""):
        out, err = kind(encoding), kind(encoding)
        with monkeypatch.context() as there:
            there.setattr(sys, "stdout", out)
            there.setattr(sys, "stderr", err)
            there.setattr(sys, "stdin", kind(encoding, typed))
            there.setenv("COLUMNS", "120")
            there.setenv("TERM", "dumb")
            code = main([*map(str, argv)])
        return code, out.shown(), err.shown()

    return on


@pytest.mark.parametrize("encoding", [*ENCODINGS, "latin-1", "cp1251", "gbk", "big5", "shift_jis", "cp037"])
@given(st.text() | st.text(st.characters(categories=["Cs", "So", "Po"])))
def test_every_text_can_be_shown_in_every_encoding_and_what_it_has_stays(encoding, text):
    shown = text.encode(encoding, "llama3_scratch.legible").decode(encoding)
    expected = ""
    for character in text:
        try:
            expected += character.encode(encoding).decode(encoding)
        except UnicodeEncodeError:
            near = stdio.NEAREST.get(character)
            expected += near or json.dumps(character)[1:-1]
            assert near is None or near.isascii()
    assert shown == expected


def test_what_a_terminal_lacks_is_legible():
    text = "naïve · 3 × 4 → 12 … “é” ≈ 日😀 ␛ \udcff"
    shown = {encoding: text.encode(encoding, "llama3_scratch.legible").decode(encoding) for encoding in ENCODINGS}
    assert shown["ascii"] == r'na\u00efve - 3 x 4 -> 12 ... "\u00e9" ~ \u65e5\ud83d\ude00 ^[ \udcff'
    assert shown["cp1252"] == r"naïve · 3 × 4 -> 12 … “é” ~ \u65e5\ud83d\ude00 ^[ \udcff"
    assert shown["cp932"] == r"na\u00efve - 3 × 4 → 12 … “\u00e9” ~ 日\ud83d\ude00 ^[ \udcff"
    assert shown["utf-8"] == text.replace("\udcff", r"\udcff")


def test_our_own_words_are_legible_in_ascii():
    for module in house.modules():
        # marks of Chinese, labels in figures, the table itself
        if module in ("data.clean", "documents.pictures", "system.stdio"):
            continue
        nodes = list(ast.walk(house.tree(module)))
        prose = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        said = [node.value for node in nodes if isinstance(node, ast.Constant) and id(node) not in prose]
        for words in said:
            if isinstance(words, str) and re.search("[a-z] [a-z]", words):  # no table of characters
                assert not {c for c in words if not c.isascii()} - stdio.NEAREST.keys(), (module, words)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("kind", [Screen, Pipe])
def test_pipes_are_utf8_and_terminals_keep_their_encoding(kind, encoding, on, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", encoding)

    @cli.verb(lambda: cli.Parser("test", "A test."))
    def main(options):
        print(repr(sys.stdin.read()), sys.stdout.encoding, sys.stderr.encoding)
        return 0

    out, err, wanted = kind(encoding), kind(encoding), "utf-8" if kind is Pipe or encoding == "utf-8" else encoding
    typed = "é" if wanted in ("utf-8", "cp1252", "cp437") else "e"
    monkeypatch.setattr(sys, "stdin", kind(encoding, typed.encode(wanted)))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert main([]) == 0 and out.shown() == f"{typed!r} {wanted} {wanted}\n"


def test_where_a_terminal_is_ascii_what_is_typed_is_utf8(on):
    """As in the C locale; and a byte order mark is no part of what is piped."""

    @cli.verb(lambda: cli.Parser("test", "A test."))
    def main(options):
        print(ascii(sys.stdin.read()))
        return 0

    for kind, typed in ((Screen, "é"), (Pipe, "\ufeffé")):
        assert on(kind, "ascii", main, typed=typed.encode())[1] == "'\\xe9'\n"


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(
    "name", [*__main__.verbs(), *(f"scripts/{path.stem}" for path in sorted(SCRIPTS.glob("*.py")))]
)
def test_help_of_every_verb_and_script(name, encoding, on):
    if "/" in name:
        main = runpy.run_path(str(PACKAGE.parent / f"{name}.py"))["main"]
    else:
        main = importlib.import_module(f"llama3_scratch.{name}").main
    code, out, err = on(Screen, encoding, main, "--help")
    assert (code, err) == (0, "") and out.startswith("usage: python")
    assert "\\u" not in out.replace(r"\u4f60", ""), "our own words are legible everywhere"


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_list_of_verbs(encoding, on):
    code, out, _ = on(Screen, encoding, lambda argv: __main__.main())
    assert code == 0 and "python -m llama3_scratch.generate" in out and "\\u" not in out


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two tiny models whose tokens are bytes, and files to give to the verbs."""
    folder = tmp_path_factory.mktemp("world")
    tiny.folder(folder / "chats")
    tiny.folder(folder / "模型", None)
    (folder / "text.txt").write_text("“naïve” 你好 · 😀 → text, quite a bit of it\n" * 3, encoding="utf-8")
    row = {"query": "Wo ist es naß?", "choices": ["Wüste", "Öl 海"], "gold": 0}
    (folder / "q.jsonl").write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
    chat = {"messages": [{"role": "user", "content": "说 é"}, {"role": "assistant", "content": "é · 😀"}]}
    (folder / "i.jsonl").write_text(json.dumps(chat, ensure_ascii=False), encoding="utf-8")
    return folder


GENERATE = ["generate", "你 é ·", "--model", "模型", "--max-tokens", 6, "--seed", 1]
LOOKS = ["--lens", "--heads", "--attention", "0,1", "--rope-pair", 0]
RUNS = {
    "generate": GENERATE,
    "generate-several": [*GENERATE, "--prompt", "b", "--logprobs", 2],
    "generate-json": [*GENERATE, "--json", "--logprobs", 2],
    "generate-lines": ["generate", "--prompts-file", "text.txt", "--model", "模型", "--max-tokens", 3, "--json"],
    "trace": [*GENERATE, "--trace"],
    "trace-values": [*GENERATE, "--trace-values", "--trace-layers", 1, "--trace-cost"],
    "looks": [*GENERATE, *LOOKS],
    "compare": [*GENERATE, "--trace-compare", "full"],
    "no-weights": ["generate", "--model", "llama3.2-1b", "--no-weights", "--length", 9, "--trace"],
    "describe": ["describe", "模型"],
    "describe-json": ["describe", "模型", "--json"],
    "parity": ["parity", "模型", "--prompt", "é 你 ·"],
    "parity-json": ["parity", "模型", "--prompt", "é 你 ·", "--json"],
    "verify": ["verify", "模型", "--tensors"],
    "convert": ["convert", "模型", "新", "--to", "hf", "--force"],
    "evaluate": [
        "evaluate",
        "模型",
        "--text",
        "text.txt",
        "--choices",
        "q.jsonl",
        "--samples",
        "text.txt",
        "--max-tokens",
        4,
    ],
    "evaluate-two": ["evaluate", "chats", "--text", "text.txt", "--quantize", "int8-row"],
    "evaluate-json": ["evaluate", "chats", "--instructions", "i.jsonl", "--max-tokens", 4, "--json"],
    "error": ["generate", "a", "--model", "没有·é"],
    "debug": ["generate", "a", "--model", "没有·é", "--debug"],
    "unknown": ["generate", "--没有·é"],
}


@pytest.mark.parametrize("run", RUNS)
def test_no_output_of_a_verb_depends_on_the_encoding_but_for_how_it_is_shown(run, world, on, monkeypatch):
    """On a pipe all is UTF-8 whatever the locale says; on a terminal the same text as that shows it; JSON is equal."""
    monkeypatch.chdir(world)
    monkeypatch.setattr(word_wrap, "columns", lambda: 10_000)
    monkeypatch.setattr(machine, "measure", functools.cache(machine.measure))  # about a second
    verb, *argv = RUNS[run]
    main = importlib.import_module(f"llama3_scratch.{verb}").main
    wanted = None
    for kind, encoding in ((Pipe, "utf-8"), (Pipe, "cp1252"), (Screen, "ascii"), (Screen, "cp932")):
        code, out, err = on(kind, encoding, main, *argv)
        assert "UnicodeEncodeError" not in err and ("Traceback" in err) == (run == "debug")
        if wanted is None:
            wanted = code, out
            assert out or run in ("error", "debug", "unknown")
        assert code == wanted[0]
        if "--json" in argv:
            assert [_still(one) for one in _parsed(out)] == [_still(one) for one in _parsed(wanted[1])]
        elif verb == "generate" and "--trace-cost" not in argv:
            seen, shown_in = (wanted[1], "utf-8") if kind is Pipe else (visible(wanted[1]), encoding)
            assert out == seen.encode(shown_in, "llama3_scratch.legible").decode(shown_in)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp932"])
def test_chat_reads_and_answers_in_the_terminals_encoding(encoding, world, on, monkeypatch):
    monkeypatch.chdir(world)
    argv = ["--model", "chats", "--temperature", 0, "--max-tokens", 4]
    said = "你 é".encode("utf-8" if encoding == "ascii" else encoding, "ignore") + b"\n/stats\n/help\n"
    code, out, err = on(Screen, encoding, chat.main, *argv, typed=said)
    assert code == 0 and "Traceback" not in err and "error" not in err and "tokens in the cache" in out, err
    code, out, err = on(Pipe, encoding, chat.main, *argv, typed=("\ufeff你 é\n").encode())
    assert code == 0 and "error" not in err and out


def _parsed(out: str) -> list:
    return [json.loads(out)] if out.startswith("{\n") else [json.loads(line) for line in out.splitlines()]


def _still(value):
    """Without what is measured anew in each run."""
    if isinstance(value, dict):
        return {k: _still(v) for k, v in value.items() if k not in ("timings", "seed", "memory", "free")}
    return [_still(one) for one in value] if isinstance(value, list) else value


def _command(*argv):
    return [sys.executable, "-m", "llama3_scratch.generate", *map(str, argv)]


# What a shell's `>&-` leaves a program with.
CLOSED = "import os, sys; [os.close(int(fd)) for fd in sys.argv[1].split(',')]; os.execv(sys.executable, sys.argv[2:])"


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["0", "1", "2", "0,1,2"])
def test_streams_that_are_closed_take_nothing_and_end_nothing(closed, world, tmp_path):
    page = tmp_path / "trace.jsonl"
    argv = _command("a", "--model", world / "chats", "--max-tokens", 3, "--temperature", 0)
    whole = subprocess.run(argv, capture_output=True, check=True)
    done = subprocess.run(
        [sys.executable, "-c", CLOSED, closed, *argv, "--trace-out", page],
        capture_output=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0 and page.stat().st_size > 1000
    assert done.stdout == (b"" if "1" in closed else whole.stdout)
    assert (done.stderr == b"") == ("2" in closed) and b"Traceback" not in done.stderr
    refused = [*_command("-", "--model", world / "chats")]
    done = subprocess.run(
        [sys.executable, "-c", CLOSED, closed, *refused], capture_output=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 2 and done.stdout == b""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_behind_stdout_is_one_sentence(world):
    argv = _command("a", "--model", world / "chats", "--max-tokens", 3, "--quiet")
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE)
        assert (
            done.returncode == 5
            and done.stderr.startswith(b"error: the disk is full")
            and done.stderr.count(b"\n") == 1
        )
        assert subprocess.run(argv, stderr=full, stdout=subprocess.PIPE).returncode == 0
        assert subprocess.run([*argv, "--nonsense"], stderr=full, stdout=subprocess.PIPE).returncode == 2


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["cp1252", "ascii:strict", "cp932"])
def test_a_real_pipe_is_utf8_and_a_real_terminal_is_not(encoding, world):
    there = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "COLUMNS": "120", "TERM": "dumb"}
    argv = _command("é 你 ·", "--model", world / "模型", "--max-tokens", 6, "--temperature", 0, "--lens", "--quiet")
    piped = subprocess.run(argv, env=there, capture_output=True, check=True).stdout.decode("utf-8")
    assert "── logit lens ──" in piped
    screen, child = pty.openpty()
    process = subprocess.Popen(argv, env=there, stdout=child, stderr=subprocess.PIPE, stdin=child)
    os.close(child)
    shown = b""
    with contextlib.suppress(OSError):  # how Linux ends a terminal
        while part := os.read(screen, 4096):
            shown += part
    assert process.wait() == 0 and process.stderr.read() == b""
    name = encoding.partition(":")[0]
    assert shown.decode(name).replace("\r\n", "\n") == visible(piped).encode(name, "llama3_scratch.legible").decode(
        name
    )


@pytest.mark.slow
def test_in_the_c_locale_words_arrive_as_they_were_typed(world):
    there = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    argv = [*_command("é", "--model", world / "chats", "--system", "“你”", "--stop", "ü", "--max-tokens", 3), "--json"]
    said = json.loads(subprocess.run(argv, env=there, capture_output=True, check=True).stdout.decode())
    assert said["prompt"] == "é"
    assert "system\n“你”".encode() in bytes(token for token in said["prompt_tokens"] if token < 256)


@pytest.mark.slow
def test_names_that_are_no_text_are_refused_or_shown(world, tmp_path):
    strange = os.fsdecode(os.fsencode(tmp_path / "m") + b"\xff")
    shutil.copytree(world / "chats", strange)
    for argv in (["--model", strange], ["--model", world / "chats", "--prompt-cache", f"{strange}.cache"]):
        done = subprocess.run(_command("a", *argv), capture_output=True)
        assert done.returncode == 3 and b"m\\udcff" in done.stderr and b"its name isn't UTF-8" in done.stderr
    done = subprocess.run(_command("a", "--model", f"{strange}/none"), capture_output=True)
    assert done.returncode == 3 and b"Traceback" not in done.stderr


@pytest.mark.slow
def test_f137_a_reader_of_answers_that_has_seen_enough(world):
    argv = _command(
        "--prompts-file", "/dev/stdin", "--model", world / "chats", "--max-tokens", 9, "--batch", 1, "--json"
    )
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdin.write(b"a\n" * 300)
    process.stdin.close()
    assert json.loads(process.stdout.readline())["index"] == 0
    process.stdout.close()
    assert process.wait() == 141 and b"Traceback" not in process.stderr.read()
