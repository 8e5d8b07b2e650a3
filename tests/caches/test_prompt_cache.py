"""The cache on disk: what it gives back, and every file that it refuses."""

from __future__ import annotations

import os
import stat
import zlib
from dataclasses import replace
from functools import partial

import pytest
import torch

from llama3_scratch.cache import Cache, Slots
from llama3_scratch.caches import prompt_cache
from llama3_scratch.caches.prompt_cache import common_prefix
from llama3_scratch.caches.quantized import Bf16Slots, Int4Slots, Int8Slots
from llama3_scratch.config import RopeScaling
from llama3_scratch.errors import FileError, ResourceError
from llama3_scratch.model import forward
from tests import tiny

CONFIG, F32 = tiny.CONFIG, torch.float32
IDS = tiny.tokens(1, 30)[0].tolist()
KEY = "layers.0.attention.keys.values"
FORMS = {
    "f32": (Slots, Slots),
    "bf16": (Bf16Slots, Bf16Slots),
    "int8 and int4": (Int8Slots, Int4Slots),
    "int8 in groups of 4": (partial(Int8Slots, group=4), Int8Slots),
}


def cache_of(form="f32", limit=64) -> Cache:
    keys, values = FORMS[form]
    return Cache(limit, keys=keys, values=values)


def run(ids, cache) -> torch.Tensor:
    return forward(torch.tensor([ids]), tiny.params(), CONFIG, cache=cache)


@pytest.fixture
def file(tmp_path):
    """Make a file: the first 20 tokens, in a form."""

    def made(form="f32"):
        cache = cache_of(form)
        run(IDS[:20], cache)
        prompt_cache.save(path := tmp_path / "prompt.cache", cache, IDS, tiny.params(), CONFIG, F32)
        return path

    return made


def load(path, cache=None, params=None, config=CONFIG, dtype=F32):
    return prompt_cache.load(path, cache or cache_of(), params or tiny.params(), config, dtype)


@pytest.mark.parametrize("form", FORMS)
def test_what_was_seen_comes_back_to_the_last_bit(file, form):
    path, whole, loaded = file(form), cache_of(form), cache_of(form, limit=40)
    run(IDS[:20], whole)
    assert load(path, loaded) == IDS[:20]
    assert loaded.length == 20
    for name, layer in whole.layers.items():
        for a, b in zip(layer, loaded.layers[name], strict=True):
            for attribute, tensor in a.tensors().items():
                assert torch.equal(tensor[:, :20], b.tensors()[attribute][:, :20])
    assert torch.equal(run(IDS[20:], whole), run(IDS[20:], loaded))
    used = whole.n_bytes * 20 // 64  # 64 slots are there, 20 are written
    assert used < path.stat().st_size < used + 12_000


def test_a_file_is_as_readable_as_others_and_replaced_as_a_whole(file):
    path = file()
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    assert [entry.name for entry in path.parent.iterdir()] == ["prompt.cache"]


def test_a_failing_write_leaves_the_old_file(file, monkeypatch):
    path = file()
    before = path.read_bytes()

    def full(temporary, tensors, metadata):
        temporary.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prompt_cache, "write_safetensors", full)
    cache = cache_of()
    run(IDS, cache)
    with pytest.raises(ResourceError, match="No space left on device; nothing was changed"):
        prompt_cache.save(path, cache, IDS, tiny.params(), CONFIG, F32)
    assert path.read_bytes() == before and len(list(path.parent.iterdir())) == 1


OTHERS = {
    "weights": ({"params": tiny.params(seed=1)}, r"made with other weights; delete it"),
    "rope": (
        {"config": replace(CONFIG, rope_theta=1e4)},
        r"made with rope_theta 500000\.0, this run has 10000\.0; delete it, or take another file$",
    ),
    "rope scaling": ({"config": replace(CONFIG, rope_scaling=RopeScaling(8.0))}, r"made with rope_scaling \{"),
    "sizes": ({"config": replace(CONFIG, n_heads=12)}, r"made with n_heads 6, this run has 12"),
    "dtype": ({"dtype": torch.bfloat16}, r"made with dtype float32, this run has bfloat16"),
    "form": ({"cache": cache_of("int8 and int4")}, r"made with keys float32, this run has int8 in groups of 8"),
}


@pytest.mark.parametrize("others, message", OTHERS.values(), ids=OTHERS)
def test_f221_another_model_rope_dtype_or_form_is_refused(file, others, message):
    path = file()
    with pytest.raises(FileError, match=message) as raised:
        load(path, **others)
    assert str(raised.value).startswith(f"{path}: ")


