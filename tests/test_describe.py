"""describe and the memory plan: every layout, from headers alone."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llama3_scratch import describe as verb
from llama3_scratch.cache import Cache
from llama3_scratch.checkpoint import gguf, gguf_out, meta
from llama3_scratch.checkpoint.description import describe
from llama3_scratch.checkpoint.hf_out import write_hf
from llama3_scratch.checkpoint.meta import write_meta
from llama3_scratch.config import OFFICIAL, RopeScaling, expected
from llama3_scratch.errors import ResourceError
from llama3_scratch.inference import factories, stream
from llama3_scratch.inference.choices import CacheChoice
from llama3_scratch.inference.fast_forward import FastForward
from llama3_scratch.inference.requests import Request
from llama3_scratch.inference.sample import sampler
from llama3_scratch.native import kernels
from llama3_scratch.params.quantize import quantize
from llama3_scratch.system import memory
from llama3_scratch.system.memory import MemoryPlan, format_bytes, memory_plan, require_memory

from . import tiny

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def no_weights(monkeypatch, tmp_path):
    monkeypatch.setenv("LLAMA3_SCRATCH_WEIGHTS", str(tmp_path / "none"))


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_names_need_no_weights(name, capsys):
    assert verb.main([name, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    config = OFFICIAL[name]
    assert found["n_parameters"] == config.n_parameters
    assert found["stored_bytes"] == {"bfloat16": 2 * config.n_parameters}
    assert found["config"]["max_seq_len"] == config.max_seq_len == found["memory_bytes"]["context"]
    assert (found["memory_bytes"]["mapped"] == 0) == ("70b" in name or "405b" in name)
    wanted = f"scaled by {config.rope_scaling.factor:g}: " if config.rope_scaling else "not scaled"
    assert wanted in found["rope"]


def test_official_name_imports_no_torch():
    script = """
import sys
from llama3_scratch.describe import main
assert main(["meta-llama/Llama-3.1-405B-Instruct"]) == 0
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "405,853,388,800" in done.stdout and "812 GB" in done.stdout and "scaled by 8" in done.stdout


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("tied", [False, True])
def test_meta(tmp_path, shards, tied):
    config = replace(tiny.CONFIG, tied=tied, vocab_size=68, max_seq_len=131072, rope_scaling=RopeScaling(8.0))
    write_meta(tmp_path / "m", tiny.params(config, dtype=torch.bfloat16), config, None, shards=shards)
    found = describe(tmp_path / "m")
    assert found.config == config
    assert found.tokenizer is None
    n_bytes = sum(found.stored.values())
    assert list(found.stored) == ["bfloat16"]
    norms = 2 * config.dim * (2 * config.n_layers + 1)  # each shard has them
    assert n_bytes == 2 * config.n_parameters + (shards - 1) * norms
    assert (found.mapped, found.weights) == ((n_bytes, 0) if shards == 1 else (0, n_bytes))
    assert "scaled by 8: Llama 3.1's own" in found.rope


def test_a_damaged_weight_isnt_noticed_since_none_is_read(tmp_path):
    write_meta(tmp_path / "m", tiny.params(), tiny.CONFIG, None)
    path = tmp_path / "m/consolidated.00.pth"
    stored = tiny.params()["layers.3.feed_forward.w1.weight"].numpy().tobytes()
    data = path.read_bytes()
    assert stored in data
    path.write_bytes(data.replace(stored, b"\xff" * len(stored)))
    assert describe(tmp_path / "m").config == tiny.CONFIG


def test_hf(tmp_path, caplog):
    config = replace(tiny.CONFIG, tied=True)
    write_hf(tmp_path / "m", tiny.params(config, dtype=torch.bfloat16), config, None)
    found = describe(tmp_path / "m")
    assert found.config == config and found.tokenizer is None
    assert "tokenizer.json" in caplog.text
    assert found.stored == {"bfloat16": 2 * config.n_parameters}
    q_and_k = config.n_layers * (config.n_heads + config.n_kv_heads) * config.head_dim * config.dim
    assert (found.mapped, found.weights) == (2 * (config.n_parameters - q_and_k), 2 * q_and_k)
    assert found.rope == "theta 500000, scaled by 32: config.json"


