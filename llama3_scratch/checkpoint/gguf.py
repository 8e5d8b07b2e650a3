"""GGUF files in: a bounded reader for the llama architecture.

The header is walked once; every count, length and offset in it is compared with the file's size before anything is
allocated for it. Q and K rows already stand in Meta's order (pairs side by side), so names are all that changes.
Source: the format's description in ggml (docs/gguf.md) and llama.cpp's gguf.cpp, llama-model-loader.cpp.
"""

from __future__ import annotations

import logging
import math
import mmap
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from llama3_scratch.checkpoint.ggml_blocks import BLOCK_FORMATS, dequantize, has_tiles, tiles_of_blocks
from llama3_scratch.checkpoint.gguf_vocab import read_vocabulary
from llama3_scratch.config import Config, RopeScaling, expected
from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.stored import Params
from llama3_scratch.system.files import float_field, int_field, listed, require_file, text_field
from llama3_scratch.system.memory import MemoryPlan, available_memory, require_memory
from llama3_scratch.text.tokenizer import Tokenizer

log = logging.getLogger("llama3_scratch")

FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SUPPORTED = ", ".join([*FLOATS, *BLOCK_FORMATS])
# ggml.h, enum ggml_type; the ones that can't be read are here so that a refusal can name them.
# fmt: off
_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}
# fmt: on
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_NUMBERS = {code: struct.Struct("<" + code) for code in _SCALARS.values()}

# No Llama comes near these; they bound the time and the memory that a header can ask for, however large its file.
MOST_ENTRIES = 2**16  # keys, tensors
MOST_STRINGS = 2**22  # in one array: tokens, merges
MOST_BYTES = 2**24  # in one string

_WORDS = {
    "tok_embeddings": "token_embd",
    "norm": "output_norm",
    "output": "output",
    "attention_norm": "attn_norm",
    "attention.wq": "attn_q",
    "attention.wk": "attn_k",
    "attention.wv": "attn_v",
    "attention.wo": "attn_output",
    "ffn_norm": "ffn_norm",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w3": "ffn_up",
    "feed_forward.w2": "ffn_down",
}
ROPE_FREQS = "rope_freqs.weight"


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: rows first in `shape`, `kind` is ggml's name of the type."""

    path: Path
    shape: tuple[int, ...]
    kind: str
    start: int
    n_bytes: int


@dataclass(frozen=True)
class Header:
    """All that a GGUF file says before its weights: the metadata and the table of tensors, by GGUF's names."""

    path: Path
    values: dict[str, Any]
    tensors: dict[str, StoredTensor]


def gguf_name(name: str) -> str:
    """GGUF's name of a tensor that Meta calls `name`."""
    words = name.removesuffix(".weight").split(".")
    block = f"blk.{words[1]}." if words[0] == "layers" else ""
    return f"{block}{_WORDS['.'.join(words[2:] if block else words)]}.weight"