def test_f221_one_changed_weight_is_other_weights(file):
    path, params = file(), tiny.params()
    load(path, config=replace(CONFIG, max_seq_len=99))  # how much of the context is used makes no difference
    params["layers.2.attention.wq.weight"][0, 0] += 1e-3
    with pytest.raises(FileError, match="made with other weights"):
        load(path, params=params)


def test_f222_groups_and_a_smaller_context_are_named(file):
    with pytest.raises(FileError, match=r"keys int8 in groups of 8, this run has int8 in groups of 4"):
        load(file("int8 and int4"), cache_of("int8 in groups of 4"))
    with pytest.raises(FileError, match=r"holds 20 tokens, the context is 19; raise `max_seq_len`$"):
        load(file(), cache_of(limit=19))


def damaged(data: bytes) -> dict[str, bytes]:
    return {
        "cut": data[: len(data) // 2],
        "one byte": data[:-1],
        "header": data[:5],
        "noise": bytes(range(256)) * 40,
        "a flipped bit": data[:-100] + bytes([data[-100] ^ 4]) + data[-99:],
        "a longer header": b"\xff" * 8 + data[8:],
    }


@pytest.mark.parametrize("kind", damaged(b"x" * 200))
def test_f222_a_damaged_file_is_one_sentence(file, kind):
    path = file("int8 and int4")
    path.write_bytes(damaged(path.read_bytes())[kind])
    with pytest.raises(FileError, match=r"damaged, .*; delete it$"):
        load(path, cache_of("int8 and int4"))


def test_f222_what_is_no_prompt_cache(file, tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(FileError, match="a safetensors file, but no prompt cache"):
        load(tmp_path / "model.safetensors")
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(FileError, match="empty file, expected a prompt cache"):
        load(tmp_path / "empty")
    with pytest.raises(FileError, match="expected a file"):
        load(tmp_path)


@pytest.mark.parametrize("a, b, n", [([], [1], 0), ([1, 2], [1, 2, 3], 2), ([1, 2, 3], [1, 5, 3], 1), ([4], [5], 0)])
def test_common_prefix(a, b, n):
    assert common_prefix(a, b) == n == common_prefix(b, a)


@pytest.mark.parametrize(
    "change, said",
    [
        ("gone", rf"{KEY}: expected float32 \[1, 20, .*got none"),
        ("cut", rf"{KEY}: expected float32 \[1, 20, .*got float32 \[1, 19"),
        ("another dtype", rf"{KEY}: expected float32 \[1, 20, .*got float64"),
        ("more", r"layers\.9\.attention\.keys\.values is no part of a cache of this model; delete it"),
        ("a token beyond", r"holds tokens from \d+ to 67, the vocabulary has 67; delete it"),
        ("a token below", r"holds tokens from -1 to \d+, the vocabulary has 67; delete it"),
        ("tokens of another dtype", r"expected the tokens as a row of int64, got float32 \[20\]"),
        ("tokens as a table", r"expected the tokens as a row of int64, got int64 \[20, 1\]"),
        ("fewer tokens", rf"{KEY}: expected float32 \[1, 19, .*got float32 \[1, 20"),
    ],
)
def test_f222_a_whole_file_of_other_tensors_is_refused(file, change, said):
    """Its checksum is right, so nothing is damaged: whoever wrote it wrote something else."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    path, key = file(), KEY
    with safe_open(path, framework="pt") as stored:
        metadata, tensors = stored.metadata(), {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    changes = {
        "gone": lambda: {},
        "cut": lambda: {key: tensors[key][:, 1:].contiguous()},
        "another dtype": lambda: {key: tensors[key].double()},
        "more": lambda: {"layers.9.attention.keys.values": tensors[key].clone()},
        "a token beyond": lambda: {"tokens": tensors["tokens"].clamp(min=0).index_fill(0, torch.tensor([3]), 67)},
        "a token below": lambda: {"tokens": tensors["tokens"].index_fill(0, torch.tensor([3]), -1)},
        "tokens of another dtype": lambda: {"tokens": tensors["tokens"].float()},
        "tokens as a table": lambda: {"tokens": tensors["tokens"][:, None]},
        "fewer tokens": lambda: {"tokens": tensors["tokens"][1:].clone()},
    }
    tensors |= changes[change]()
    if change == "gone":
        del tensors[key]
    total = 0
    for name in sorted(tensors):
        total = zlib.crc32(tensors[name].numpy().tobytes(), zlib.crc32(name.encode(), total))
    save_file(tensors, path, metadata | {"crc32": str(total)})
    with pytest.raises(FileError, match=said) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")
