"""The GGUF door: every way a file can be wrong, block formats bit for bit, and what llama.cpp makes of our files."""

from __future__ import annotations

import logging
import struct
import sys
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llama3_scratch.checkpoint.ggml_blocks import BLOCK_FORMATS, dequantize
from llama3_scratch.checkpoint.gguf import gguf_name, read_gguf
from llama3_scratch.checkpoint.gguf_header import read_header
from llama3_scratch.checkpoint.gguf_out import write_gguf
from llama3_scratch.checkpoint.gguf_rope import scaling_divisors
from llama3_scratch.checkpoint.llama2c import read_llama2c
from llama3_scratch.config import Config, RopeScaling, expected
from llama3_scratch.errors import FileError, ResourceError, UsageError
from llama3_scratch.model import forward, rope_frequencies
from llama3_scratch.params.quantize import quantize
from llama3_scratch.stored import Params, stored
from llama3_scratch.text.tokenizer import Tokenizer
from tests import tiny
from tests.checkpoint.llama_cpp import greedy, llama_cpp
from tests.reference import smollm2_gguf

CONFIG = Config(
    dim=64, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=40, hidden_dim=96, rope_theta=10_000.0, max_seq_len=128
)
U8, U32, I32, F32, TEXT, ARRAY = 0, 4, 5, 6, 8, 9
HUGE = 2**63


# A writer of our own, small and obedient: it writes nonsense just as well.
def text(string: str | bytes) -> bytes:
    raw = string if isinstance(string, bytes) else string.encode()
    return struct.pack("<Q", len(raw)) + raw


