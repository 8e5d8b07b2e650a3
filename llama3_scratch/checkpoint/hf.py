"""Hugging Face's layout: `config.json` and safetensors, read into Meta's names and row order.

Two things differ from Meta's files: the names, and the order of the rows of q and k within each head. Hugging Face
turns component i with i + K/2 where Meta turns neighbours, so its converter moved the rows to keep the scores equal.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama3_scratch.config import Config, RopeScaling, expected
from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.params.hf_layout import hf_name, interleaved, rotated_heads
from llama3_scratch.system.files import float_field, int_field, listed, read_json, require_file

if TYPE_CHECKING:  # the headers are read without torch
    from llama3_scratch.stored import Params

log = logging.getLogger("llama3_scratch")

# Which of config.json's fields a tensor's shape follows from, for the message.
_FIELDS = {
    "embed_tokens": "vocab_size, hidden_size",
    "lm_head": "vocab_size, hidden_size",
    "q_proj": "num_attention_heads, head_dim, hidden_size",
    "o_proj": "num_attention_heads, head_dim, hidden_size",
    "k_proj": "num_key_value_heads, head_dim, hidden_size",
    "v_proj": "num_key_value_heads, head_dim, hidden_size",
    "gate_proj": "intermediate_size, hidden_size",
    "up_proj": "intermediate_size, hidden_size",
    "down_proj": "intermediate_size, hidden_size",
}

_HEADER_LIMIT = 100_000_000  # bytes; the format's own limit

# The format's element types: bytes, and torch's name where a Llama may be stored so.
_DTYPES = {
    "F32": (4, "float32"),
    "BF16": (2, "bfloat16"),
    "F16": (2, "float16"),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), (1, "")),
    **dict.fromkeys(("I16", "U16"), (2, "")),
    **dict.fromkeys(("I32", "U32"), (4, "")),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), (8, "")),
}


def read_hf(folder: Path, *, allow_extra: bool = False) -> tuple[Config, Params]:
    """The config and the weights, mapped and in their stored dtypes; only q and k are copied, to reorder their rows."""
    from llama3_scratch.checkpoint.check import same

    config, entries = _headers(folder, allow_extra)
    found: Params = {}
    for path in dict.fromkeys(entry.path for entry in entries.values()):
        found |= _mapped(path, {name: entry.key for name, entry in entries.items() if entry.path == path})
    params = {name: found[name] for name in entries}
    for name, tensor in params.items():
        if heads := rotated_heads(name, config):
            params[name] = interleaved(tensor, heads)
    embedding = params["tok_embeddings.weight"]
    tied = same(params.setdefault("output.weight", embedding), embedding)
    if tied:
        params["output.weight"] = embedding
    elif config.tied:
        log.warning("%s: tie_word_embeddings is true, but lm_head.weight differs and counts", folder / "config.json")
    return replace(config, tied=tied), params


def read_hf_header(folder: Path) -> tuple[Config, dict[str, tuple[tuple[int, ...], str]]]:
    """The config and each stored tensor's (shape, dtype) by Meta's name, without reading weights or importing torch.

    A tied head isn't stored, so `output.weight` is absent there.
    """
    config, entries = _headers(folder, allow_extra=True)
    config = replace(config, tied="output.weight" not in entries)
    return config, {name: (entry.shape, _DTYPES[entry.dtype][1]) for name, entry in entries.items()}


def weight_files(folder: Path) -> dict[str, str]:
    """The file that each stored weight, by Meta's name, was read from."""
    return {name: entry.path.name for name, entry in _headers(folder, allow_extra=True)[1].items()}


@dataclass(frozen=True)
class _Entry:
    """One tensor's line in a safetensors header: file, key, the format's dtype name, shape."""

    path: Path
    key: str
    dtype: str
    shape: tuple[int, ...]


def read_safetensors(path: Path) -> Params:
    """All tensors of one file by their own names, mapped, after every check of its header."""
    return _mapped(path, {key: key for key in _header(path)})


