"""gs:// and az:// folders through blobfile, which is replaced here by a dictionary."""

import io
from types import SimpleNamespace

import blobfile
import pytest

from llama3_scratch.checkpoint.names import resolve
from llama3_scratch.errors import FileError, MismatchError, ResourceError, UsageError

FILES = {
    "consolidated.00.pth": b"shard 0",
    "consolidated.01.pth": b"shard 1",
    "params.json": b"{}",
    "tokenizer.model": b"ranks",
    "README.md": b"not needed",
}


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """A remote folder's files by name; `bucket.opened` lists what was read from it."""
    monkeypatch.setenv("LLAMA3_SCRATCH_WEIGHTS", str(tmp_path))
    remote = SimpleNamespace(files=dict(FILES), mtime=1.0, version="v1", opened=[])

    def scandir(url):
        if not remote.files:
            raise FileNotFoundError(url)
        for name, data in remote.files.items():
            stat = SimpleNamespace(size=len(data), mtime=remote.mtime, version=remote.version)
            yield SimpleNamespace(name=name, path=f"{url}/{name}", is_file=True, stat=stat)

    def open_blob(path, mode, streaming):
        name = path.rpartition("/")[2]
        remote.opened.append(name)
        return io.BytesIO(remote.files[name])

    monkeypatch.setattr(blobfile, "scandir", scandir)
    monkeypatch.setattr(blobfile, "BlobFile", open_blob)
    return remote


def local(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.mark.parametrize("url", ["gs://bucket/llama", "az://account/container/llama"])
def test_fetches_metas_files_once(bucket, url):
    folder = resolve(url)
    assert local(folder) == {name: data for name, data in FILES.items() if name != "README.md"}
    assert len(bucket.opened) == 4
    assert resolve(url + "/") == folder and len(bucket.opened) == 4


@pytest.mark.parametrize("change", ["size", "mtime", "version", "lost locally"])
def test_a_changed_file_is_fetched_anew(bucket, change):
    folder = resolve("gs://bucket/llama")
    bucket.opened.clear()
    if change == "size":
        bucket.files["params.json"] = b'{"dim": 8}'
    elif change == "lost locally":
        (folder / "params.json").unlink()
    else:
        setattr(bucket, change, "v2" if change == "version" else 2.0)
    resolve("gs://bucket/llama")
    assert (folder / "params.json").read_bytes() == bucket.files["params.json"]
    assert bucket.opened == (
        ["params.json"] if change in ("size", "lost locally") else [n for n in FILES if n[0] != "R"]
    )


def test_a_shard_that_is_gone_there_goes_here(bucket):
    folder = resolve("gs://bucket/llama")
    del bucket.files["consolidated.01.pth"]
    resolve("gs://bucket/llama")
    assert "consolidated.01.pth" not in local(folder)


def test_a_remote_folder_within_another_keeps_its_copy(bucket):
    inner = resolve("gs://bucket/llama/original")
    resolve("gs://bucket/llama")
    assert (inner / "params.json").exists()


def test_f143_a_cache_that_cannot_be_written(bucket, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LLAMA3_SCRATCH_WEIGHTS", str(tmp_path / "file"))
    with pytest.raises(FileError, match=r"file/\.remote/gs/bucket/llama: can't be written"):
        resolve("gs://bucket/llama")


def test_f146_an_interrupted_copy_leaves_the_good_file(bucket, monkeypatch):
    folder = resolve("gs://bucket/llama")
    bucket.files["params.json"] = b"longer than before"
    monkeypatch.setattr(blobfile, "BlobFile", lambda path, mode, streaming: io.BytesIO(b"longer"))
    with pytest.raises(MismatchError, match=r"params\.json: expected 18 bytes, got 6"):
        resolve("gs://bucket/llama")
    assert local(folder)["params.json"] == b"{}"
    assert not list(folder.glob(".*.tmp-*"))


def test_incomplete_remote_folder(bucket):
    del bucket.files["params.json"], bucket.files["consolidated.00.pth"], bucket.files["consolidated.01.pth"]
    with pytest.raises(FileError, match=r"gs://bucket/llama: consolidated\.\*\.pth, params\.json not found"):
        resolve("gs://bucket/llama")


def test_missing_remote_folder_and_failing_login(bucket, monkeypatch):
    bucket.files.clear()
    with pytest.raises(FileError, match="gs://bucket/llama: no such remote folder"):
        resolve("gs://bucket/llama")

    def refuse(url):
        raise blobfile.Error("no credentials\nlong help")

    monkeypatch.setattr(blobfile, "scandir", refuse)
    with pytest.raises(FileError, match="can't be read: no credentials; check the path and your login"):
        resolve("gs://bucket/llama")


def test_f142_not_enough_disk(bucket, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=3))
    with pytest.raises(ResourceError, match="GB of disk"):
        resolve("gs://bucket/llama")
    assert bucket.opened == []


@pytest.mark.parametrize("url", ["gs://", "gs://bucket/../../x", "az://a/b\\c", "gs://b/x:y"], ids=lambda _: "F139")
def test_urls_that_lead_elsewhere(bucket, url):
    with pytest.raises(UsageError, match="expected gs://bucket/folder"):
        resolve(url)
