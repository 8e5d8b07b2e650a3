"""Hugging Face's layout: a folder of `config.json` and safetensors, read into Meta's names and row order.

Two things differ from Meta's files: the names, and the order of the rows of q and k within each head. Hugging Face
turns component i with i + K/2 where Meta turns neighbours, so its converter moved the rows to keep the scores equal.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from llama3_scratch.checkpoint.config_json import hf_config
from llama3_scratch.checkpoint.safetensors_file import (
    SAFETENSORS_DTYPES,
    TensorEntry,
    map_safetensors,
    read_safetensors_header,
)
from llama3_scratch.config import Config, expected
from llama3_scratch.errors import FileError
from llama3_scratch.params.hf_layout import hf_name, interleaved, rotated_heads
from llama3_scratch.system.files import listed, read_json

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


def read_hf(folder: Path, *, allow_extra: bool = False) -> tuple[Config, Params]:
    """The config and the weights, mapped and in their stored dtypes; only q and k are copied, to reorder their rows."""
    from llama3_scratch.checkpoint.check import same

    config, entries = _headers(folder, allow_extra)
    found: Params = {}
    for path in dict.fromkeys(entry.path for entry in entries.values()):
        found |= map_safetensors(path, {name: entry.key for name, entry in entries.items() if entry.path == path})
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
    return config, {name: (entry.shape, SAFETENSORS_DTYPES[entry.dtype][1]) for name, entry in entries.items()}


def weight_files(folder: Path) -> dict[str, str]:
    """The file that each stored weight, by Meta's name, was read from."""
    return {name: entry.path.name for name, entry in _headers(folder, allow_extra=True)[1].items()}


def _headers(folder: Path, allow_extra: bool) -> tuple[Config, dict[str, TensorEntry]]:
    """Config and entries by Meta's name, in the forward's order, after every check that needs no weights.

    `config.tied` is what config.json says, which a stored head may contradict.
    """
    config_path = folder / "config.json"
    data = read_json(config_path, "Hugging Face's config.json")
    config = hf_config(data, config_path)
    stored: dict[str, TensorEntry] = {}
    for path, promised in _weight_files(folder):
        header = read_safetensors_header(path)
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


def _matched(stored: dict[str, TensorEntry], config: Config, folder: Path, allow_extra: bool) -> dict[str, TensorEntry]:
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
        if not SAFETENSORS_DTYPES[entry.dtype][1]:
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