def _mapped(path: Path, keys: dict[str, str]) -> Params:
    """The tensors of one file, mapped (copy on write): `keys` says under which name each one is returned."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(key) for name, key in keys.items()}
    except (OSError, SafetensorError) as error:
        raise FileError(f"{path}: can't be opened as safetensors: {error}") from error


def _headers(folder: Path, allow_extra: bool) -> tuple[Config, dict[str, _Entry]]:
    """Config and entries by Meta's name, in the forward's order, after every check that needs no weights.

    `config.tied` is what config.json says, which a stored head may contradict.
    """
    config_path = folder / "config.json"
    data = read_json(config_path, "Hugging Face's config.json")
    config = _config(data, config_path)
    stored: dict[str, _Entry] = {}
    for path, promised in _weight_files(folder):
        header = _header(path)
        if absent := [key for key in promised or () if key not in header]:
            raise FileError(f"{folder / _INDEX}: {listed(absent)} said to be in {path.name}, which lacks it")
        for key, entry in header.items():
            if key in stored:
                raise FileError(f"{path}: {key} is also in {stored[key].path.name}; expected each tensor once")
            stored[key] = entry
    if config.n_layers > len(stored):  # before names are made for a number of layers that nothing confirms
        raise FileError(
            f"{config_path}: num_hidden_layers is {config.n_layers}, but the weight files hold {len(stored)} tensors"
        )
    config = replace(config, tied=data.get("tie_word_embeddings") is True)
    return config, _matched(stored, config, folder, allow_extra)


def _matched(stored: dict[str, _Entry], config: Config, folder: Path, allow_extra: bool) -> dict[str, _Entry]:
    """`stored` under Meta's names, or FileError unless names, shapes and dtypes are what `config` means."""
    shapes = expected(config)
    names = {name: hf_name(name) for name in shapes}
    if config.tied and not {"lm_head.weight", "model.embed_tokens.weight"} <= stored.keys():
        if "lm_head.weight" in stored:  # of the pair, which is one tensor, the head is what was written
            names["tok_embeddings.weight"] = "lm_head.weight"
        del names["output.weight"]
    if missing := [key for key in names.values() if key not in stored]:
        one_end = missing in (["lm_head.weight"], ["model.embed_tokens.weight"])
        hint = "; tie_word_embeddings isn't true" if one_end and not config.tied else ""
        raise FileError(f"{folder}: {listed(missing)} missing; expected {len(names)} tensors, got {len(stored)}{hint}")
    known = set(names.values())
    extra = [key for key in stored if key not in known and not key.endswith("rotary_emb.inv_freq")]
    if extra and not allow_extra:
        raise FileError(
            f"{stored[extra[0]].path}: {listed(extra)} not part of a Llama of this config; "
            "`allow_extra=True` ignores that"
        )
    for name, key in names.items():
        entry, shape = stored[key], shapes[name]
        if entry.shape != shape:
            field = _FIELDS.get(entry.key.split(".")[-2], "hidden_size")
            raise FileError(
                f"{entry.path}: {entry.key}: shape {list(entry.shape)}, expected {list(shape)} "
                f"(from config.json's {field})"
            )
        if not _DTYPES[entry.dtype][1]:
            raise FileError(f"{entry.path}: {entry.key}: dtype {entry.dtype}, expected F32, BF16 or F16")
    return {name: stored[key] for name, key in names.items()}


_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


def _weight_files(folder: Path) -> Iterator[tuple[Path, list[str] | None]]:
    """The folder's safetensors files, each with the keys that the index promises in it (None without an index)."""
    if (folder / _SINGLE).exists():
        yield folder / _SINGLE, None
        return
    if not (folder / _INDEX).exists():
        others = sorted(path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".bin"))
        raise FileError(f"{folder}: expected {_SINGLE} or {_INDEX}, found {', '.join(others[:3]) or 'neither'}")
    keys_of: dict[str, list[str]] = {}
    weight_map = read_json(folder / _INDEX, "the index of the weight files").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FileError(f"{folder / _INDEX}: weight_map must be an object that gives each tensor's file")
    for key, name in weight_map.items():
        # A name with a folder in it could lead anywhere on the disk.
        if not isinstance(name, str) or not name or name in (".", "..") or any(c in name for c in "/\\:\0"):
            raise FileError(f"{folder / _INDEX}: {key}: {name!r} refused, expected the name of a file beside the index")
        keys_of.setdefault(name, []).append(key)
    for name, keys in keys_of.items():
        if not (folder / name).exists():
            raise FileError(f"{folder / _INDEX}: {keys[0]} should be in {name}, which is missing; download it again")
        yield folder / name, keys


def _header(path: Path) -> dict[str, _Entry]:
    """A safetensors file's entries, after checking all of the header and that the data are as long as it says."""
    require_file(path, "a safetensors file")
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(8)
        length = int.from_bytes(first, "little")
        if len(first) < 8:
            raise FileError(f"{path}: {size} bytes, expected at least the 8 that a safetensors file begins with")
        if length > _HEADER_LIMIT:
            raise FileError(
                f"{path}: says that its header has {length} bytes, at most {_HEADER_LIMIT} are allowed; "
                "not a safetensors file, or damaged"
            )
        if 8 + length > size:
            raise FileError(f"{path}: truncated: its header has {length} bytes, the whole file {size}")
        text = file.read(length)

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        items: dict[str, Any] = {}
        for key, value in pairs:
            if key in items:
                raise FileError(f"{path}: key {key!r} stands twice in its header, expected once")
            items[key] = value
        return items

    try:
        header = json.loads(text.decode(), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path}: its header isn't valid JSON in UTF-8: {error}") from error
    if not isinstance(header, dict):
        raise FileError(f"{path}: its header is a {type(header).__name__}, expected an object")
    header.pop("__metadata__", None)
    spans = sorted((_span(path, key, item), key) for key, item in header.items())
    end = 0
    for (begin, stop), key in spans:
        if begin != end:
            trouble = "overlap" if begin < end else "hole"
            raise FileError(f"{path}: {key}: data begin at byte {begin}, expected {end} ({trouble} in the offsets)")
        end = stop
    if size - 8 - length != end:
        trouble = "truncated" if size - 8 - length < end else "trailing bytes"
        raise FileError(f"{path}: {trouble}: the header means {8 + length + end} bytes, the file has {size}")
    return {key: _Entry(path, key, item["dtype"], tuple(item["shape"])) for key, item in header.items()}


