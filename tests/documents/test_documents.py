"""Documents out of files: where they begin and end, and what a file that can't be read is told."""

from __future__ import annotations

import json

import pytest

from llama3_scratch.data.documents import documents
from llama3_scratch.errors import FileError


def read(tmp_path, data: bytes | str, name: str = "a.txt", **options) -> list[str]:
    path = tmp_path / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return list(documents([path], **options))


def test_plain_text_is_cut_at_its_separator(tmp_path):
    text = "one\nstill one\n\n\n  \ntwo\r\nstill two\r\n\r\n三\n"
    assert read(tmp_path, text) == ["one\nstill one", "two\nstill two", "三"]
    text = "one\n\nstill one\n<|end|>\n<|end|>\ntwo"
    assert read(tmp_path, text, cut="<|end|>") == ["one\n\nstill one", "two"]
    assert read(tmp_path, text, cut="file") == [text]
    assert read(tmp_path, text, cut="line") == ["one", "still one", "<|end|>", "<|end|>", "two"]
    assert read(tmp_path, b"\xef\xbb\xbfone") == ["one"]


def test_f227_json_lines(tmp_path):
    rows = [{"text": "one"}, {"text": " "}, {"text": "zwei\n\ndrei", "more": 1}]
    data = "\n\n".join(map(json.dumps, rows)) + "\n"
    assert read(tmp_path, data, "a.jsonl") == ["one", "zwei\n\ndrei"]
    assert read(tmp_path, '{"story": "x"}', "a.jsonl", field="story") == ["x"]


def test_a_json_file_is_a_list_or_lines(tmp_path):
    rows = [{"text": "one"}, {"text": " "}, {"text": "zwei\n\ndrei", "more": 1}]
    for data in (json.dumps(rows), "\ufeff\n" + json.dumps(rows, indent=1), "\n".join(map(json.dumps, rows))):
        assert read(tmp_path, data, "a.json") == ["one", "zwei\n\ndrei"]


def test_several_files_are_one_row(tmp_path):
    (tmp_path / "b.txt").write_text("two")
    (tmp_path / "a.jsonl").write_text('{"text": "one"}')
    assert list(documents([tmp_path / "a.jsonl", tmp_path / "b.txt"])) == ["one", "two"]


@pytest.mark.parametrize(
    ("data", "name", "said"),
    [
        pytest.param("", "a.txt", r"a\.txt: empty file, expected text in UTF-8", id="F224"),
        pytest.param('{"text": "a"}\n{"text: 1}\n', "a.jsonl", r"a\.jsonl:2:2: not valid JSON", id="F225"),
        pytest.param("[" * 100_000, "a.jsonl", r"a\.jsonl:1: not valid JSON", id="F225 nested"),
        pytest.param(
            "[1]", "a.jsonl", r"a\.jsonl:1: expected a JSON object on each line, got list", id="F225 no object"
        ),
        pytest.param(
            '{"text": "a"}\n\n{"b": 1}', "a.jsonl", r"a\.jsonl:3: expected a text under 'text', got None", id="F226"
        ),
        pytest.param('{"text": 5}', "a.jsonl", r"a\.jsonl:1: expected a text under 'text', got 5", id="F226 number"),
        pytest.param('{"a": "", "text": 5}', "a.jsonl", r"got 5; `field` names another of 'a'$", id="F226 others"),
        pytest.param('{"text": 5}', "a.jsonl", r"got 5; no field of this row is one$", id="F226 no others"),
        pytest.param('[{"text": "a"}, {}]', "a.json", r"a\.json: row 2: expected a text under", id="F226 list"),
        pytest.param("[" * 100_000, "a.json", r"a\.json: not valid JSON", id="F225 nested list"),
        pytest.param('[{"text": "\\ud800"}]', "a.json", r"a\.json: row 1: .* is half a character", id="half in list"),
        pytest.param(b"good\nb\xffd", "a.txt", r"a\.txt:2: byte 6 isn't UTF-8", id="F228"),
    ],
)
def test_files_that_cant_be_read(tmp_path, data, name, said):
    with pytest.raises(FileError, match=said):
        read(tmp_path, data, name)


def test_f229_a_line_of_ten_megabytes(tmp_path):
    long = "x" * 10_000_000
    assert read(tmp_path, json.dumps({"text": long}), "a.jsonl") == [long]


def test_documents_are_read_one_by_one(tmp_path):
    """What is broken later is met later: nothing reads ahead."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "first"}\n{"text": "second"}\nnot JSON\n')
    reading = documents([path])
    assert [next(reading), next(reading)] == ["first", "second"]
    with pytest.raises(FileError):
        next(reading)
