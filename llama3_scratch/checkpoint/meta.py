"""Meta's own folder: `consolidated.NN.pth` shards and `params.json`, read as they are and written the same way."""

from __future__ import annotations

import json
import logging
import pickle
import re
import zipfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from llama3_scratch.checkpoint.params_json import params_json, read_params_json
from llama3_scratch.config import Config
from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.files import fresh_folder, read_json, real, require_file
from llama3_scratch.linear import Params
from llama3_scratch.memory import Plan, available, require
from llama3_scratch.tokenizer import Tokenizer, write_tokenizer

log = logging.getLogger("llama3_scratch")

# Along which axis Meta's shards are joined; what isn't named here (the norms) is the same in every shard.
_AXIS = {"wq": 0, "wk": 0, "wv": 0, "w1": 0, "w3": 0, "output": 0, "tok_embeddings": 0, "wo": 1, "w2": 1}


def read_meta(folder: Path, *, rope_scale_factor: float | None = None) -> tuple[Config, Params]:
    """The config and the weights of a folder, shards merged.

    One shard stays memory-mapped; several are merged tensor by tensor into memory of their own.
    """
    shards = shard_paths(folder)
    dicts = [open_pth(path) for path in shards]
    config = read_params_json(folder / "params.json", dicts, rope_scale_factor=rope_scale_factor)
    _check_shards(dicts, shards, config)
    params = dicts[0] if len(dicts) == 1 else _merge(dicts, config)
    _adopt_adaptors(params, folder / "params.json")
    tied = _tie(params)
    return replace(config, tied=tied), params


def shard_paths(folder: Path) -> list[Path]:
    """The folder's `consolidated.*.pth` in the order of their numbers, of which none may be missing."""
    numbered = {int(found[1]): path for path in folder.iterdir() if (found := _SHARD.fullmatch(path.name))}
    missing = sorted(set(range(max(numbered, default=-1) + 1)) - set(numbered))
    if missing:
        names = ", ".join(f"consolidated.{index:02d}.pth" for index in missing)
        raise FileError(f"{folder}: {names} missing; found {', '.join(numbered[i].name for i in sorted(numbered))}")
    return [numbered[index] for index in sorted(numbered)]


_SHARD = re.compile(r"consolidated\.(\d+)\.pth")


def open_pth(path: Path) -> dict[str, Tensor]:
    """The tensors of one `.pth`, memory-mapped where its layout allows; nothing stored in it is executed."""
    require_file(path, "a torch checkpoint")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=_mappable(path))
    except pickle.UnpicklingError as error:
        # torch's own message goes on to advise weights_only=False, which would run what the file says.
        if code := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise FileError(f"{path}: refused: contains code (GLOBAL {code[1]}), expected tensors only") from None
        raise FileError(f"{path}: not a torch checkpoint; download it again") from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise FileError(
            f"{path}: damaged: {reason or type(error).__name__} ({path.stat().st_size} bytes); download it again"
        ) from None
    if isinstance(loaded, dict) and set(loaded) <= {"model", "state_dict"} and len(loaded) == 1:
        (key, loaded) = next(iter(loaded.items()))
        log.warning("%s: the tensors lie under %r, taken from there", path, key)
    if not isinstance(loaded, dict):
        raise FileError(f"{path}: expected a dict of tensors, got {type(loaded).__name__}")
    for name, tensor in loaded.items():
        if not isinstance(tensor, Tensor):
            raise FileError(f"{path}: {name}: expected a tensor, got {type(tensor).__name__}")
    return {name: tensor for name, tensor in loaded.items() if name != "rope.freqs"}  # Llama 1 and 2 stored the table


def _mappable(path: Path) -> bool:
    """Whether torch can map the file; also finds a truncated or incomplete archive, which torch words badly."""
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            log.warning("%s: not a zip archive (torch's old format?), read into memory instead of mapped", path)
            return False
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, NotImplementedError):
        raise FileError(f"{path}: truncated at {path.stat().st_size} bytes; download it again") from None
    if not any(entry.filename.endswith("/data.pkl") for entry in entries):
        raise FileError(f"{path}: damaged: data.pkl is missing from the archive; download it again")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        log.warning("%s: compressed, so it's read into memory instead of mapped", path)
        return False
    return True