class _Cursor:
    """A position in a mapped file; nothing is read past the file's end, nothing allocated that doesn't fit in it."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.path, self.at, self.what = path, 0, "header"

    def refuse(self, why: str) -> NoReturn:
        raise FileError(f"{self.path}: {self.what} at byte {self.at}: {why}")

    def take(self, n_bytes: int, what: str) -> int:
        """Move over `n_bytes`, return where they start."""
        start, left = self.at, len(self.data) - self.at
        if n_bytes > left:
            self.refuse(f"{what} takes {n_bytes} bytes, {left} are left; the file is cut short or damaged")
        self.at += n_bytes
        return start

    def number(self, code: str) -> Any:
        number = _NUMBERS[code]
        return number.unpack_from(self.data, self.take(number.size, "a number"))[0]

    def count(self, what: str, least_bytes: int, most: int) -> int:
        """A number of things that take at least `least_bytes` each."""
        n = self.number("Q")
        left = len(self.data) - self.at
        if n > most or n * least_bytes > left:
            self.at -= 8
            self.refuse(
                f"{n} {what} can't be: at most {most}, in the {left} bytes left; the file is cut short or damaged"
            )
        return n

    def string(self) -> str:
        n_bytes = self.count("bytes of text", 1, MOST_BYTES)
        start, self.at = self.at, self.at + n_bytes
        try:
            return self.data[start : self.at].decode()
        except UnicodeDecodeError as error:
            self.at = start + error.start
            self.refuse("text isn't UTF-8; the file is damaged")

    def value(self, kind: int) -> Any:
        """A metadata value: int, float, bool, str, list[str], or an array [n] of numbers that stays in the file."""
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array()
        if kind not in _SCALARS:
            self.refuse(f"value type {kind} isn't one of GGUF's; the file is damaged")
        value = self.number(_SCALARS[kind])
        # 1e-5 is meant where f32 says 9.99999974e-06: the shortest decimal is what its writer had.
        return float(str(np.float32(value))) if kind == 6 else value

    def array(self) -> list[str] | np.ndarray:
        kind = self.number("I")
        if kind == _STRING:
            return [self.string() for _ in range(self.count("strings in an array", 8, MOST_STRINGS))]
        if kind not in _SCALARS:
            why = "an array in an array" if kind == _ARRAY else f"an array of value type {kind}"
            self.refuse(f"{why} isn't supported; no Llama has one")
        dtype = np.dtype("<" + _SCALARS[kind])
        n = self.count("numbers in an array", dtype.itemsize, len(self.data))
        return np.frombuffer(self.data, dtype, n, self.take(n * dtype.itemsize, "an array"))


def _read_part(path: Path) -> Header:
    """The header of one file."""
    require_file(path, "a GGUF model")
    cursor = _Cursor(path)
    if cursor.data[:4] != b"GGUF":
        cursor.refuse(f"expected the letters GGUF, got {cursor.data[:4]!r}; this is no GGUF file")
    cursor.at = 4
    version = cursor.number("I")
    if version not in (2, 3):
        cursor.at = 4
        if version & 0xFFFF == 0:
            cursor.refuse("the file is big-endian, expected little-endian; convert it with gguf-convert-endian")
        cursor.refuse(f"GGUF version {version}, expected 2 or 3; convert the model anew")
    n_tensors = cursor.count("tensors", 8 + 4 + 8 + 4 + 8, MOST_ENTRIES)
    n_values = cursor.count("metadata keys", 8 + 4 + 1, MOST_ENTRIES)

    values: dict[str, Any] = {}
    for index in range(n_values):
        cursor.what = f"metadata key {index}"
        key = cursor.string()
        cursor.what = f"metadata {key!r}"
        if key in values:
            cursor.refuse("the key stands twice; the file is damaged")
        values[key] = cursor.value(cursor.number("I"))

    table: dict[str, tuple[tuple[int, ...], str, int, int]] = {}
    for index in range(n_tensors):
        cursor.what = f"tensor {index}"
        name = cursor.string()
        cursor.what = f"tensor {name!r}"
        if name in table:
            cursor.refuse("the tensor stands twice; the file is damaged")
        table[name] = _table_row(cursor)

    alignment = values.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment not in (8 << power for power in range(14)):
        raise FileError(f"{path}: general.alignment must be a power of two from 8 to 65536, got {alignment!r}")
    data_start = -(-cursor.at // alignment) * alignment
    tensors = {}
    for name, (shape, kind, offset, n_bytes) in table.items():
        start = data_start + offset
        if offset % alignment:
            raise FileError(f"{path}: tensor {name!r}: offset {offset} isn't a multiple of the alignment {alignment}")
        if start + n_bytes > len(cursor.data):
            raise FileError(
                f"{path}: tensor {name!r} lies at bytes {start} to {start + n_bytes}, the file has {len(cursor.data)}; "
                "it is cut short or damaged, download it again"
            )
        tensors[name] = StoredTensor(path, shape, kind, start, n_bytes)
    end, before = 0, ""
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].start):
        if tensor.start < end:
            raise FileError(f"{path}: tensor {name!r} at byte {tensor.start} overlaps {before!r}; the file is damaged")
        end, before = tensor.start + tensor.n_bytes, name
    return Header(path, values, tensors)


def _table_row(cursor: _Cursor) -> tuple[tuple[int, ...], str, int, int]:
    """(shape, type, offset in the data, bytes) of one tensor."""
    n_dims = cursor.number("I")
    if not 1 <= n_dims <= 4:
        cursor.refuse(f"{n_dims} dimensions, expected 1 to 4; the file is damaged")
    shape = tuple(cursor.number("Q") for _ in range(n_dims))[::-1]  # GGUF names the row's length first
    number, offset = cursor.number("I"), cursor.number("Q")
    kind = _TYPES.get(number, f"number {number}")
    block = BLOCK_FORMATS.get(kind)
    if kind not in FLOATS and block is None:
        cursor.refuse(f"type {kind} can't be read, expected one of {SUPPORTED}; quantise the model to one of these")
    weights, n_bytes = (block.weights, block.n_bytes) if block else (1, FLOATS[kind].itemsize)
    if 0 in shape or shape[-1] % weights:
        cursor.refuse(f"shape {shape} can't be stored as {kind}, whose rows hold a multiple of {weights} weights")
    size = math.prod(shape) // weights * n_bytes
    if size > len(cursor.data):
        cursor.refuse(
            f"shape {shape} as {kind} takes {size} bytes, the file has {len(cursor.data)}; it is cut short or damaged"
        )
    return shape, kind, offset, size


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF does, whatever it's called: a blob of Ollama's has no suffix."""
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False