def value(key: str | bytes, kind: int, payload: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + payload


def u32(key: str, number: int) -> bytes:
    return value(key, U32, struct.pack("<I", number))


def f32(key: str, number: float) -> bytes:
    return value(key, F32, struct.pack("<f", number))


def string(key: str, words: str) -> bytes:
    return value(key, TEXT, text(words))


def array(key: str, kind: int, n: int, payload: bytes) -> bytes:
    return value(key, ARRAY, struct.pack("<IQ", kind, n) + payload)


def row(name: str, dims: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def metadata(config: Config = CONFIG) -> dict[str, bytes]:
    return {
        "general.architecture": string("general.architecture", "llama"),
        "llama.embedding_length": u32("llama.embedding_length", config.dim),
        "llama.block_count": u32("llama.block_count", config.n_layers),
        "llama.attention.head_count": u32("llama.attention.head_count", config.n_heads),
        "llama.attention.head_count_kv": u32("llama.attention.head_count_kv", config.n_kv_heads),
        "llama.feed_forward_length": u32("llama.feed_forward_length", config.hidden_dim),
        "llama.context_length": u32("llama.context_length", config.max_seq_len),
        "llama.rope.freq_base": f32("llama.rope.freq_base", config.rope_theta),
        "eps": f32("llama.attention.layer_norm_rms_epsilon", config.norm_eps),
    }


def weights(config: Config = CONFIG) -> dict[str, np.ndarray]:
    """Seeded f32 weights under GGUF's names; matrices have a spread of 0.1."""
    rng = np.random.default_rng(7)
    arrays = {gguf_name(name): rng.normal(size=shape) * 0.1 for name, shape in expected(config).items()}
    return {name: (values + (values.ndim == 1)).astype("<f4") for name, values in arrays.items()}


class Rows(dict):  # type: ignore[type-arg]
    """name → (dims, type, offset, data) of the tensor table; tests change entries before `file` writes them."""


def table(arrays: dict[str, np.ndarray]) -> Rows:
    rows, offset = Rows(), 0
    for name, values in arrays.items():
        rows[name] = (values.shape[::-1], 0, offset, values.tobytes())
        offset += -(-values.nbytes // 32) * 32
    return rows


def file(
    values: dict[str, bytes] | None = None,
    rows: Rows | None = None,
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_values: int | None = None,
    n_tensors: int | None = None,
    extra_row: bytes = b"",
) -> bytes:
    values = metadata() if values is None else values
    rows = table(weights()) if rows is None else rows
    counts = (len(rows) if n_tensors is None else n_tensors, len(values) if n_values is None else n_values)
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join(values.values())
    head += b"".join(row(name, *fields[:3]) for name, fields in rows.items()) + extra_row
    data = b"".join(data.ljust(-(-len(data) // 32) * 32, b"\0") for _, _, _, data in rows.values())
    return head.ljust(-(-len(head) // 32) * 32, b"\0") + data


def with_value(key: str, entry: bytes) -> bytes:
    return file(metadata() | {key: entry})


def with_row(name: str, **changes: object) -> bytes:
    rows = table(weights())
    fields = dict(zip(("dims", "kind", "offset", "data"), rows[name], strict=True)) | changes
    rows[name] = tuple(fields.values())
    return file(rows=rows)


def without(*names: str) -> bytes:
    return file(rows=table({name: values for name, values in weights().items() if name not in names}))


WQ, NORM = "blk.1.attn_q.weight", "output_norm.weight"
LETTERS = [chr(ord("a") + i) for i in range(26)] + ["Ġ", "Ċ", "th", "the", "Ġa"]  # 31 of 40 rows
WORDS = [*LETTERS, "<s>", "</s>", "<|im_start|>", "<|im_end|>", *(f"[PAD{i}]" for i in range(35, 40))]
KINDS = [1] * 31 + [3] * 4 + [5] * 5
TEMPLATE = "{{ '<|im_start|>' }}"


def strings(key: str, words: list[str]) -> bytes:
    return array(key, TEXT, len(words), b"".join(map(text, words)))


def vocabulary() -> dict[str, bytes]:
    return {
        "model": string("tokenizer.ggml.model", "gpt2"),
        "pre": string("tokenizer.ggml.pre", "gpt-2"),
        "tokens": strings("tokenizer.ggml.tokens", WORDS),
        "types": array("tokenizer.ggml.token_type", I32, 40, struct.pack("<40i", *KINDS)),
        "merges": strings("tokenizer.ggml.merges", ["t h", "th e", "Ġ a"]),
        "bos": u32("tokenizer.ggml.bos_token_id", 31),
        "eos": u32("tokenizer.ggml.eos_token_id", 32),
        "template": string("tokenizer.chat_template", TEMPLATE),
    }


def with_vocabulary(**changes: bytes) -> bytes:
    return file(metadata() | vocabulary() | changes)


FAULTS = [
    ("F049", lambda: file(magic=b"GGML"), ["header at byte 0", "expected the letters GGUF", "b'GGML'"]),
    ("F050-1", lambda: file(version=1), ["header at byte 4", "GGUF version 1, expected 2 or 3"]),
    ("F050-99", lambda: file(version=99), ["header at byte 4", "GGUF version 99, expected 2 or 3"]),
    ("F051", lambda: file(version=3 << 24), ["big-endian", "expected little-endian"]),
    ("F052-magic", lambda: file()[:6], ["header at byte 4", "takes 4 bytes, 2 are left"]),
    ("F052-values", lambda: file()[:200], ["cut short or damaged"]),
    ("F052-table", lambda: file()[:900], ["tensor ", " at byte ", "cut short or damaged"]),
    ("F053", lambda: file()[:-40], ["output.weight", "cut short or damaged, download it again"]),
    ("F054", lambda: file(n_values=HUGE), ["at byte 16", f"{HUGE} metadata keys can't be", "bytes left"]),
    ("F055", lambda: file(n_tensors=HUGE), ["at byte 8", f"{HUGE} tensors can't be", "bytes left"]),
    (
        "F056-key",
        lambda: with_value("x", struct.pack("<Q", HUGE)),
        ["metadata key 9 at byte", f"{HUGE} bytes of text can't be"],
    ),
    (
        "F056-value",
        lambda: with_value("x", value("a.b", TEXT, struct.pack("<Q", 10**6))),
        ["metadata 'a.b' at byte", "1000000 bytes of text can't be"],
    ),
    (
        "F057-strings",
        lambda: with_value("x", array("tokenizer.ggml.tokens", TEXT, HUGE, b"")),
        ["'tokenizer.ggml.tokens' at byte", f"{HUGE} strings in an array can't be"],
    ),
    (
        "F057-numbers",
        lambda: with_value("x", array("a.b", F32, HUGE, b"")),
        ["'a.b' at byte", f"{HUGE} numbers in an array can't be"],
    ),
    ("F058", lambda: with_value("x", array("a.b", ARRAY, 1, b"")), ["'a.b' at byte", "an array in an array"]),
    ("F059", lambda: with_value("x", value("a.b", 13, b"")), ["'a.b' at byte", "value type 13"]),
    ("F059-array", lambda: with_value("x", array("a.b", 77, 0, b"")), ["'a.b' at byte", "an array of value type 77"]),
    ("F060", lambda: with_value("x", value(b"a\xff", U8, b"\0")), ["metadata key 9 at byte", "isn't UTF-8"]),
    ("F061", lambda: with_value("x", u32("llama.block_count", 2)), ["'llama.block_count' at byte", "stands twice"]),
    (
        "F062",
        lambda: file(n_tensors=22, extra_row=row(WQ, (64, 64), 0, 0)),
        [f"tensor '{WQ}' at byte", "stands twice"],
    ),
    (
        "F063",
        lambda: with_row(WQ, kind=11),
        [f"tensor '{WQ}' at byte", "type Q3_K can't be read", "F32, F16, BF16, Q4_0", "Q6_K"],
    ),
    ("F063-unknown", lambda: with_row(WQ, kind=999), [f"tensor '{WQ}' at byte", "type number 999 can't be read"]),
    *(
        (
            f"F064-{alignment}",
            lambda alignment=alignment: with_value("x", u32("general.alignment", alignment)),
            ["general.alignment must be a power of two", f"got {alignment}"],
        )
        for alignment in (0, 3, 2**31)
    ),
    (
        "F065-product",
        lambda: with_row(WQ, dims=(2**32, 2**32)),
        [f"tensor '{WQ}' at byte", f"takes {2**66} bytes", "cut short or damaged"],
    ),
    ("F065-dims", lambda: with_row(WQ, dims=(4, 4, 4, 4, 4)), [f"tensor '{WQ}' at byte", "5 dimensions"]),
    ("F065-zero", lambda: with_row(WQ, dims=(64, 0)), [f"tensor '{WQ}' at byte", "shape (0, 64)"]),
    ("F065-block", lambda: with_row(NORM, dims=(40,), kind=8), [f"tensor '{NORM}'", "a multiple of 32"]),
    ("F066", lambda: with_row(WQ, offset=2**40), [f"tensor '{WQ}' lies at bytes 1099511", "the file has"]),
    ("F066-64", lambda: with_row(WQ, offset=2**64 - 32), [f"tensor '{WQ}' lies at bytes", "the file has"]),
    ("F066-odd", lambda: with_row(WQ, offset=4), [f"tensor '{WQ}'", "offset 4 isn't a multiple of the alignment 32"]),
    ("F066-overlap", lambda: with_row(WQ, offset=0), [f"'{WQ}'", "overlaps 'token_embd.weight'"]),
    (
        "F067",
        lambda: with_value("general.architecture", string("general.architecture", "qwen2")),
        ["general.architecture is 'qwen2', expected 'llama'"],
    ),
    (
        "F067-number",
        lambda: with_value("general.architecture", u32("general.architecture", 1)),
        ["general.architecture must be a text, got 1"],
    ),
    (
        "F068",
        lambda: with_value("llama.block_count", u32("llama.block_count", 3)),
        ["llama.block_count is 3", "tensors of 2 blocks"],
    ),
    (
        "F068-many",
        lambda: with_value("llama.block_count", u32("llama.block_count", 2**32 - 1)),
        ["llama.block_count is 4294967295", "tensors of 2 blocks"],
    ),
    (
        "F068-last",
        lambda: file(
            metadata() | {"llama.block_count": u32("llama.block_count", 10**6)},
            table(weights() | {"blk.999999.attn_norm.weight": np.zeros(64, "<f4")}),
        ),
        ["llama.block_count is 1000000", "tensors of 3 blocks"],
    ),
    ("missing", lambda: without(WQ, NORM), [f"{WQ}, {NORM} are missing; expected "]),
    ("embedding", lambda: without("token_embd.weight"), ["token_embd.weight is missing"]),
    (
        "extra",
        lambda: file(rows=table(weights() | {"blk.0.attn_q.bias": np.zeros(64, "<f4")})),
        ["blk.0.attn_q.bias is not part of a Llama of this config"],
    ),
    (
        "experts",
        lambda: file(rows=table(weights() | {"blk.0.ffn_gate_inp.weight": np.zeros((8, 64), "<f4")})),
        ["mixture of experts"],
    ),
    ("shape", lambda: with_row(WQ, dims=(64, 32)), [f"'{WQ}' has shape (32, 64)", "want (64, 64)"]),
    ("no-heads", lambda: with_value("llama.attention.head_count", u32("x", 1)), ["head_count is missing"]),
    (
        "heads",
        lambda: with_value("llama.attention.head_count", u32("llama.attention.head_count", 5)),
        ["n_heads must divide dim"],
    ),
    (
        "head-width",
        lambda: with_value("x", u32("llama.attention.key_length", 32)),
        ["'blk.0.attn_q.weight' has shape (64, 64)", "want (128, 64)"],
    ),
    (
        "rotated-width",
        lambda: with_value("x", u32("llama.rope.dimension_count", 32)),
        ["llama.rope.dimension_count is 32, expected embedding_length / head_count = 16"],
    ),
    (
        "F071-tokens-type",
        lambda: with_vocabulary(tokens=array("tokenizer.ggml.tokens", F32, 40, bytes(160))),
        ["tokenizer.ggml.tokens must be an array of texts, got 40 of float32"],
    ),
    (
        "F071-tokens-missing",
        lambda: with_vocabulary(tokens=b"", n=u32("a", 1), model=string("tokenizer.ggml.model", "gpt2") + u32("b", 1)),
        ["tokenizer.ggml.tokens must be an array of texts, got nothing"],
    ),
    (
        "F071-tokens-length",
        lambda: with_vocabulary(tokens=strings("tokenizer.ggml.tokens", WORDS[:39])),
        ["tokenizer.ggml.tokens has 39 tokens, token_embd.weight has 40 rows"],
    ),
    (
        "F071-twice",
        lambda: with_vocabulary(tokens=strings("tokenizer.ggml.tokens", [*WORDS[:39], "th"])),
        ["tokenizer.ggml.tokens: 'th' stands twice"],
    ),
    (
        "F071-types-length",
        lambda: with_vocabulary(types=array("tokenizer.ggml.token_type", I32, 3, bytes(12))),
        ["tokenizer.ggml.token_type must be 40 whole numbers, got 3 of int32"],
    ),
    (
        "F071-types-type",
        lambda: with_vocabulary(types=array("tokenizer.ggml.token_type", F32, 40, bytes(160))),
        ["tokenizer.ggml.token_type must be 40 whole numbers, got 40 of float32"],
    ),
    (
        "F071-merges",
        lambda: with_vocabulary(merges=strings("tokenizer.ggml.merges", ["t h", "th e x"])),
        ["tokenizer.ggml.merges: entry 1 must be two tokens, got 'th e x'"],
    ),
    (
        "F071-merges-type",
        lambda: with_vocabulary(merges=u32("tokenizer.ggml.merges", 3)),
        ["tokenizer.ggml.merges must be an array of texts, got 3"],
    ),
    (
        "F071-merge-unknown",
        lambda: with_vocabulary(merges=strings("tokenizer.ggml.merges", ["t h", "th z"])),
        ["merge 1, 'th' 'z', needs 'thz', which is no token"],
    ),
    (
        "F071-eos-type",
        lambda: with_vocabulary(eos=string("tokenizer.ggml.eos_token_id", "</s>")),
        ["tokenizer.ggml.eos_token_id must be an id from 0 to 39, got '</s>'"],
    ),
    (
        "F071-template",
        lambda: with_vocabulary(template=u32("tokenizer.chat_template", 1)),
        ["tokenizer.chat_template must be a text, got 1"],
    ),
    (
        "yarn",
        lambda: with_value("x", string("llama.rope.scaling.type", "yarn")),
        ["llama.rope.scaling.type is 'yarn', expected 'none' or 'linear'"],
    ),
]


@pytest.mark.parametrize(("data", "parts"), [pytest.param(*fault[1:], id=fault[0]) for fault in FAULTS])
def test_damaged_file_is_one_sentence_with_file_key_and_place(data, parts, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(data())
    with pytest.raises(FileError) as error:
        read_gguf(path)
    message = str(error.value)
    assert message.startswith(str(path)) and "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize("kind", [TEXT, F32], ids=["F057-strings", "F057-numbers"])
def test_f057_huge_array_fails_at_once_and_allocates_nothing(kind, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + array("a", kind, HUGE, b""))
    tracemalloc.start()
    started = time.perf_counter()
    with pytest.raises(FileError, match="can't be"):
        read_gguf(path)
    seconds = time.perf_counter() - started
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 0.1
    assert peak < 200_000


@pytest.mark.parametrize(
    ("head", "part"),
    [
        (struct.pack("<IQQ", 3, 0, 2**16 + 1), "65537 metadata keys can't be: at most 65536"),
        (struct.pack("<IQQ", 3, 2**16 + 1, 0), "65537 tensors can't be: at most 65536"),
        (
            struct.pack("<IQQ", 3, 0, 1) + array("a", TEXT, 2**22 + 1, b""),
            "4194305 strings in an array can't be: at most 4194304",
        ),
        (
            struct.pack("<IQQ", 3, 0, 1) + value("a", TEXT, struct.pack("<Q", 2**24 + 1)),
            "16777217 bytes of text can't be: at most 16777216",
        ),
    ],
    ids=["F054", "F055", "F057", "F056"],
)
def test_counts_are_bounded_however_large_the_file_is(head, part, tmp_path):
    path = tmp_path / "model.gguf"
    with path.open("wb") as sparse:
        sparse.write(b"GGUF" + head)
        sparse.truncate(2**27)
    with pytest.raises(FileError) as error:
        read_gguf(path)
    assert part in str(error.value)


def test_f070_split_model_names_the_missing_parts_and_opens_when_whole(tmp_path):
    arrays = list(weights().items())
    split = {"split.count": value("split.count", 2, struct.pack("<H", 3))}
    paths = [tmp_path / f"m-{part:05}-of-00003.gguf" for part in (1, 2, 3)]
    paths[0].write_bytes(file(metadata() | split, table(dict(arrays[:5]))))
    with pytest.raises(FileError, match=r"3 parts, missing .*m-00002-of-00003.gguf, m-00003-of-00003.gguf"):
        read_gguf(paths[0])
    paths[1].write_bytes(file(split, table(dict(arrays[5:9]))))
    paths[2].write_bytes(file(split, table(dict(arrays[9:]))))
    whole = tmp_path / "whole.gguf"
    whole.write_bytes(file())
    config, params, _ = read_gguf(paths[1])
    assert config == CONFIG
    for name, tensor in read_gguf(whole)[1].items():
        assert torch.equal(params[name], tensor)
    renamed = paths[0].rename(tmp_path / "model.gguf")
    with pytest.raises(FileError, match=r"must be named …-00001-of-00003.gguf"):
        read_gguf(renamed)
    paths[2].rename(paths[0])
    paths[2].write_bytes(file(split, table(dict(arrays[9:]))))
    with pytest.raises(FileError, match=r"tensor .* stands in m-00001-of-00003.gguf too"):
        read_gguf(paths[1])


# What is written over a random place of a sound file: lengths and counts near every limit, and plain noise.
overwrites = st.one_of(
    st.sampled_from([0, 1, 2, 31, 255, 2**16, 2**31, 2**32 - 1, 2**62, HUGE, 2**64 - 1]).map(
        lambda n: struct.pack("<Q", n)
    ),
    st.integers(0, 2**32 - 1).map(lambda n: struct.pack("<I", n)),
    st.binary(min_size=1, max_size=4),
)
SOUND = with_vocabulary()
N_HEADER = SOUND.index(b"output.weight") + 60


@settings(max_examples=400, deadline=None)
@given(
    edits=st.lists(st.tuples(st.integers(0, N_HEADER), overwrites), max_size=4),
    length=st.one_of(st.just(len(SOUND)), st.integers(1, N_HEADER)),
)
def test_mutated_header_is_read_or_refused_never_worse(edits, length, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "mutated.gguf"
    data = bytearray(SOUND)
    for at, new in edits:
        data[at : at + len(new)] = new
    path.write_bytes(data[:length])
    started = time.perf_counter()
    try:
        config, params, _ = read_gguf(path)
    except FileError as error:
        assert str(path) in str(error)
    else:
        assert {name: tuple(tensor.shape) for name, tensor in params.items()} == expected(config)
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "numpy_type"), [(0, "<f4"), (1, "<f2"), (30, "bf16")], ids=["F32", "F16", "BF16"])
def test_float_tensors_stay_mapped_in_their_own_dtype(kind, numpy_type, dtype, tmp_path):
    stored = {0: torch.float32, 1: torch.float16, 30: torch.bfloat16}[kind]
    rows, offset, wanted = Rows(), 0, {}
    for name, values in weights().items():
        tensor = torch.from_numpy(values).to(stored)
        wanted[name] = tensor
        data = tensor.view(torch.uint8).numpy().tobytes()
        rows[name] = (values.shape[::-1], kind, offset, data)
        offset += -(-len(data) // 32) * 32
    path = tmp_path / "model.gguf"
    path.write_bytes(file(rows=rows))
    config, params, tokenizer = read_gguf(path, dtype=dtype)
    assert config == CONFIG and tokenizer is None
    for name, tensor in params.items():
        assert tensor.dtype == (dtype or stored)
        assert torch.equal(tensor, wanted[gguf_name(name)].to(tensor.dtype))
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
    if dtype is None:
        # Mapped: the address lies in a mapping of the file.
        maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(path) in line]
        spans = [[int(end, 16) for end in line[0].split("-")] for line in maps]
        assert all(any(a <= tensor.data_ptr() < b for a, b in spans) for tensor in params.values())


def test_tensor_table_is_what_the_gguf_package_sees(tmp_path):
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "model.gguf"
    alignment = {"alignment": u32("general.alignment", 8)}
    path.write_bytes(file(metadata() | alignment))
    theirs = {
        tensor.name: (tuple(map(int, tensor.shape[::-1])), tensor.tensor_type.name, tensor.data_offset, tensor.n_bytes)
        for tensor in gguf.GGUFReader(path).tensors
    }
    ours = {name: (row.shape, row.kind, row.start, row.n_bytes) for name, row in read_header(path).tensors.items()}
    assert ours == theirs


def test_tied_head_is_the_embedding_itself(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(without("output.weight"))
    config, params, _ = read_gguf(path)
    assert config.tied
    assert params["output.weight"] is params["tok_embeddings.weight"]


def random_blocks(kind: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """Random blocks [n, bytes] u8 whose f16 scales are finite."""
    halves = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}.get(kind, (0,))
    blocks = rng.integers(0, 256, (n, BLOCK_FORMATS[kind].n_bytes), dtype=np.uint8)
    for start in halves:
        scale = rng.integers(0, 0x7C00, (n, 1), dtype=np.uint16) | rng.integers(0, 2, (n, 1), dtype=np.uint16) << 15
        blocks[:, start : start + 2] = scale.view(np.uint8)
    return blocks


@pytest.mark.parametrize("kind", BLOCK_FORMATS)
def test_blocks_decode_to_the_bits_of_the_gguf_package(kind):
    gguf = pytest.importorskip("gguf")
    weights, n_bytes, _ = BLOCK_FORMATS[kind]
    number = gguf.GGMLQuantizationType[kind]
    assert gguf.GGML_QUANT_SIZES[number] == (weights, n_bytes)
    # More than one piece of `dequantize`, and not a whole number of them.
    blocks = random_blocks(kind, 2**15 // weights + 77, np.random.default_rng(3))
    ours = dequantize(torch.from_numpy(blocks).flatten(), kind)
    theirs = gguf.dequantize(blocks, number).ravel()
    assert (ours.numpy().view(np.int32) == theirs.view(np.int32)).all()


def test_quantised_tensors_are_decoded_in_place_of_the_file(tmp_path):
    rng = np.random.default_rng(5)
    rows, blocks = table(weights()), random_blocks("Q8_0", 64 * 64 // 32, rng)
    data = blocks.tobytes().ljust(len(rows[WQ][3]), b"\0")
    rows[WQ] = ((64, 64), 8, rows[WQ][2], data)
    path = tmp_path / "model.gguf"
    path.write_bytes(file(rows=rows))
    wanted = dequantize(torch.from_numpy(blocks).flatten(), "Q8_0").view(64, 64)
    for dtype in (None, torch.bfloat16):
        tensor = read_gguf(path, dtype=dtype)[1]["layers.1.attention.wq.weight"]
        assert torch.equal(tensor, wanted.to(dtype or torch.float32))


@pytest.mark.parametrize(("form", "kind"), [("int8", "Q8_0"), ("int4", "Q4_1"), ("int4-sym", "Q4_0")])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_tiles_are_written_as_blocks_and_read_as_tiles(form, kind, tied, tmp_path, torch_only):
    """Number for number, and llama.cpp's own package reads the same floats; no float is made on the way."""
    gguf = pytest.importorskip("gguf")
    config = replace(tiny.TILED, tied=tied)
    params, path = quantize(tiny.params(config), form), tmp_path / "model.gguf"
    write_gguf(path, params, config, None, kind=kind)
    kinds = {name: tensor.kind for name, tensor in read_header(path).tensors.items()}
    assert kinds["blk.0.ffn_down.weight"] == kind and kinds["token_embd.weight"] == "Q8_0"
    read_config, again, _ = read_gguf(path, blocks="stored")
    assert read_config == config and again.keys() == params.keys()
    assert all(again[name].equal(tensor) and again[name].dtype == tensor.dtype for name, tensor in params.items())
    if tied:
        assert again["output.weight"] is again["tok_embeddings.weight"]
        assert again["output.int8_scales"] is again["tok_embeddings.int8_scales"]
    _, floats, _ = read_gguf(path)
    tokens_BT = tiny.tokens(1, 33)
    assert forward(tokens_BT, again, config).equal(forward(tokens_BT, floats, config))
    (theirs,) = (tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == "blk.2.attn_v.weight")
    wanted = torch.from_numpy(gguf.dequantize(theirs.data, theirs.tensor_type).reshape(64, 192).copy())
    assert floats["layers.2.attention.wv.weight"].equal(wanted)


def test_blocks_that_have_no_tiles_become_floats(tmp_path):
    """40 rows aren't in 16s; Q6_K is no form of ours; both stay what they mean."""
    rng = np.random.default_rng(5)
    rows = table(weights())
    blocks = random_blocks("Q8_0", 40 * 64 // 32, rng)
    rows["token_embd.weight"] = ((64, 40), 8, rows["token_embd.weight"][2], blocks.tobytes().ljust(40 * 64 * 4, b"\0"))
    path = tmp_path / "model.gguf"
    path.write_bytes(file(rows=rows))
    params = read_gguf(path, blocks="stored")[1]
    assert "tok_embeddings.int8_scales" not in params
    assert params["tok_embeddings.weight"].equal(dequantize(torch.from_numpy(blocks).flatten(), "Q8_0").view(40, 64))
    assert params["layers.0.attention.wq.weight"].dtype == torch.float32
    with pytest.raises(UsageError, match="blocks: expected 'floats' or 'stored', got 'tiles'"):
        read_gguf(path, blocks="tiles")


def test_rows_that_are_not_whole_tiles_are_written_as_f16(tmp_path, caplog):
    pytest.importorskip("gguf")
    config = replace(tiny.TILED, hidden_dim=40)
    params, path = quantize(tiny.params(config), "int4"), tmp_path / "model.gguf"
    write_gguf(path, params, config, None, kind="Q4_1")
    kinds = {name: tensor.kind for name, tensor in read_header(path).tensors.items()}
    assert (kinds["blk.0.ffn_down.weight"], kinds["blk.0.ffn_up.weight"], kinds["blk.0.attn_q.weight"]) == (
        "F16",
        "F16",
        "Q4_1",
    )
    name = "layers.0.feed_forward.w2"
    wanted = stored(params, name).floats(slice(None), torch.float32).half()
    assert read_gguf(path)[1][f"{name}.weight"].equal(wanted)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "F32"])
def test_rows_that_are_not_whole_blocks_are_said_to_be_f16(tmp_path, caplog, kind):
    pytest.importorskip("gguf")
    config = replace(tiny.TILED, hidden_dim=40, n_layers=1)
    write_gguf(tmp_path / "m.gguf", tiny.params(config), config, None, kind=kind)
    said = f"layers.0.feed_forward.w2.weight is stored as F16: {kind} takes columns in 32s"
    assert caplog.messages == ([said] if kind != "F32" else [])
    found = read_header(tmp_path / "m.gguf").tensors["blk.0.ffn_down.weight"].kind
    assert found == ("F32" if kind == "F32" else "F16")


def with_rope(tmp_path: Path, divisors: np.ndarray, **values: bytes) -> Path:
    path = tmp_path / "model.gguf"
    config = LONG
    arrays = weights(config) | {"rope_freqs.weight": divisors.astype("<f4")}
    path.write_bytes(file(metadata(config) | values, table(arrays)))
    return path


LONG = Config(
    dim=64, n_layers=1, n_heads=2, n_kv_heads=1, vocab_size=40, hidden_dim=96, rope_theta=500_000.0, max_seq_len=131072
)


def divisors_as_converters_write_them(factor: float, config: Config) -> np.ndarray:
    """Frequencies in f32, one by one: the rounding of the usual HF to GGUF conversion."""
    out = []
    for freq in 1.0 / config.rope_theta ** (torch.arange(0, config.head_dim, 2).float() / config.head_dim):
        wavelength = 2 * torch.pi / freq
        smooth = (8192 / wavelength - 1.0) / 3.0
        blended = 1 / ((1 - smooth) / factor + smooth)
        out.append(1.0 if wavelength < 8192 / 4 else factor if wavelength > 8192 else float(blended))
    return np.array(out)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_f069_rope_freqs_of_llama_3_become_its_rope_scaling(factor, tmp_path, caplog):
    path = with_rope(tmp_path, divisors_as_converters_write_them(factor, LONG))
    config, params, _ = read_gguf(path)
    assert config.rope_scaling == RopeScaling(factor)
    assert config.rope_divisors is None
    assert "rope_freqs.weight" not in params


def test_f069_other_rope_freqs_divide_and_nothing_else_scales(tmp_path, caplog):
    divisors = np.linspace(1, 5, LONG.head_dim // 2).astype("<f4")
    scaling = {"type": string("llama.rope.scaling.type", "linear"), "factor": f32("llama.rope.scaling.factor", 4.0)}
    with caplog.at_level(logging.WARNING, "llama3_scratch"):
        config = read_gguf(with_rope(tmp_path, divisors, **scaling))[0]
    assert "the tensor counts" in caplog.text
    assert config.rope_scaling is None
    plain = rope_frequencies(LONG, torch.float64)
    assert torch.equal(rope_frequencies(config, torch.float64), plain / torch.from_numpy(divisors).double())


def test_f069_rope_freqs_of_ones_scale_nothing(tmp_path):
    config = read_gguf(with_rope(tmp_path, np.ones(LONG.head_dim // 2)))[0]
    assert config.rope_scaling is None and config.rope_divisors is None


@pytest.mark.parametrize(
    ("divisors", "part"),
    [
        (np.ones(5), "expected F32 (16,)"),
        (np.full(16, np.nan), "must hold positive numbers"),
        (np.zeros(16), "must hold positive numbers"),
    ],
    ids=["F069-shape", "F069-nan", "F069-zero"],
)
def test_f069_bad_rope_freqs_are_refused(divisors, part, tmp_path):
    with pytest.raises(FileError) as error:
        read_gguf(with_rope(tmp_path, divisors))
    assert "rope_freqs.weight" in str(error.value) and part in str(error.value)


def test_linear_scaling_as_older_files_say_it(tmp_path):
    """llama.cpp takes a factor without a type for linear, and reads its older key."""
    path = tmp_path / "x.gguf"
    for key in ("llama.rope.scaling.factor", "llama.rope.scale_linear"):
        path.write_bytes(file(metadata() | {"factor": f32(key, 4.0)}))
        assert read_gguf(path)[0].rope_divisors == (4.0,) * (CONFIG.head_dim // 2)


def test_linear_scaling_divides_every_frequency(tmp_path):
    path = tmp_path / "model.gguf"
    scaling = {"type": string("llama.rope.scaling.type", "linear"), "factor": f32("llama.rope.scaling.factor", 4.0)}
    path.write_bytes(file(metadata() | scaling))
    config = read_gguf(path)[0]
    plain = rope_frequencies(CONFIG, torch.float64)
    assert torch.equal(rope_frequencies(config, torch.float64), plain / 4)


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_scaling_divisors_are_metas_scaling(factor, head_dim):
    config = Config(head_dim, 1, 1, 1, 8, 8, rope_theta=500_000.0)
    scaled = Config(head_dim, 1, 1, 1, 8, 8, rope_theta=500_000.0, rope_scaling=RopeScaling(factor))
    divisors = torch.tensor(scaling_divisors(scaled.rope_scaling, 500_000.0, head_dim), dtype=torch.float64)
    by_division = rope_frequencies(config, torch.float64) / divisors
    torch.testing.assert_close(by_division, rope_frequencies(scaled, torch.float64), rtol=1e-12, atol=0)


def test_tokenizer_of_the_metadata(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(with_vocabulary())
    _, _, tokenizer = read_gguf(path)
    assert tokenizer.encode("the a\nthy", bos=True, eos=True) == [31, 29, 30, 27, 28, 24, 32]
    assert tokenizer.decode([29, 30, 33]) == "the a<|im_start|>"
    assert tokenizer.n_words == 35  # rows without a token follow
    assert (tokenizer.chat_format, tokenizer.chat_template.source) == ("template", TEMPLATE)
    assert tokenizer.stop_tokens == [32, 34]
    assert not tokenizer.add_bos


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"model": string("tokenizer.ggml.model", "llama")}, "tokenizer.ggml.model is 'llama'"),
        (
            {"pre": string("tokenizer.ggml.pre", "kimi-k2")},
            "tokenizer.ggml.pre is 'kimi-k2', expected one of llama-bpe",
        ),
    ],
    ids=["sentencepiece", "splitting"],
)
def test_a_tokenizer_of_another_kind_is_none_with_a_note(change, note, tmp_path, caplog):
    path = tmp_path / "model.gguf"
    path.write_bytes(with_vocabulary(**change))
    with caplog.at_level(logging.INFO, "llama3_scratch"):
        assert read_gguf(path)[2] is None
    assert note in caplog.text


def test_llama_3s_kind_begins_with_bos_and_takes_whole_words(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(with_vocabulary(pre=string("tokenizer.ggml.pre", "llama-bpe")))
    tokenizer = read_gguf(path)[2]
    assert tokenizer.add_bos
    assert tokenizer.encode("the", bos=False, eos=False) == [29]


def fields(tokenizer: Tokenizer) -> dict[str, object]:
    return {name: value for name, value in vars(tokenizer).items() if not name.startswith("_")}


ROPES = [
    {"rope_theta": 10_000.0},
    {"rope_theta": 500_000.0, "rope_scaling": RopeScaling(32.0)},
    {"rope_theta": 10_000.0, "rope_scaling": RopeScaling(8.0)},  # the slowest pair is one of those between
    {"rope_divisors": (1.0, 1.5, 2.0, 3.0)},
]


@pytest.mark.parametrize("rope", ROPES, ids=["plain", "scaled", "partly", "divided"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(
    ("kind", "dtype"), [("F32", torch.float32), ("F16", torch.float16), ("BF16", torch.bfloat16)], ids=lambda p: str(p)
)
def test_written_and_read_again_is_the_same_model(kind, dtype, tied, rope, tmp_path):
    pytest.importorskip("gguf")
    config = replace(tiny.CONFIG, **{"vocab_size": 300, "tied": tied, "rope_scaling": None, **rope})
    params = {name: tensor.to(dtype) for name, tensor in tiny.params(config).items()}
    for name, tensor in params.items():
        if tensor.ndim == 1:
            params[name] = tensor.float()
    if tied:
        params["output.weight"] = params["tok_embeddings.weight"]
    tokenizer = tiny.tokenizer("chatml")
    path = tmp_path / "model.gguf"
    write_gguf(path, params, config, tokenizer, kind=kind)
    again_config, again, again_tokenizer = read_gguf(path)
    assert again_config == config
    assert again.keys() == params.keys()
    for name, tensor in params.items():
        assert again[name].dtype == tensor.dtype and torch.equal(again[name], tensor), name
    assert fields(again_tokenizer) == fields(tokenizer)
    tokens_BT = tiny.tokens(1, 9, config)
    logits_BTV = forward(tokens_BT, params, config, dtype=torch.float32)
    assert torch.equal(logits_BTV, forward(tokens_BT, again, again_config, dtype=torch.float32))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1"])
def test_quantised_kinds_hold_what_the_gguf_package_makes(kind, tmp_path):
    gguf = pytest.importorskip("gguf")
    config = Config(64, 1, 4, 2, 300, 48, max_seq_len=64)  # rows of 48 aren't whole blocks
    params, path = tiny.params(config), tmp_path / "model.gguf"
    write_gguf(path, params, config, None, kind=kind)
    kinds = {name: tensor.kind for name, tensor in read_header(path).tensors.items()}
    assert kinds["token_embd.weight"] == kinds["output.weight"] == "Q8_0"
    assert kinds["blk.0.attn_q.weight"] == kind
    assert kinds["blk.0.ffn_down.weight"] == "F16"
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    _, again, tokenizer = read_gguf(path)
    assert tokenizer is None
    weight, number = params["layers.0.attention.wq.weight"].numpy(), gguf.GGMLQuantizationType[kind]
    wanted = gguf.dequantize(gguf.quantize(weight, number), number)
    assert torch.equal(again["layers.0.attention.wq.weight"], torch.from_numpy(wanted))


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    pytest.importorskip("gguf")
    resource = pytest.importorskip("resource")
    path = tmp_path / "model.gguf"
    path.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(ResourceError, match=r"model\.gguf: can't be written: .*; nothing was changed"):
            write_gguf(path, tiny.params(), tiny.CONFIG, None, kind="F32")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    params = tiny.params()
    params["layers.4.feed_forward.w2.weight"][0, 0] = 1e6
    with pytest.raises(UsageError, match=r"layers\.4\.feed_forward\.w2\.weight has values beyond 65504"):
        write_gguf(path, params, tiny.CONFIG, None, kind="F16")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_gguf_file_cannot_hold_is_refused(tmp_path, monkeypatch):
    path, params = tmp_path / "model.gguf", tiny.params()
    with pytest.raises(UsageError, match=r"one of F32, F16, BF16, Q8_0, Q4_0, Q4_1, got 'Q6_K'"):
        write_gguf(path, params, tiny.CONFIG, None, kind="Q6_K")
    adapter = {"layers.0.attention.wq.adaptor.A.weight": torch.zeros(2, 48)}
    with pytest.raises(UsageError, match=r"adaptor\.A\.weight: adapters and weights in forms other than floats"):
        write_gguf(path, params | adapter, tiny.CONFIG, None, kind="F32")
    with pytest.raises(UsageError, match=r"wq\.weight: adapters and weights in forms other than floats, int8, int4"):
        write_gguf(path, quantize(tiny.params(tiny.TILED), "nf4"), tiny.TILED, None, kind="F32")
    with pytest.raises(UsageError, match=r"the tokenizer has 258 tokens, the embedding 67 rows"):
        write_gguf(path, params, tiny.CONFIG, tiny.tokenizer("chatml"), kind="F32")
    odd = tiny.tokenizer("chatml")
    odd.pattern = r"\S+|\s+"
    with pytest.raises(UsageError, match=r"llama\.cpp splits text as one of llama-bpe"):
        write_gguf(path, params, replace(tiny.CONFIG, vocab_size=300), odd, kind="F32")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UsageError, match=r'needs the package gguf, which is missing: pip install -e "\.\[gguf\]"'):
        write_gguf(path, params, tiny.CONFIG, None, kind="F32")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("scaling", [None, RopeScaling(4.0, original_context=64)], ids=["plain", "scaled"])
def test_llama_cpp_tells_the_same_story(scaling, tmp_path):
    config, params, path = storyteller_for_llama_cpp(tmp_path, scaling)
    ours = greedy([1], params, config, 120)
    assert llama_cpp(path, [1], 120)[0] == ours
    if scaling:  # which was noticed
        assert ours != greedy([1], params, replace(config, rope_scaling=None), 120)


@pytest.mark.parametrize("last_n", [-1, 0, 4, 16, None])
def test_llama_cpp_penalises_the_same_repeats(last_n, tmp_path):
    """Of the prompt's tokens, too; and where nothing is said, as many as it does by default."""
    config, params, path = storyteller_for_llama_cpp(tmp_path, None)
    prompt = [1, 403, 407, 261, 378]
    ours = greedy(
        prompt, params, config, 100, repeat_penalty=1.4, **{} if last_n is None else {"repeat_last_n": last_n}
    )
    theirs = {} if last_n is None else {"repeat_last_n": 512 if last_n == -1 else last_n}  # its whole context
    assert llama_cpp(path, prompt, 100, repeat_penalty=1.4, **theirs)[0] == ours
    assert (ours == greedy(prompt, params, config, 100)) == (last_n == 0)


def storyteller_for_llama_cpp(folder: Path, scaling: RopeScaling | None) -> tuple[Config, Params, Path]:
    """stories260K, and the GGUF file of it."""
    pytest.importorskip("gguf")
    config, params = read_llama2c(tiny.data("stories260k/stories260K.bin"))
    config = replace(config, rope_scaling=scaling)
    tokenizer = tiny.llama_cpp_tokenizer()
    path = folder / "model.gguf"
    write_gguf(path, params, config, tokenizer, kind="F32")
    return config, params, path


PROMPT = "Once upon a time, in 1847, there wasn't a"


@pytest.fixture(scope="module")
def smollm2() -> tuple[Config, Params, Tokenizer]:
    return read_gguf(smollm2_gguf())


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "least"), [("F32", 16), ("F16", 1), ("BF16", 1), ("Q8_0", 1), ("Q4_0", 1)])
def test_llama_cpp_continues_smollm2_as_we_do(kind, least, smollm2, tmp_path):
    """All 16 tokens of the F32 file; of others the first, since llama.cpp rounds the activations too."""
    pytest.importorskip("gguf")
    config, params, tokenizer = smollm2
    path = tmp_path / "model.gguf"
    write_gguf(path, params, config, tokenizer, kind=kind)
    if kind != "F32":
        config, params, tokenizer = read_gguf(path)
    prompt = tokenizer.encode(PROMPT, bos=False, eos=False)
    ours = greedy(prompt, params, config, 16)
    theirs, words = llama_cpp(path, PROMPT, 16)
    path.unlink()  # half a gigabyte, which pytest would keep for three runs
    assert theirs[:least] == ours[:least]
    if kind == "F32":
        assert words == tokenizer.decode(ours)


def test_smollm2_config_weights_and_next_token(smollm2):
    gguf = pytest.importorskip("gguf")
    path = smollm2_gguf()
    config, params, tokenizer = smollm2
    assert config == Config(
        576, 30, 9, 3, 49152, 1536, norm_eps=1e-5, rope_theta=100_000.0, max_seq_len=8192, tied=True
    )
    header, raw = read_header(path), np.memmap(path, np.uint8, "r")
    for name in ("tok_embeddings.weight", "layers.29.feed_forward.w2.weight", "norm.weight"):
        stored = header.tensors[gguf_name(name)]
        data = raw[stored.start : stored.start + stored.n_bytes].reshape(stored.shape[0], -1)
        wanted = gguf.dequantize(data, gguf.GGMLQuantizationType[stored.kind]).reshape(stored.shape)
        assert torch.equal(params[name], torch.from_numpy(wanted.copy()))
    assert (tokenizer.n_words, len(tokenizer.ranks), len(tokenizer.special_tokens)) == (49152, 49135, 17)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.stop_tokens) == (1, 2, [2])
    assert (tokenizer.chat_format, tokenizer.add_bos) == ("chatml", False)
    prompt = tokenizer.encode("The capital of France is", bos=False, eos=False)
    assert prompt == [504, 3575, 282, 4649, 314]
    assert tokenizer.decode(greedy(prompt, params, config, 2)) == " Paris."