def _span(path: Path, key: str, item: Any) -> tuple[int, int]:
    """Where a header's item says its data lie, (begin, end) in bytes, after checking the item itself."""
    item = item if isinstance(item, dict) else {}
    dtype, shape, offsets = item.get("dtype"), item.get("shape"), item.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise FileError(f"{path}: {key}: unknown dtype {dtype!r}, expected one of {', '.join(_DTYPES)}")
    if not _naturals(shape) or len(shape) > 8:
        raise FileError(f"{path}: {key}: shape {str(shape)[:80]}, expected a list of at most 8 whole numbers")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise FileError(f"{path}: {key}: data_offsets {str(offsets)[:80]}, expected [begin, end]")
    wanted = math.prod(shape) * _DTYPES[dtype][0]
    if offsets[1] - offsets[0] != wanted:
        raise FileError(
            f"{path}: {key}: {dtype} of shape {shape} takes {wanted} bytes, its offsets hold {offsets[1] - offsets[0]}"
        )
    return offsets[0], offsets[1]


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)


def _config(data: dict[str, Any], path: Path) -> Config:
    """config.json's fields as a Config; a field that is absent means what transformers' LlamaConfig takes for it."""
    architectures = data.get("architectures") or ["LlamaForCausalLM"]
    if data.get("model_type") != "llama" or architectures != ["LlamaForCausalLM"]:
        raise FileError(
            f"{path}: not a Llama: model_type {data.get('model_type')!r}, architectures {architectures}; "
            "expected 'llama' and LlamaForCausalLM"
        )
    if quantization := data.get("quantization_config"):
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise FileError(f"{path}: quantization_config: {method!r} weights aren't read; take the unquantised model")
    for field, only in (
        ("hidden_act", "silu"),
        ("attention_bias", False),
        ("mlp_bias", False),
        ("partial_rotary_factor", 1),
    ):
        if (value := data.get(field) or only) != only:
            raise FileError(f"{path}: {field} is {json.dumps(value)}, a Llama 3 has {json.dumps(only)}")
    hidden, heads = int_field(data, "hidden_size", path), int_field(data, "num_attention_heads", path)
    context = int_field(data, "max_position_embeddings", path, default=2048)
    theta, scaling = _rope(data, path)
    try:
        return Config(
            dim=hidden,
            n_layers=int_field(data, "num_hidden_layers", path),
            n_heads=heads,
            n_kv_heads=int_field(data, "num_key_value_heads", path, default=heads),
            vocab_size=int_field(data, "vocab_size", path),
            hidden_dim=int_field(data, "intermediate_size", path),
            norm_eps=float_field(data, "rms_norm_eps", path, default=1e-6),
            rope_theta=theta,
            rope_scaling=scaling,
            max_seq_len=context,
            head_dim=int_field(data, "head_dim", path, default=None),
        )
    except UsageError as error:
        raise FileError(f"{path}: {error}") from error


def _rope(data: dict[str, Any], path: Path) -> tuple[float, RopeScaling | None]:
    """Theta and scaling, in transformers 4's spelling (rope_theta, rope_scaling), 5's (rope_parameters), or both."""
    spelt = {}
    for field in ("rope_scaling", "rope_parameters"):
        if (values := data.get(field)) is None:
            continue
        if not isinstance(values, dict):
            raise FileError(f"{path}: {field} must be an object or null, got {values!r}")
        theta = float_field(values, "rope_theta", path, default=float_field(data, "rope_theta", path, default=10_000.0))
        spelt[field] = theta, _scaling(values, field, path)
    if not spelt:
        return float_field(data, "rope_theta", path, default=10_000.0), None
    if len(spelt) == 2 and spelt["rope_scaling"] != spelt["rope_parameters"]:
        raise FileError(f"{path}: rope_scaling and rope_parameters disagree; expected the same RoPE, or one of the two")
    return spelt.popitem()[1]


def _scaling(values: dict[str, Any], field: str, path: Path) -> RopeScaling | None:
    kind = values.get("rope_type") or values.get("type") or "default"
    if values.get("partial_rotary_factor", 1) != 1:
        raise FileError(f"{path}: {field}.partial_rotary_factor is {values['partial_rotary_factor']}, a Llama has 1")
    if kind == "default":
        return None
    if kind != "llama3":
        raise FileError(f"{path}: {field}: RoPE of type {kind!r} isn't supported, expected 'llama3' or 'default'")
    low, high = float_field(values, "low_freq_factor", path), float_field(values, "high_freq_factor", path)
    if not low < high:
        raise FileError(f"{path}: {field}: low_freq_factor must be below high_freq_factor, got {low:g} and {high:g}")
    return RopeScaling(
        factor=float_field(values, "factor", path),
        low_freq_factor=low,
        high_freq_factor=high,
        original_context=int_field(values, "original_max_position_embeddings", path),
    )
