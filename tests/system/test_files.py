"""What every door checks first, and what every writer keeps whole."""

import errno
import json
from pathlib import Path

import pytest

from llama3_scratch.errors import FileError, ResourceError, UsageError
from llama3_scratch.system.files import read_json, require_file
from llama3_scratch.system.json_fields import float_field, int_field, text_field
from llama3_scratch.system.writing import fresh_folder, write_whole


def refused(call, *said):
    with pytest.raises(FileError) as caught:
        call()
    for part in said:
        assert part in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    "data, said",
    [
        (b"", "empty file, expected a thing; download it again"),
        (
            b"version https://git-lfs.github.com/spec/v1\nsize 12\n",
            "git-lfs pointer to 12 bytes, expected a thing; run",
        ),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer to ? bytes"),
        (b"  <!DOCTYPE HTML>", "looks like a web page, expected a thing; the download failed, do it again"),
        (b"<HTML><body>", "looks like a web page"),
        (b"<?xml version", "looks like a web page"),
    ],
)
def test_not_the_file(tmp_path, data, said):
    (tmp_path / "f").write_bytes(data)
    refused(lambda: require_file(tmp_path / "f", "a thing"), str(tmp_path / "f"), said)


def test_no_file(tmp_path):
    (tmp_path / "f").write_text("ok")
    require_file(tmp_path / "f", "a thing")
    refused(lambda: require_file(tmp_path / "g", "a thing"), f"{tmp_path / 'g'}: a thing not found")
    refused(lambda: require_file(tmp_path, "a thing"), f"{tmp_path}: expected a file (a thing), found a folder")
    refused(lambda: require_file(tmp_path / "f" / "g", "a thing"), "a thing can't be read: Not a directory")


def test_json_comes_back(tmp_path):
    value = {"a": 1, "b": 2.5, "c": "ü", "d": None, "e": [True, {"f": -1e-300}], "g": 10**30}
    (tmp_path / "f").write_text(json.dumps(value))
    assert read_json(tmp_path / "f", "a thing") == value


def test_a_key_twice_within_is_told_too(tmp_path, caplog):
    (tmp_path / "f").write_text('{"a": {"b": 1, "b": 2}}')
    assert read_json(tmp_path / "f", "a thing") == {"a": {"b": 2}}
    assert f"{tmp_path / 'f'}: key 'b' stands twice, the last one counts" in caplog.text


def test_fields(tmp_path):
    data = {"n": 3, "x": 2, "s": "t", "null": None, "most": 2**32 - 1, "past": 2**32, "long": "9" * 1000}
    assert (
        int_field(data, "n", tmp_path),
        int_field(data, "none", tmp_path, 7),
        int_field(data, "null", tmp_path, 7),
    ) == (3, 7, 7)
    assert int_field(data, "most", tmp_path) == 2**32 - 1
    assert float_field(data, "x", tmp_path) == 2.0 and float_field(data, "null", tmp_path, None) is None
    assert text_field(data, "s", tmp_path) == "t" and text_field(data, "null", tmp_path, "u") == "u"
    refused(lambda: int_field(data, "null", tmp_path), f"{tmp_path}: null is missing, expected a whole number")
    refused(lambda: float_field(data, "none", tmp_path), f"{tmp_path}: none is missing, expected a number")
    refused(
        lambda: int_field(data, "past", tmp_path), "past must be a whole number from 1 to 4294967295, got 4294967296"
    )
    refused(lambda: float_field(data, "s", tmp_path), "s must be a positive number, got 't'")
    refused(lambda: text_field(data, "n", tmp_path), "n must be a text, got 3")
    with pytest.raises(FileError) as caught:
        int_field(data, "long", tmp_path)
    assert len(str(caught.value)) < 250 + len(str(tmp_path))


def test_write_whole(tmp_path):
    write_whole(tmp_path / "f", "ü")
    write_whole(tmp_path / "f", b"\x01")
    assert (tmp_path / "f").read_bytes() == b"\x01"
    (tmp_path / "d").mkdir()
    with pytest.raises(OSError):
        write_whole(tmp_path / "d", "a file where a folder is")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "f"]


def test_a_fresh_folder_takes_the_place_of_an_older_model(tmp_path):
    target = tmp_path / "deep" / "model"
    for version in ("one.pth", "two.pth"):
        with fresh_folder(target) as temporary:
            (temporary / "params.json").write_text(version)
            (temporary / version).touch()
            assert not (target / version).exists()
        assert sorted(path.name for path in target.iterdir()) == sorted(["params.json", version])
    assert list(target.parent.iterdir()) == [target]


def test_a_link_keeps_pointing_where_it_did(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with fresh_folder(tmp_path / "link") as temporary:
        (temporary / "params.json").touch()
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "params.json").exists()


@pytest.mark.parametrize(
    "name, beside",
    [("diary", []), ("diary.json", []), ("diary", ["params.json", "tokenizer.model"]), ("src", ["config.json"])],
)
def test_other_files_are_never_replaced(tmp_path, name, beside):
    for each in (name, *beside):
        (tmp_path / each).write_text("dear")
    with pytest.raises(UsageError, match=f"holds {name}, which no checkpoint has"), fresh_folder(tmp_path):
        pytest.fail("the body ran")
    with pytest.raises(UsageError, match="expected a folder to write, found a file"), fresh_folder(tmp_path / name):
        pytest.fail("the body ran")
    assert {path.name for path in tmp_path.iterdir()} == {name, *beside}


@pytest.mark.parametrize(
    "error, kind, said",
    [
        (OSError(errno.ENOSPC, "No space left on device"), ResourceError, "can't be written: No space left on device"),
        (
            OSError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0\nframe #0"),
            ResourceError,
            r"can't be written: the disk took no more \(unexpected pos 64 vs 0\); nothing was changed$",
        ),
        (OSError(errno.EACCES, "Permission denied"), FileError, "can't be written: Permission denied"),
        (ValueError("ours"), ValueError, "ours"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
def test_f142_a_failure_keeps_what_was_there(tmp_path, error, kind, said):
    target = tmp_path / "model"
    with fresh_folder(target) as temporary:
        (temporary / "params.json").write_text("old")
    with pytest.raises(kind, match=said), fresh_folder(target) as temporary:
        (temporary / "params.json").write_text("new")
        raise error
    assert (target / "params.json").read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_f142_a_failure_while_the_folders_change_places(tmp_path, monkeypatch):
    target, replace = tmp_path / "model", Path.replace
    with fresh_folder(target) as temporary:
        (temporary / "params.json").write_text("old")

    def stumble(path, other):
        if ".tmp-" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(path, other)

    monkeypatch.setattr(Path, "replace", stumble)
    with pytest.raises(ResourceError, match="nothing was changed"), fresh_folder(target) as temporary:
        (temporary / "params.json").write_text("new")
    assert (target / "params.json").read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_f143_nowhere_to_write(tmp_path):
    (tmp_path / "file").touch()
    said = r"file/model: can't be written: (Not a directory|File exists); nothing was changed"
    with pytest.raises(FileError, match=said), fresh_folder(tmp_path / "file" / "model"):
        pytest.fail("the body ran")