def test_gguf(tmp_path):
    pytest.importorskip("gguf", reason="the gguf package, an extra, writes the file")
    config = replace(tiny.CONFIG, dim=96, hidden_dim=64, head_dim=16, rope_scaling=RopeScaling(8.0))
    gguf_out.write_gguf(tmp_path / "m.gguf", tiny.params(config), config, None, kind="Q8_0")
    found = describe(tmp_path / "m.gguf")
    assert found.config == config and found.tokenizer is None
    matrices = sum(math.prod(shape) for shape in expected(config).values() if len(shape) == 2)
    assert found.stored["Q8_0"] == matrices // 32 * 34
    assert found.forms["Q8_0"] == (matrices, matrices // 32 * 34)
    # Stored as they are where there are kernels for them, but for embedding and head, whose 67 rows aren't in 16s.
    odd = 2 * config.vocab_size * config.dim
    assert found.weights == ((matrices - odd) // 32 * 34 + 4 * odd if kernels.chosen() else 4 * matrices)
    assert found.mapped == found.stored["F32"]
    assert "scaled by 8: the file's rope_freqs" in found.rope


@pytest.mark.parametrize(("form", "bits"), [("int8", 8.5), ("int4", 5.0), ("int4-sym", 4.5), ("nf4", 4.25)])
def test_forms_and_their_bits(tmp_path, capsys, form, bits):
    config = replace(tiny.TILED, tied=True)
    write_meta(tmp_path / "m", quantize(tiny.params(config), form), config, None)
    found = describe(tmp_path / "m")
    embedding, norms = config.vocab_size * config.dim, config.dim * (2 * config.n_layers + 1)
    layers = config.n_parameters - embedding - norms
    if form == "int8":
        layers += embedding
    assert found.config == config
    assert found.forms[form] == (layers, layers * bits / 8)
    assert found.forms["float32"] == (norms, 4 * norms)
    assert found.mapped == sum(found.stored.values()) == sum(n_bytes for _, n_bytes in found.forms.values())
    assert verb.main([str(tmp_path / "m"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["forms"][form]["bits_per_weight"] == bits
    assert verb.main([str(tmp_path / "m")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"stored as {form} " in said and f"({bits:.3g} bits a weight)" in said


def test_kernels_or_a_plain_message(tmp_path, capsys, monkeypatch):
    write_meta(tmp_path / "m", tiny.params(), tiny.CONFIG, None)
    torchs = "only in plain C, which is slower than torch: everything runs in torch"
    missing = "not built: no C compiler was found when the package was installed; everything runs in torch, slower"
    for chosen, built, words in (("AVX2", True, "kernels AVX2"), (None, True, torchs), (None, False, missing)):
        monkeypatch.setattr(kernels, "chosen", lambda chosen=chosen: chosen)
        monkeypatch.setattr(kernels, "library", lambda built=built: built or None)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        assert verb.main([str(tmp_path / "m")]) == 0
        assert words in " ".join(capsys.readouterr().out.split())


def test_llama2c_and_the_table(capsys):
    path = tiny.data("stories260k/stories260K.bin")
    assert verb.main([str(path), "--context", "100", "--batch", "3"]) == 0
    out = capsys.readouterr().out
    for words in ("llama2.c", "float32", "theta 10000, not scaled", "5, each 64 wide", "for 100 tokens, 3 prompts"):
        assert words in out, words
    assert str(path) in out.replace("\n", "").replace(" ", "")  # folded, not cut


def test_usage(capsys):
    assert verb.main(["llama3-8b", "--context", "9000"]) == 2
    assert "--context 9000: the model was made for at most 8192 tokens" in capsys.readouterr().err
    assert verb.main(["no-such-name"]) == 3
    assert verb.main(["../no-such"]) == 2


# Memory


def test_f140_more_than_is_free():
    config = OFFICIAL["llama3.1-8b"]
    wanted = memory_plan(config, context=131072, batch=2, mapped=16_060_522_496)
    assert wanted.cache == 2 * 131072 * 131_072 * 2  # twice the bytes of bf16, for 2 prompts
    with pytest.raises(ResourceError) as raised:
        require_memory(wanted, 24_000_000_000)
    said = str(raised.value)
    for words in ("GB of memory (KV cache 68.7 GB", "activations", "24 GB are free", "lower `max_seq_len`"):
        assert words in said, said
    with pytest.raises(ResourceError, match=r"weights 141 GB.*take a smaller model"):
        require_memory(memory_plan(OFFICIAL["llama3-70b"], context=100, weights=141_107_412_992), 24_000_000_000)


def test_f140_shards_are_refused_before_they_are_merged(tmp_path, monkeypatch):
    config = replace(tiny.CONFIG, vocab_size=68)
    write_meta(tmp_path / "m", tiny.params(config), config, None, shards=2)
    monkeypatch.setattr(meta, "available_memory", lambda: 100_000)
    with pytest.raises(ResourceError, match=r"needs \d+ kB of memory \(weights \d+ kB\), 100 kB are free"):
        meta.read_meta(tmp_path / "m")


def test_f140_blocks_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    pytest.importorskip("gguf", reason="the gguf package, an extra, writes the file")
    config = replace(tiny.CONFIG, dim=96, hidden_dim=64, head_dim=16)
    gguf_out.write_gguf(tmp_path / "m.gguf", tiny.params(config), config, None, kind="Q8_0")
    monkeypatch.setattr(gguf, "available_memory", lambda: 100_000)
    with pytest.raises(ResourceError, match=r"needs 912 kB of memory \(weights .*\), 100 kB are free"):
        gguf.read_gguf(tmp_path / "m.gguf")


def test_f140_the_loop_refuses_before_it_fills_a_cache(monkeypatch):
    message = r"KV cache {} MB, activations .* lower `max_seq_len` or `max_tokens`"
    for module in (stream, factories):
        monkeypatch.setattr(module, "available_memory", lambda: 1_000_000)
    model = FastForward(tiny.params(), tiny.CONFIG)
    with pytest.raises(ResourceError, match=message.format(r"2\.56")):
        next(stream.stream(Request([1, 2], sampler(), 4000), model, Cache(4096)))
    with pytest.raises(ResourceError, match=message.format(r"7\.68")):
        factories.make_pool(CacheChoice(), model, [4002] * 9, rows=3)


def test_f140_mapped_weights_dont_count():
    config = OFFICIAL["llama3-8b"]
    require_memory(memory_plan(config, context=512, mapped=16_060_522_496), 8_000_000_000)
    with pytest.raises(ResourceError):
        require_memory(memory_plan(config, context=512, weights=16_060_522_496), 8_000_000_000)
    require_memory(MemoryPlan(0, 10**15, 0, 0), None)  # a system that doesn't say


def test_the_plan_takes_the_loop_s_chunk():
    config = OFFICIAL["llama3-8b"]
    assert memory_plan(config, context=4096) == memory_plan(config, context=4096, chunk=stream.CHUNK)


def test_available(monkeypatch):
    files = {"/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:  5000 kB\n"}

    def read_text(path):
        if str(path) not in files:
            raise FileNotFoundError(path)
        return files[str(path)]

    monkeypatch.setattr(memory, "Path", lambda path: SimplePath(path, read_text))
    assert memory.available_memory() == 5_120_000
    group = "/sys/fs/cgroup/memory"
    files |= {f"{group}.max": "max\n", f"{group}.current": "1000\n", f"{group}.stat": "anon 700\nfile 300\n"}
    assert memory.available_memory() == 5_120_000
    files[f"{group}.max"] = "3000\n"
    assert memory.available_memory() == 2300
    files.clear()
    monkeypatch.setattr(memory.os, "sysconf", {"SC_PHYS_PAGES": 100, "SC_PAGE_SIZE": 4096}.get)
    assert memory.available_memory() == 409600


class SimplePath:
    """A path whose text comes from a function."""

    def __init__(self, path, read):
        self.path, self.read = path, read

    def __truediv__(self, name):
        return SimplePath(f"{self.path}/{name}", self.read)

    def __str__(self):
        return self.path

    def read_text(self, encoding):
        return self.read(self)


@pytest.mark.parametrize(
    "n_bytes, text",
    [(0, "nothing"), (999, "999 bytes"), (1000, "1 kB"), (540_000_000, "540 MB"), (2_471_628_800, "2.47 GB"),
     (811_706_777_600, "812 GB"), (1_500_000_000_000, "1.5 TB"), (999_700_000, "1000 MB")],
)  # fmt: skip
def test_size(n_bytes, text):
    assert format_bytes(n_bytes) == text