def read_header(path: Path) -> Header:
    """Metadata and tensor table of a GGUF file; of a split model all parts are read, whichever is named."""
    header = _read_part(path)
    n_parts = header.values.get("split.count", 1)
    if not isinstance(n_parts, int) or n_parts < 2:
        return header
    found = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})(\.gguf)", path.name, re.IGNORECASE)
    if not found or int(found[2]) != n_parts:
        raise FileError(f"{path}: is one of {n_parts} parts and must be named …-00001-of-{n_parts:05}.gguf")
    paths = [path.with_name(f"{found[1]}-{part:05}-of-{n_parts:05}{found[3]}") for part in range(1, n_parts + 1)]
    missing = [part.name for part in paths if not part.exists()]
    if missing:
        raise FileError(f"{path}: the model has {n_parts} parts, missing beside this one: {', '.join(missing)}")
    parts = [_read_part(part) for part in paths]
    tensors: dict[str, StoredTensor] = {}
    for part in parts:
        for name in part.tensors.keys() & tensors.keys():
            raise FileError(f"{part.path}: tensor {name!r} stands in {tensors[name].path.name} too")
        tensors |= part.tensors
    return Header(paths[0], parts[0].values, tensors)


def weight_files(path: Path, names: Iterable[str]) -> dict[str, str]:
    """The part that each stored weight, by Meta's name, was read from."""
    tensors = read_header(path).tensors
    return {name: tensors[gguf_name(name)].path.name for name in names if gguf_name(name) in tensors}


def header_config(header: Header) -> Config:
    """The configuration, checked against every tensor's shape; reads no weights but those of rope_freqs."""
    path, values, tensors = header.path, header.values, header.tensors
    architecture = text_field(values, "general.architecture", path)
    if architecture != "llama":
        raise FileError(f"{path}: general.architecture is {architecture!r}, expected 'llama'")
    if "blk.0.ffn_gate_inp.weight" in tensors:
        raise FileError(f"{path}: this is a mixture of experts (blk.0.ffn_gate_inp.weight), expected a dense Llama")
    if "token_embd.weight" not in tensors:
        raise FileError(f"{path}: tensor token_embd.weight is missing")
    n_heads = int_field(values, "llama.attention.head_count", path)
    try:
        config = Config(
            dim=int_field(values, "llama.embedding_length", path),
            n_layers=int_field(values, "llama.block_count", path),
            n_heads=n_heads,
            n_kv_heads=int_field(values, "llama.attention.head_count_kv", path, n_heads),
            vocab_size=tensors["token_embd.weight"].shape[0],
            hidden_dim=int_field(values, "llama.feed_forward_length", path),
            norm_eps=float_field(values, "llama.attention.layer_norm_rms_epsilon", path),
            rope_theta=float_field(values, "llama.rope.freq_base", path, 10_000.0),
            max_seq_len=int_field(values, "llama.context_length", path),
            tied="output.weight" not in tensors,
            head_dim=int_field(values, "llama.attention.key_length", path, None),
        )
    except UsageError as error:
        raise FileError(f"{path}: {error}") from error
    for key in ("llama.rope.dimension_count", "llama.attention.value_length"):
        if int_field(values, key, path, config.head_dim) != config.head_dim:
            stated = "llama.attention.key_length" in values
            wide = "llama.attention.key_length" if stated else "embedding_length / head_count"
            raise FileError(f"{path}: {key} is {values[key]}, expected {wide} = {config.head_dim}, as a Llama has it")
    _check_tensors(header, config)
    return _with_rope(header, config)


