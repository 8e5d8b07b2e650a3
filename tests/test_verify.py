"""verify: checklist.chk in both digests, what it refuses, and that it answers without torch."""

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llama3_scratch import verify
from llama3_scratch.checkpoint.checklist import read_checklist

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "consolidated.00.pth").write_bytes(bytes(range(256)) * 5000)
    (tmp_path / "params.json").write_text('{"dim": 8}')
    return tmp_path


def checklist(folder, algorithm="md5", prefix=""):
    lines = [
        f"{hashlib.new(algorithm, (folder / name).read_bytes()).hexdigest()}  {prefix}{name}\n"
        for name in ("consolidated.00.pth", "params.json")
    ]
    (folder / "checklist.chk").write_text("".join(lines))


@pytest.mark.parametrize(
    "algorithm, prefix",
    [
        pytest.param("md5", "", id="F147"),
        pytest.param("sha256", "", id="F148"),
        pytest.param("md5", "./", id="F152-dot-slash"),
        pytest.param("md5", "*", id="binary-mark"),
    ],
)
def test_good_list(folder, capsys, algorithm, prefix):
    checklist(folder, algorithm, prefix)
    if prefix == "*":
        text = (folder / "checklist.chk").read_text()
        (folder / "checklist.chk").write_text(text.replace("  *", " *"))
    assert verify.main([str(folder)]) == 0
    assert capsys.readouterr().out == "consolidated.00.pth: OK\nparams.json: OK\n"


@pytest.mark.parametrize(
    "algorithm", [pytest.param("md5", id="F024-F149-md5"), pytest.param("sha256", id="F149-sha256")]
)
def test_one_flipped_byte(folder, capsys, algorithm):
    checklist(folder, algorithm)
    path = folder / "consolidated.00.pth"
    before = hashlib.new(algorithm, path.read_bytes()).hexdigest()
    data = bytearray(path.read_bytes())
    data[700_000] ^= 1
    path.write_bytes(data)
    assert verify.main([str(folder)]) == 4
    after = hashlib.new(algorithm, data).hexdigest()
    assert f"consolidated.00.pth: {algorithm} expected {before}, got {after}" in capsys.readouterr().err


def test_f150_listed_file_missing(folder, capsys):
    checklist(folder)
    (folder / "params.json").unlink()
    assert verify.main([str(folder)]) == 4
    assert "params.json is listed but missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line, said",
    [
        pytest.param("0123 params.json", "expected an MD5 or SHA-256 digest", id="F151-length"),
        pytest.param("z" * 32 + "  params.json", "expected an MD5 or SHA-256 digest", id="F151-not-hex"),
        pytest.param("a" * 32, "expected an MD5 or SHA-256 digest", id="F151-no-name"),
        pytest.param("a" * 32 + "  ../x", "leads out of the folder", id="F152-parent"),
        pytest.param("a" * 32 + "  ./../x", "leads out of the folder", id="F152-dotted-parent"),
        pytest.param("a" * 32 + "  /etc/passwd", "leads out of the folder", id="F152-absolute"),
        pytest.param("a" * 32 + "  C:\\x", "leads out of the folder", id="F152-drive"),
        pytest.param("a" * 32 + "  .//etc/passwd", "leads out of the folder", id="F152-dot-slash-absolute"),
    ],
)
def test_refused_line(folder, capsys, line, said):
    (folder / "checklist.chk").write_text(f"\n{line}\n")
    assert verify.main([str(folder)]) == 3
    error = capsys.readouterr().err
    assert said in error and "checklist.chk:2:" in error


def test_f152_hidden_name_keeps_its_dot(tmp_path):
    (tmp_path / "checklist.chk").write_text("a" * 32 + "  ./.hidden\n")
    assert list(read_checklist(tmp_path / "checklist.chk")) == [".hidden"]


def test_nothing_to_verify(folder, capsys):
    assert verify.main([str(folder)]) == 3
    assert "no checklist.chk to verify against" in capsys.readouterr().err
    (folder / "checklist.chk").write_text("\n\n")
    assert verify.main([str(folder)]) == 3
    assert "lists no file" in capsys.readouterr().err
    assert verify.main([str(folder / "params.json")]) == 3
    assert "expected a folder" in capsys.readouterr().err


@pytest.mark.parametrize("limit", [0, 500_000_000], ids=["beyond load's limit", "within"])
@pytest.mark.parametrize(
    "value, code, said",
    [
        pytest.param(float("nan"), 3, "layers.1.attention.wq.weight: 1 NaN or infinite values, the first at [2, 3]"),
        pytest.param(1e9, 0, "warning: {}: layers.1.attention.wq.weight: root mean square"),
        pytest.param(0.5, 0, ""),
    ],
    ids=["F021", "F022", "good"],
)
def test_tensors(tmp_path, monkeypatch, capsys, limit, value, code, said):
    from llama3_scratch.checkpoint import check, load
    from llama3_scratch.checkpoint.meta import write_meta
    from llama3_scratch.text.tokenizer import PATTERN, Tokenizer

    from . import tiny

    monkeypatch.setattr(check, "SCAN_LIMIT", limit)
    monkeypatch.setattr(load, "SCAN_LIMIT", limit)
    config = replace(tiny.CONFIG, vocab_size=256)
    tokenizer = Tokenizer(
        {bytes([byte]): byte for byte in range(256)},
        pattern=PATTERN,
        special_tokens={},
        bos_id=None,
        eos_id=None,
        stop_tokens=[],
        chat_format=None,
        add_bos=False,
    )
    params = tiny.params(config)
    params["layers.1.attention.wq.weight"][2, 3] = value
    write_meta(tmp_path / "m", params, config, tokenizer)
    assert verify.main([str(tmp_path / "m"), "--tensors"]) == code
    out, err = capsys.readouterr()
    assert err.count(said.format(tmp_path / "m")) == 1 if said else "warning" not in err
    assert (f"{len(params)} tensors: OK" in out) == (code == 0)


def test_verifying_needs_no_torch(folder):
    checklist(folder)
    script = f"""
import sys
from llama3_scratch.verify import main
assert main([{str(folder)!r}]) == 0
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
