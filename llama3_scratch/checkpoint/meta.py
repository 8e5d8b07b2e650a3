"""Meta's own folder: `consolidated.NN.pth` shards and `params.json`, read as they are and written the same way."""

from __future__ import annotations

import json
import logging
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from llama3_scratch.checkpoint.check import check, known_names, same
from llama3_scratch.checkpoint.params_json import params_json, read_params_json
from llama3_scratch.config import Config
from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.stored import FORM_KEYS, SIBLINGS, Params
from llama3_scratch.system.files import read_json, require_file
from llama3_scratch.system.json_fields import float_field
from llama3_scratch.system.memory import MemoryPlan, available_memory, require_memory
from llama3_scratch.system.writing import fresh_folder
from llama3_scratch.text.tokenizer import Tokenizer
from llama3_scratch.text.tokenizer_file import write_tokenizer
from llama3_scratch.tied import tie

log = logging.getLogger("llama3_scratch")

# Along which axis Meta's shards are joined; what isn't named here (the norms) is the same in every shard.
_AXIS = {"wq": 0, "wk": 0, "wv": 0, "w1": 0, "w3": 0, "output": 0, "tok_embeddings": 0, "wo": 1, "w2": 1}
# What Meta publishes in one shard only, and how it would be cut nobody has said.
_WHOLE_ONLY = (*(f".{part}" for part in FORM_KEYS), ".adaptor.A.weight", ".adaptor.B.weight")


def read_meta(
    folder: Path, *, rope_scale_factor: float | None = None, allow_extra: bool = False
) -> tuple[Config, Params]:
    """The config and the weights of a folder, shards merged.

    One shard stays memory-mapped; several are merged into memory of their own, one after another.
    """
    paths = shard_paths(folder)
    shards = [open_pth(path) for path in paths]
    config = read_params_json(folder / "params.json", shards, rope_scale_factor=rope_scale_factor)
    if allow_extra:
        known = known_names(config)
        shards = [{name: tensor for name, tensor in shard.items() if name in known} for shard in shards]
    _check_shards(shards, paths, config)
    _adopt_siblings(shards[0], folder / "params.json")
    tied = all([_tie(shard) for shard in shards])
    params = shards[0] if len(shards) == 1 else _merge(shards, paths, config)
    if tied:
        params |= _head(params)
    return replace(config, tied=tied), params


def shard_paths(folder: Path) -> list[Path]:
    """The folder's `consolidated.*.pth` in the order of their numbers, of which none may be missing."""
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise FileError(f"{folder}: expected a folder with consolidated.00.pth and so on, found {found}")
    numbered: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        if number := _SHARD.fullmatch(path.name):
            other = numbered.setdefault(int(number[1]), path)
            if other != path:
                raise FileError(f"{path}: has the number of {other.name}; take one of the two away")
    if not numbered:
        raise FileError(f"{folder}: no consolidated.00.pth, consolidated.01.pth and so on")
    if missing := list(islice((index for index in range(max(numbered)) if index not in numbered), 10)):
        names = ", ".join(f"consolidated.{index:02d}.pth" for index in missing)
        raise FileError(f"{folder}: {names} missing; found {', '.join(numbered[i].name for i in sorted(numbered))}")
    return [numbered[index] for index in sorted(numbered)]


def weight_files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """The file or files that each weight was read from: a shard has a part of every matrix, and all of a norm."""
    first, *others = (path.name for path in shard_paths(folder))
    cut = {name: others and name.removesuffix(".weight").rpartition(".")[2] in _AXIS for name in names}
    return {name: f"{first} … {others[-1]}" if cut[name] else first for name in names}


_SHARD = re.compile(r"consolidated\.(\d{1,9})\.pth", re.ASCII)


def says_instruct(folder: Path) -> bool:
    """Whether the folder's name says that its model chats: the files of Meta's base and instruct models are alike."""
    return any("instruct" in part.lower() for part in folder.resolve().parts[-2:])


