"""A byte order mark at the beginning of any file that a person gives is no part of it; UTF-16 and UTF-32 are named."""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import runpy
import threading

import pytest

from llama3_scratch import evaluate
from llama3_scratch.checkpoint.checklist import read_checklist
from llama3_scratch.data.conversations import read_conversations
from llama3_scratch.data.documents import documents, lines, rows
from llama3_scratch.data.labelled import read_labelled
from llama3_scratch.errors import FileError
from llama3_scratch.evaluation.multiple_choice import read_questions
from llama3_scratch.system.files import decode, read_json, read_text, require_file
from llama3_scratch.text.tokenizer_file import read_tokenizer, write_tokenizer
from tests import tiny
from tests.recipes import SCRIPTS


def _script(name, function):
    return lambda path: list(runpy.run_path(str(SCRIPTS / f"{name}.py"))[function](path))


def _on_text(path):
    """What `evaluate --text` says of a file, for a tiny model; bytes and numbers, not its name."""
    model = tiny.folder(path.parent / "model", None) if not (path.parent / "model").exists() else path.parent / "model"
    out = path.parent / "said"
    with out.open("w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        if evaluate.main([str(model), "--text", str(path), "--json", "--window", "20"]):
            raise FileError("refused")
    return {**json.loads(out.read_text(encoding="utf-8"))["text"], "file": None}


MESSAGES = [{"role": "user", "content": "é"}, {"role": "assistant", "content": "è"}]
READERS = {
    "text": (lambda path: read_text(path, "text"), "t.txt", "é\r\ntwo\n"),
    "json": (lambda path: read_json(path, "a thing"), "t.json", '{"é": 1}'),
    "lines": (lambda path: list(lines(path)), "t.txt", "é\ntwo"),
    "rows": (lambda path: list(rows(path)), "t.jsonl", '{"é": 1}\n{"b": 2}'),
    "documents": (lambda path: list(documents([path])), "t.txt", "é\n\ntwo\n"),
    "documents-jsonl": (lambda path: list(documents([path])), "t.jsonl", '{"text": "é"}\n'),
    "conversations": (read_conversations, "t.json", json.dumps([{"messages": MESSAGES}])),
    "conversations-jsonl": (read_conversations, "t.jsonl", json.dumps({"messages": MESSAGES})),
    "labelled": (read_labelled, "t.tsv", "ham\té\nspam\tb\nham\tc"),
    "labelled-jsonl": (read_labelled, "t.jsonl", '{"text": "é", "label": "a"}\n{"text": "é", "label": "b"}'),
    "choices": (
        lambda path: list(read_questions(path)),
        "t.jsonl",
        '{"query": "é", "choices": ["a", "b"], "gold": 0}',
    ),
    "checklist": (read_checklist, "checklist.chk", f"{'0' * 32}  params.json\n"),
    "tinystories": (_script("tinystories", "split"), "t.txt", "Once, é.\nTwice.\n"),
    "evaluate": (_on_text, "t.txt", "A text of é, long enough to be read.\n"),
}


@pytest.mark.parametrize("read, name, text", READERS.values(), ids=READERS)
def test_a_file_reads_the_same_with_a_mark(read, name, text, tmp_path):
    path = tmp_path / name
    path.write_bytes(text.encode())
    wanted = read(path)
    path.write_bytes(text.encode("utf-8-sig"))
    assert read(path) == wanted


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("read, name, text", READERS.values(), ids=READERS)
def test_another_encoding_is_named(read, name, text, encoding, tmp_path, capsys):
    path = tmp_path / name
    mark = getattr(codecs, f"BOM_{encoding.upper().replace('-', '')[:5]}_{encoding[-2:].upper()}")
    path.write_bytes(mark + text.encode(encoding))
    with pytest.raises(FileError) as caught:
        read(path)
    said = str(caught.value) + capsys.readouterr().err
    assert f"text in {encoding[:6].upper()}, expected UTF-8; save it as that" in said and name in said


def test_the_offset_of_a_bad_byte_counts_the_mark(tmp_path):
    (tmp_path / "t.txt").write_bytes(codecs.BOM_UTF8 + b"ab\xffc")
    with pytest.raises(FileError, match="byte 5 isn't UTF-8"):
        read_text(tmp_path / "t.txt", "text")
    with pytest.raises(FileError, match=r"t.txt:1: byte 5 isn't UTF-8"):
        list(lines(tmp_path / "t.txt"))
    (tmp_path / "t.txt").write_bytes(b"ab\n\xff\xfec")
    with pytest.raises(FileError, match=r"t.txt:2: byte 3 isn't UTF-8"):
        list(lines(tmp_path / "t.txt"))
    assert decode(b"\xff\xfe", offset=3, errors="replace") == "��"


def test_a_mark_within_a_text_is_of_the_text(tmp_path):
    (tmp_path / "t.txt").write_text("a\ufeff\n\ufeffb", encoding="utf-8")
    assert read_text(tmp_path / "t.txt", "text") == "a\ufeff\n\ufeffb"
    assert list(lines(tmp_path / "t.txt")) == [(1, "a\ufeff"), (2, "\ufeffb")]


def test_a_tokenizer_that_an_editor_saved(tmp_path):
    write_tokenizer(tiny.tokenizer(), tmp_path)
    path = tmp_path / "tokenizer.model"
    wanted = read_tokenizer(path).ranks
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    assert read_tokenizer(path).ranks == wanted


def test_what_comes_through_a_pipe_is_read_whole(tmp_path):
    """`--text <(command)`: what is looked at in a pipe is gone from it."""
    text = "".join(f"line {number}\n" for number in range(200))
    for read in (lambda path: read_text(path, "text"), lambda path: "".join(f"{line}\n" for _, line in lines(path))):
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        writer = threading.Thread(target=pipe.write_text, args=(text,))
        writer.start()
        assert read(pipe) == text
        writer.join()
        pipe.unlink()


def test_a_web_page_with_a_mark_is_one(tmp_path):
    (tmp_path / "f").write_bytes(codecs.BOM_UTF8 + b"<!DOCTYPE html>")
    with pytest.raises(FileError, match="looks like a web page"):
        require_file(tmp_path / "f", "a thing")
