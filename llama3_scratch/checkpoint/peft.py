"""PEFT's layout of an adapter, read: `adapter_config.json` and `adapter_model.safetensors`.

As in Hugging Face's layout of the weights, the rows of q and k are in another order: of B (rows × rank) and of DoRA's
magnitudes, while A (rank × columns) is the same in both.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path

import torch

from llama3_scratch.checkpoint.check import scan
from llama3_scratch.checkpoint.meta import open_pth
from llama3_scratch.checkpoint.peft_config import (
    CONFIG_FILE,
    check_settings,
    named_modules,
    pattern_setting,
    targeted_modules,
)
from llama3_scratch.checkpoint.safetensors_file import read_safetensors
from llama3_scratch.config import Config, expected
from llama3_scratch.errors import FileError
from llama3_scratch.params.hf_layout import hf_name, interleaved, rotated_heads
from llama3_scratch.stored import FLOATS, Params, dtype_name
from llama3_scratch.system.files import listed, read_json
from llama3_scratch.system.json_fields import float_field, int_field

log = logging.getLogger("llama3_scratch")

SAFETENSORS_FILE, _PICKLED = "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
_VOCABULARY = ("model.embed_tokens", "lm_head")  # what has a row a token
ENDS = {"A.weight": ".lora_A.weight", "B.weight": ".lora_B.weight", "magnitude": ".lora_magnitude_vector"}


def read_peft(folder: Path, config: Config) -> Params:
    """The adapters in a folder that PEFT wrote, by the names of the weights of `config` beside which they stand."""
    if not folder.is_dir():
        raise FileError(
            f"{folder}: not found, expected the folder of an adapter with {CONFIG_FILE} and {SAFETENSORS_FILE}"
        )
    path = folder / CONFIG_FILE
    settings = read_json(path, "PEFT's adapter_config.json")
    check_settings(settings, path)
    shapes = expected(config)
    modules = {hf_name(name).removesuffix(".weight"): name for name in shapes}
    targeted = targeted_modules(settings, path, [module for module in modules if len(shapes[modules[module]]) == 2])
    if "model.embed_tokens" in targeted:
        raise FileError(f"{path}: target_modules: an adapter of the embedding (embed_tokens) isn't supported")
    file, found = _tensors(folder)
    parts = _by_module(found, modules, file)
    adapted_ones = [module for module, its in parts.items() if its.keys() != {"weight"}]
    if settings.get("target_modules") and (
        more := [module for module in adapted_ones if module not in targeted and len(shapes[modules[module]]) == 2]
    ):
        raise FileError(
            f"{file}: {PREFIX}{more[0]} has an adapter, which {CONFIG_FILE} doesn't name among its modules and PEFT "
            "ignores; correct one of the two"
        )
    saved = named_modules(settings, "modules_to_save", path, list(modules))
    missing = [module for module in targeted if "A.weight" not in parts.get(module, ())]
    missing += [module for module in saved if "weight" not in parts.get(module, ())]
    made: Params = {}
    for module, its in parts.items():
        name, stem = modules[module], modules[module].removesuffix("weight")
        rank = pattern_setting(settings, "rank_pattern", module, path) or int_field(settings, "r", path)
        alpha = pattern_setting(settings, "alpha_pattern", module, path) or float_field(settings, "lora_alpha", path)
        _check_module(module, its, rank, shapes[name], bool(settings.get("use_dora")), file)
        heads = rotated_heads(name, config)
        for part, tensor in its.items():
            turned = interleaved(tensor, heads) if heads and part != "A.weight" else tensor
            made[stem + (part if part == "weight" else f"adaptor.{part}")] = turned
        if its.keys() != {"weight"}:
            scale = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
            made[f"{stem}adaptor.scale"] = torch.tensor(scale)
    if missing:
        raise FileError(
            f"{file}: {listed(missing)} missing, though {CONFIG_FILE} names {len(targeted) + len(saved)} modules"
        )
    scan(found, file)
    return made


def _tensors(folder: Path) -> tuple[Path, Params]:
    for name, reader in ((SAFETENSORS_FILE, read_safetensors), (_PICKLED, open_pth)):
        if (folder / name).exists():
            return folder / name, reader(folder / name)
    raise FileError(
        f"{folder}: {SAFETENSORS_FILE} is missing, and {_PICKLED} too; expected one of them beside {CONFIG_FILE}"
    )


def _by_module(found: Params, modules: dict[str, str], file: Path) -> dict[str, Params]:
    """The parts of each module's adapter by the ends of `lora`'s names, and `weight` where it was saved whole.

    PEFT saves a head that has an adapter whole too, which is then the base model's own.
    """
    parts: dict[str, Params] = {}
    for key, tensor in found.items():
        part = next((part for part, end in ENDS.items() if key.endswith(end)), "weight")
        module = key.removeprefix(PREFIX).removesuffix(ENDS.get(part, ".weight")).removesuffix(".base_layer")
        if module not in modules or not key.startswith(PREFIX):
            if key.endswith(".bias"):
                raise FileError(f"{file}: {key}: a bias, and no linear of a Llama has one; its adapter isn't supported")
            raise FileError(
                f"{file}: {key} isn't part of an adapter of this model, expected names as "
                f"{PREFIX}model.layers.0.self_attn.q_proj{ENDS['A.weight']}"
            )
        parts.setdefault(module, {})[part] = tensor
    if not parts:
        raise FileError(f"{file}: holds no tensors, expected an adapter's; save it again")
    return {module: parts[module] for module in modules if module in parts}


def _check_module(module: str, its: Params, rank: int, shape: tuple[int, ...], dora: bool, file: Path) -> None:
    """Raise FileError unless a module's adapter is whole and fits a weight of `shape`."""
    wanted: dict[str, tuple[int, ...]] = {"weight": shape}
    if its.keys() != {"weight"} and len(shape) == 2:
        rows, columns = shape
        wanted |= {"A.weight": (rank, columns), "B.weight": (rows, rank)} | ({"magnitude": (rows,)} if dora else {})
        if missing := [part for part in wanted if part not in its and part != "weight"]:
            there = ", ".join(ENDS[part][1:] for part in its if part != "weight")
            raise FileError(f"{file}: {PREFIX}{module}{ENDS[missing[0]]} is missing, there is {there}")
    for part, tensor in its.items():
        key = f"{PREFIX}{module}{ENDS.get(part, '.weight')}"
        if part not in wanted:
            what = "a magnitude, but use_dora isn't true" if len(shape) == 2 else "an adapter of a norm, which none has"
            raise FileError(f"{file}: {key}: {what}; see {CONFIG_FILE}")
        found, expects = tuple(tensor.shape), wanted[part]
        if not tensor.numel():
            raise FileError(
                f"{file}: {key}: shape {list(found)}, expected {list(expects)}; an empty tensor is what saving from "
                "within DeepSpeed's ZeRO-3 leaves, gather the weights before"
            )
        if tensor.dtype not in FLOATS:
            raise FileError(f"{file}: {key}: dtype {dtype_name(tensor.dtype)}, expected float32, bfloat16 or float16")
        if found != expects and part != "A.weight" and module in _VOCABULARY and found[1:] == expects[1:]:
            raise FileError(
                f"{file}: {key}: {found[0]} rows, this model's vocabulary has {expects[0]}: the adapter was trained "
                "after its size was changed; merge it with PEFT into the base model of that size "
                "(resize_token_embeddings, merge_and_unload) and give the merged model"
            )
        if found != expects:
            other = {"A.weight": found[1:] != expects[1:], "B.weight": found[:1] != expects[:1]}.get(part, True)
            size = " × ".join(map(str, shape))
            why = (
                f"this model's weight is {size}; the adapter is another model's"
                if other
                else f"from {CONFIG_FILE}'s r or rank_pattern"
            )
            raise FileError(f"{file}: {key}: shape {list(found)}, expected {list(expects)} ({why})")