def open_pth(path: Path) -> dict[str, Tensor]:
    """The tensors of one `.pth`, memory-mapped where its layout allows; nothing stored in it is executed."""
    require_file(path, "a torch checkpoint")
    stored, unmappable = _archive(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, on how the file was written: what matters of it follows
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=unmappable is None)
    except Exception as error:  # whatever a damaged pickle can raise
        # torch's own message may go on to advise weights_only=False, which would run what the file says.
        if code := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise FileError(f"{path}: refused: contains code (GLOBAL {code[1]}), expected tensors only") from None
        size = f"{path.stat().st_size} bytes"
        if isinstance(error, pickle.UnpicklingError | LookupError) or "weights_only" in str(error):
            raise FileError(f"{path}: not a torch checkpoint ({size}); download it again") from None
        reason = str(error).partition("\n")[0][:200] or type(error).__name__
        raise FileError(f"{path}: damaged: {reason} ({size}); download it again") from None
    if unmappable:
        log.warning("%s: %s, so it's read into memory instead of mapped", path, unmappable)
    for key in ("model", "state_dict"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            beside = ", ".join(str(other) for other in loaded if other != key)
            log.warning("%s: the tensors lie under %r, taken from there%s", path, key, beside and f", without {beside}")
            loaded = loaded[key]
    if not isinstance(loaded, dict):
        raise FileError(f"{path}: expected a dict of tensors, got {type(loaded).__name__}")
    for name, tensor in loaded.items():
        if not isinstance(name, str):
            raise FileError(f"{path}: expected a dict of tensors by name, got the key {name!r}")
        if not isinstance(tensor, Tensor):
            raise FileError(f"{path}: {name}: expected a tensor, got {type(tensor).__name__}")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            form = "quantised" if tensor.is_quantized else "valueless" if tensor.is_meta else tensor.layout
            raise FileError(f"{path}: {name}: expected a dense tensor, got a {form} one")
    storages = [tensor.untyped_storage() for tensor in loaded.values()]
    used = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    if not unmappable and used > stored:  # torch doesn't look where it maps
        raise FileError(f"{path}: damaged: tensors of {used} bytes, stored are {stored}; download it again")
    # Llama 1 and 2 stored the RoPE table. Detached, because a saved Parameter would come back as one that trains.
    return {name: tensor.detach() for name, tensor in loaded.items() if not name.endswith("rope.freqs")}


def _archive(path: Path) -> tuple[int, str | None]:
    """Bytes of the tensors stored in the file, and why torch can't map them, if so.

    Also finds a truncated or incomplete archive, which torch words badly.
    """
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            return 0, "not a zip archive but torch's old format"
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        raise FileError(
            f"{path}: truncated: {path.stat().st_size} bytes, which don't end as the archive should; download it again"
        ) from None
    if not any(entry.filename.endswith("/data.pkl") for entry in entries):
        raise FileError(f"{path}: damaged: data.pkl is missing from the archive; download it again")
    compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    stored = sum(entry.file_size for entry in entries if "/data/" in entry.filename)
    return stored, "compressed" if compressed else None


def _check_shards(shards: list[dict[str, Tensor]], paths: list[Path], config: Config) -> None:
    """Raise FileError unless the shards belong to one model that can be merged."""
    first = shards[0]
    if fp8 := next((name for name, t in first.items() if str(t.dtype).startswith("torch.float8")), None):
        raise FileError(f"{paths[0]}: {fp8}: fp8 weights aren't read; take the bf16 release")
    for shard, path in zip(shards[1:], paths[1:], strict=True):
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
    if len(shards) > 1 and (sibling := next((name for name in first if name.endswith(_WHOLE_ONLY)), None)):
        raise FileError(
            f"{paths[0]}: {sibling}: quantised weights and adapters are read from one shard, got {len(shards)}"
        )
    wk = first.get("layers.0.attention.wk.weight")
    if wk is not None and wk.ndim == 2 and wk.shape[0] * len(shards) > config.n_kv_heads * config.head_dim:
        raise FileError(
            f"{paths[0]}: layers.0.attention.wk.weight: {len(shards)} shards hold "
            f"{wk.shape[0] * len(shards) // config.head_dim} key/value heads, n_kv_heads in params.json is "
            f"{config.n_kv_heads}"
        )


def _axis(name: str, part: Tensor, config: Config) -> int | None:
    """The axis along which the shards' parts of a weight are joined; None where each has the whole."""
    if name == "tok_embeddings.weight" and part.shape[-1] != config.dim:
        return 1  # Llama 2's way
    return _AXIS.get(name.removesuffix(".weight").rpartition(".")[2])


def _merge(shards: list[dict[str, Tensor]], paths: list[Path], config: Config) -> Params:
    """One dict of whole tensors. Empties `shards`: each is unmapped once it's copied, so the peak is the model and one.

    Nothing is allocated before the sizes are known to be right.
    """
    count, axes = len(shards), {name: _axis(name, part, config) for name, part in shards[0].items()}
    whole: Params = {}
    for name, part in shards[0].items():
        shape = [length * count if axis == axes[name] else length for axis, length in enumerate(part.shape)]
        whole[name] = torch.empty(shape, dtype=part.dtype, device="meta")
    check(whole, config, paths[0].parent)
    for name, first in shards[0].items():
        for shard, path in zip(shards[1:], paths[1:], strict=True):
            off = 0.0 if axes[name] is not None else (shard[name].float() - first.float()).abs().max().item()
            if not off <= 1e-2:
                log.warning("%s: %s differs from %s by %.3g, the first is taken", path, name, paths[0].name, off)
    del first, shard
    require_memory(MemoryPlan(0, sum(tensor.nbytes for tensor in whole.values()), 0, 0), available_memory())
    merged = {name: torch.empty_like(tensor, device="cpu") for name, tensor in whole.items()}
    for index in range(count):
        for name, part in shards.pop(0).items():
            axis = axes[name]
            if axis is not None:
                merged[name].narrow(axis, index * part.shape[axis], part.shape[axis]).copy_(part)
            elif index == 0:
                merged[name].copy_(part)
    return merged


def _adopt_siblings(params: Params, path: Path) -> None:
    """Give Meta's int4 releases the forms of `linear`: a scale in each adapter, scales of one a row in a column.

    Meta keeps the one scale of all adapters in `params.json`.
    """
    for name in params:
        if name.endswith((".scales", ".zeros")) and params[name].ndim == 1:
            params[name] = params[name][:, None]
    names = [name.removesuffix("A.weight") for name in params if name.endswith(".adaptor.A.weight")]
    if not names:
        return
    lora = read_json(path, "params.json").get("lora_args")
    if not isinstance(lora, dict):
        raise FileError(f"{path}: lora_args is missing, expected the rank and scale of {names[0].removesuffix('.')}")
    scale = float_field(lora, "scale", path)
    params |= {f"{name}scale": torch.tensor(scale) for name in names}


def _tie(params: Params) -> bool:
    """Make `output.weight` the embedding where it's absent or a copy; whether it is."""
    tok, output = params.get("tok_embeddings.weight"), params.get("output.weight")
    if tok is None:
        return False
    if output is None:
        params |= _head(params)
        return True
    siblings = [(params.get(f"tok_embeddings.{part}"), params.get(f"output.{part}")) for part in SIBLINGS]
    if not all(same(ours, theirs) for ours, theirs in [(tok, output), *siblings]):
        return False
    params |= _head(params)
    return True


def _head(params: Params) -> Params:
    """The embedding's tensors, whatever its form, under the names of a tied head."""
    embedding = ((part, params.get(f"tok_embeddings.{part}")) for part in ("weight", *FORM_KEYS))
    return {f"output.{part}": tensor for part, tensor in embedding if tensor is not None}


def write_meta(folder: Path, params: Params, config: Config, tokenizer: Tokenizer | None, *, shards: int = 1) -> None:
    """Write Meta's layout: shards, `params.json`, the tokenizer. The folder appears whole or not at all."""
    params = tie(params, config)
    for field in ("n_heads", "n_kv_heads", "hidden_dim", "vocab_size"):
        if getattr(config, field) % shards:
            raise UsageError(f"`shards` {shards} doesn't divide {field} {getattr(config, field)}")
    if shards > 1 and (sibling := next((name for name in params if name.endswith(_WHOLE_ONLY)), None)):
        raise UsageError(f"`shards` {shards}: quantised weights and adapters go into one shard, here is {sibling}")
    with fresh_folder(folder) as temporary:
        (temporary / "params.json").write_text(
            json.dumps(params_json(config, params), indent=2) + "\n", encoding="utf-8"
        )
        if tokenizer is not None:
            write_tokenizer(tokenizer, temporary, extra_file=not says_instruct(folder))
        for index in range(shards):
            part = {
                name: _part(tensor, _axis(name, tensor, config), index, shards)
                for name, tensor in params.items()
                if not name.endswith(".adaptor.scale") and not (config.tied and name in _head(params))
            }
            if config.tied:
                part |= _head(part)
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