def _check_shards(dicts: list[dict[str, Tensor]], paths: list[Path], config: Config) -> None:
    """Raise FileError unless the shards belong to one model."""
    first = dicts[0]
    if fp8 := next((name for name, t in first.items() if str(t.dtype).startswith("torch.float8")), None):
        raise FileError(f"{paths[0]}: {fp8}: fp8 weights aren't read; take the bf16 release")
    for shard, path in zip(dicts[1:], paths[1:], strict=True):
        if difference := sorted(set(first) ^ set(shard)):
            where = path if difference[0] in first else paths[0]
            raise FileError(f"{where}: {difference[0]} is missing, other shards have it ({len(difference)} such keys)")
        for name, tensor in shard.items():
            if tensor.dtype != first[name].dtype:
                raise FileError(f"{path}: {name}: dtype {tensor.dtype}, but {first[name].dtype} in {paths[0].name}")
            if tensor.shape != first[name].shape:
                raise FileError(
                    f"{path}: {name}: shape {list(tensor.shape)}, but {list(first[name].shape)} in {paths[0].name}; "
                    "a shard of another model?"
                )
            if _axis(name) is None and (off := (tensor.float() - first[name].float()).abs().max().item()) > 1e-2:
                log.warning("%s: %s differs from %s by %.3g, the first is taken", path, name, paths[0].name, off)
    if len(dicts) > 1 and any(name.endswith(".scales") for name in first):
        raise FileError(f"{paths[0]}: quantised weights in {len(dicts)} shards, expected one shard")
    wk = first.get("layers.0.attention.wk.weight")
    if wk is not None and wk.ndim == 2 and wk.shape[0] * len(dicts) > config.n_kv_heads * config.head_dim:
        raise FileError(
            f"{paths[0]}: {len(dicts)} shards hold {wk.shape[0] * len(dicts) // config.head_dim} key/value heads, "
            f"n_kv_heads in params.json is {config.n_kv_heads}"
        )


def _axis(name: str) -> int | None:
    return _AXIS.get(name.removesuffix(".weight").rpartition(".")[2])


def _merge(dicts: list[dict[str, Tensor]], config: Config) -> Params:
    """One dict of whole tensors; each shard's part is let go once it's copied."""
    require(Plan(0, sum(tensor.nbytes for shard in dicts for tensor in shard.values()), 0, 0), available())
    merged: Params = {}
    for name in list(dicts[0]):
        parts, axis = [shard.pop(name) for shard in dicts], _axis(name)
        if name == "tok_embeddings.weight" and parts[0].shape[-1] != config.dim:
            axis = 1  # Llama 2's way
        merged[name] = parts[0].clone() if axis is None else torch.cat(parts, dim=axis)
    return merged


def _adopt_adaptors(params: Params, path: Path) -> None:
    """Meta keeps the one scale of all its adapters in `params.json`; here each has its own, beside its A and B."""
    names = [name.removesuffix("A.weight") for name in params if name.endswith(".adaptor.A.weight")]
    if not names:
        return
    scale = real(read_json(path, "params.json").get("lora_args") or {}, "scale", path)
    params |= {f"{name}scale": torch.tensor(scale) for name in names}


def _tie(params: Params) -> bool:
    """Make `output.weight` the embedding where it's absent or a copy; whether it is."""
    tok, output = params.get("tok_embeddings.weight"), params.get("output.weight")
    if tok is None:
        return False
    if output is None:
        params |= {name.replace("tok_embeddings", "output"): t for name, t in params.items() if name.startswith("tok_")}
        return True
    if output.shape != tok.shape or output.dtype != tok.dtype or tok.ndim != 2:
        return False
    shared = output.data_ptr() == tok.data_ptr()
    # The first row decides nearly always, so an untied model of many gigabytes isn't read for this.
    if shared or (torch.equal(output[:1], tok[:1]) and torch.equal(output, tok)):
        params["output.weight"] = tok
        return True
    return False


def write_meta(folder: Path, params: Params, config: Config, tokenizer: Tokenizer | None, *, shards: int = 1) -> None:
    """Write Meta's layout: shards, `params.json`, the tokenizer. The folder appears whole or not at all."""
    for field in ("n_heads", "n_kv_heads", "hidden_dim", "vocab_size"):
        if getattr(config, field) % shards:
            raise UsageError(f"--shards {shards} doesn't divide {field} {getattr(config, field)}")
    with fresh_folder(folder) as temporary:
        (temporary / "params.json").write_text(json.dumps(params_json(config, params), indent=2) + "\n")
        if tokenizer is not None:
            write_tokenizer(tokenizer, temporary)
        for index in range(shards):
            part = {name: _part(tensor, _axis(name), index, shards) for name, tensor in params.items()}
            part = {name: tensor for name, tensor in part.items() if not name.endswith(".adaptor.scale")}
            if config.tied:
                part["output.weight"] = part["tok_embeddings.weight"]
            try:
                torch.save(part, temporary / f"consolidated.{index:02d}.pth")
            except RuntimeError as error:  # torch's writer meets a full disk as a wrong file position
                raise OSError(str(error).partition("\n")[0]) from error


def _part(tensor: Tensor, axis: int | None, index: int, shards: int) -> Tensor:
    """The tensor's share in one shard, in a storage of its own: torch.save writes whole storages."""
    if axis is not None and shards > 1:
        tensor = tensor.chunk(shards, dim=axis)[index]
    whole_storage = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if whole_storage else tensor.clone(memory_format=torch.contiguous_format)