def _check_tensors(header: Header, config: Config) -> None:
    path, tensors = header.path, header.tensors
    blocks = {int(found[1]) for name in tensors if (found := re.match(r"blk\.(\d{1,6})\.", name))}
    # Compared before expected() is asked, which would list a name for every layer that a damaged file claims.
    if len(blocks) != config.n_layers or max(blocks, default=0) != config.n_layers - 1:
        raise FileError(
            f"{path}: llama.block_count is {config.n_layers}, but there are tensors of {len(blocks)} blocks"
        )
    wanted = {gguf_name(name): shape for name, shape in expected(config).items()}
    if config.tied:
        del wanted["output.weight"]
    if missing := [name for name in wanted if name not in tensors]:
        raise FileError(f"{path}: {listed(missing)} missing; expected {len(wanted)} tensors, got {len(tensors)}")
    if extra := [name for name in tensors if name not in wanted and name != ROPE_FREQS]:
        raise FileError(f"{path}: {listed(extra)} not part of a Llama of this config")
    for name, shape in wanted.items():
        if tensors[name].shape != shape:
            raise FileError(
                f"{path}: tensor {name!r} has shape {tensors[name].shape}, the metadata's sizes want {shape}"
            )


def _blend(scaling: RopeScaling, theta: float, head_dim: int, pair: int) -> float:
    """How much of a pair's own frequency Llama 3.1's scaling keeps, 0 to 1."""
    turns = scaling.original_context * theta ** (-2 * pair / head_dim) / (2 * math.pi)
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    return min(max(blend, 0.0), 1.0)


