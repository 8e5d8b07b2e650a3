"""llama2.c's flat files: what is read, and every way the header can lie."""

import time
from dataclasses import replace

import pytest

from llama3_scratch.checkpoint.check import check
from llama3_scratch.checkpoint.llama2c import read_llama2c
from llama3_scratch.checkpoint.load import load
from llama3_scratch.config import Config, expected
from llama3_scratch.errors import FileError
from tests import tiny
from tests.llama2c_writer import CONFIG, SIZES, write


@pytest.mark.parametrize("tied", [True, False])
def test_every_tensor_comes_back(tmp_path, tied):
    config = replace(CONFIG, tied=tied)
    wanted = tiny.params(config)
    path = write(tmp_path / "m.bin", wanted, config)
    found, params = read_llama2c(path)
    assert found == config
    check(params, found, path)
    assert all(params[name].equal(wanted[name]) for name in expected(config))
    assert (params["output.weight"] is params["tok_embeddings.weight"]) == tied
    loaded = load(path)
    assert loaded.config == config and loaded.tokenizer is None


def test_stories260k():
    config, params = read_llama2c(tiny.data("stories260k/stories260K.bin"))
    assert config == Config(64, 5, 8, 4, 512, 172, rope_theta=10_000.0, max_seq_len=512, tied=True)
    assert config.n_parameters == 260_032
    check(params, config, "stories260K.bin")


@pytest.mark.parametrize(
    "sizes, said",
    [
        pytest.param((0, *SIZES[1:]), "not a llama2.c header: dim must be a whole number", id="zero"),
        pytest.param((-24, *SIZES[1:]), "not a llama2.c header: dim must be", id="negative"),
        pytest.param((*SIZES[:5], 0, 16), "not a llama2.c header: vocab_size must be", id="no-vocabulary"),
        pytest.param((24, 20, 2, 5, 2, 31, 16), "not a llama2.c header: n_heads must divide dim", id="heads"),
        pytest.param((0x616B3432, 1, 24, 20, 2, 6, 2), "not a llama2.c header", id="version-1"),
        pytest.param((*SIZES[:6], 17), "its header means 27564 bytes, found 27548; truncated, or not", id="context"),
        pytest.param((2**31 - 2, 2**31 - 1, 2**31 - 1, 1, 1, 2**31 - 1, 2**31 - 1), "found 27548", id="overflow"),
    ],
)
def test_bad_header(tmp_path, sizes, said):
    path = write(tmp_path / "m.bin", tiny.params(CONFIG), CONFIG, header=sizes)
    start = time.perf_counter()
    with pytest.raises(FileError, match=said) as caught:
        read_llama2c(path)
    assert time.perf_counter() - start < 1
    assert str(path) in str(caught.value) and caught.value.exit_code == 3


@pytest.mark.parametrize(
    "size, said",
    [
        pytest.param(0, "empty file", id="F004"),
        pytest.param(20, "truncated: a llama2.c header has 28 bytes, found 20", id="header"),
        pytest.param(8000, "its header means 27548 bytes, found 8000; truncated", id="F005"),
        pytest.param(27547, "its header means 27548 bytes, found 27547", id="F006"),
    ],
)
def test_truncated(tmp_path, size, said):
    path = write(tmp_path / "m.bin", tiny.params(CONFIG), CONFIG)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(FileError, match=said):
        load(path)


def test_trailing_bytes_and_folders(tmp_path):
    path = write(tmp_path / "m.bin", tiny.params(CONFIG), CONFIG, tail=b"0")
    with pytest.raises(FileError, match="its header means 27548 bytes, found 27549"):
        load(path)
    with pytest.raises(FileError, match=r"expected a file \(a llama2.c .bin file\), found a folder"):
        read_llama2c(tmp_path)