def scaling_divisors(scaling: RopeScaling, theta: float, head_dim: int) -> list[float]:
    """What Llama 3.1's scaling divides each of the J inverse frequencies by, [J]."""
    blends = [_blend(scaling, theta, head_dim, pair) for pair in range(head_dim // 2)]
    return [1 / ((1 - blend) / scaling.factor + blend) for blend in blends]


def _scaling(divisors: np.ndarray, theta: float, head_dim: int) -> RopeScaling | None:
    """The scaling of Llama 3.1's kind that explains `divisors` [J] to 1e-6, if there is one."""
    kept = _blend(RopeScaling(), theta, head_dim, head_dim // 2 - 1)
    slowed = 1 / float(divisors[-1]) - kept  # of the slowest pair, whose divisor is the factor where it keeps nothing
    if kept == 1 or slowed <= 0:
        return None
    scaling = RopeScaling(factor=round((1 - kept) / slowed, 3))
    explained = scaling.factor > 0 and np.allclose(
        divisors, scaling_divisors(scaling, theta, head_dim), rtol=1e-6, atol=0
    )
    return scaling if explained else None


def _with_rope(header: Header, config: Config) -> Config:
    """`config` with the RoPE scaling of rope_freqs.weight or else of the metadata, never both."""
    path, stored = header.path, header.tensors.get(ROPE_FREQS)
    kind = text_field(header.values, "llama.rope.scaling.type", path, "linear")  # as llama.cpp takes it
    if kind not in ("none", "linear"):
        raise FileError(f"{path}: llama.rope.scaling.type is {kind!r}, expected 'none' or 'linear'")
    older = float_field(header.values, "llama.rope.scale_linear", path, 1.0)
    factor = float_field(header.values, "llama.rope.scaling.factor", path, older) if kind == "linear" else 1.0
    if stored is None:
        return config if factor == 1 else replace(config, rope_divisors=(factor,) * (config.head_dim // 2))
    if factor != 1:
        log.warning("%s: has both %s and llama.rope.scaling.type %r; the tensor counts", path, ROPE_FREQS, kind)
    if stored.kind != "F32" or stored.shape != (config.head_dim // 2,):
        raise FileError(
            f"{path}: tensor {ROPE_FREQS!r} is {stored.kind} {stored.shape}, expected F32 ({config.head_dim // 2},)"
        )
    divisors = np.memmap(stored.path, "<f4", "r", stored.start, stored.shape)
    if not (np.isfinite(divisors).all() and (divisors > 0).all()):
        raise FileError(f"{path}: tensor {ROPE_FREQS!r} at byte {stored.start} must hold positive numbers")
    if (divisors == 1).all():
        return config
    scaling = _scaling(divisors, config.rope_theta, config.head_dim)
    if scaling is not None:
        return replace(config, rope_scaling=scaling)
    return replace(config, rope_divisors=tuple(divisors.tolist()))


def _weights(
    stored: StoredTensor, mapped: torch.UntypedStorage, dtype: torch.dtype | None, blocks: str
) -> dict[str, Tensor]:
    """One tensor, mapped as it stands where it is float, decoded into memory where it is in blocks or, if these are to
    be kept as they're `stored`, put in tiles with their scales beside them."""
    # A storage of its own for each tensor, so that saving one doesn't save the whole file.
    data = mapped[stored.start : stored.start + stored.n_bytes]
    if stored.kind in BLOCK_FORMATS:
        flat = torch.empty(0, dtype=torch.uint8).set_(data)
        if _stays(stored, blocks):
            return tiles_of_blocks(flat, stored.kind, stored.shape)
        return {"weight": dequantize(flat, stored.kind, dtype or torch.float32).view(stored.shape)}
    tensor = torch.empty(0, dtype=FLOATS[stored.kind]).set_(data).view(stored.shape)
    return {"weight": tensor if dtype is None else tensor.to(dtype)}


def _stays(stored: StoredTensor, blocks: str) -> bool:
    return blocks == "stored" and has_tiles(stored.kind, stored.shape)


def form(stored: StoredTensor, blocks: str) -> str:
    """The form in which a tensor is read, as `stored.Floats.name` has it."""
    if _stays(stored, blocks):
        return {"Q8_0": "int8", "Q4_0": "int4-sym", "Q4_1": "int4"}[stored.kind]
    return str(FLOATS.get(stored.kind, torch.float32)).removeprefix("torch.")


def allocated(stored: StoredTensor, blocks: str, dtype: torch.dtype | None = None) -> int:
    """Bytes of memory that a tensor takes: none where it stays mapped."""
    if stored.kind not in BLOCK_FORMATS:
        return 0
    return stored.n_bytes if _stays(stored, blocks) else math.prod(stored.shape) * (dtype or torch.float32).itemsize


def read_gguf(
    path: Path, *, dtype: torch.dtype | None = None, blocks: str = "floats"
) -> tuple[Config, Params, Tokenizer | None]:
    """(config, params, tokenizer) of a llama GGUF file, under Meta's names.

    Float tensors stay mapped in their own dtype, quantised ones become f32; `dtype` turns all of them into one.
    With `blocks` "stored" those in Q8_0, Q4_0 and Q4_1 become int8, int4-sym and int4 instead, number for number.
    The tokenizer is None where the file has none that can be used; a logged note says why.
    """
    if blocks not in ("floats", "stored"):
        raise UsageError(f"blocks: expected 'floats' or 'stored', got {blocks!r}")
    path = Path(path)
    header = read_header(path)
    config = header_config(header)
    tokenizer = read_vocabulary(header.values, header.path, config.vocab_size)
    needed = sum(allocated(stored, blocks, dtype) for stored in header.tensors.values())
    require_memory(MemoryPlan(0, needed, 0, 0), available_memory())
    mapped = {
        part: torch.from_file(str(part), shared=False, size=part.stat().st_size, dtype=torch.uint8).untyped_storage()
        for part in {tensor.path for tensor in header.tensors.values()}
    }
    params: Params = {}
    for name in expected(config):
        stem, of = name.removesuffix(".weight"), gguf_name(name)
        if config.tied and stem == "output":
            head = {f"output.{key.partition('.')[2]}": t for key, t in params.items() if key.startswith("tok_")}
            params |= head
            continue
        stored = header.tensors[of]
        parts = _weights(stored, mapped[stored.path], dtype, blocks)
        params |= {f"{stem}.{part}": tensor for part, tensor in parts.items()}
    return config, params, tokenizer
