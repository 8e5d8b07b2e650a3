"""PEFT's adapter_config.json: what it may say, and which modules of a Llama it means."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llama3_scratch.errors import FileError
from llama3_scratch.system.json_fields import float_field, int_field

CONFIG_FILE = "adapter_config.json"

# What adapter_config.json may say: fields that are read here, fields that say how the adapter was trained or began and
# nothing about what it computes, and the one value of others that means what is computed here.
_READ = (
    "r",
    "lora_alpha",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "use_dora",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "modules_to_save",
)
_TRAINING = (
    *("auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "lora_dropout", "peft_version"),
    *("megatron_core", "qalora_group_size", "runtime_config", "loftq_config", "eva_config", "corda_config"),
    *("lora_ga_config", "fan_in_fan_out"),  # the latter is for weights that are stored transposed, which PEFT sees
)
_ONLY: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "task_type": (None, "CAUSAL_LM"),
    "bias": ("none", "all", "lora_only"),  # no linear of a Llama has one; a bias among the tensors is refused
    # Of other beginnings (pissa, olora, corda, loftq …) the weights were changed too, which this folder doesn't hold.
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
}


def check_settings(settings: dict[str, Any], path: Path) -> None:
    """Raise FileError for a field that means something which isn't computed here: nothing is ignored."""
    for field, value in settings.items():
        if field in _ONLY and value not in _ONLY[field]:
            wanted = " or ".join(json.dumps(only) for only in _ONLY[field])
            raise FileError(f"{path}: {field} is {json.dumps(value)}, which isn't supported; expected {wanted}")
        if field not in (*_READ, *_TRAINING, *_ONLY) and value:
            raise FileError(
                f"{path}: {field} is {json.dumps(value):.99}, which isn't supported; merge the adapter with PEFT's "
                "merge_and_unload and give the merged model"
            )
    for field in ("use_rslora", "use_dora"):
        if settings.get(field) not in (None, False, True):
            raise FileError(f"{path}: {field} must be true or false, got {settings[field]!r}")


def pattern_setting(settings: dict[str, Any], field: str, module: str, path: Path) -> Any:
    """What rank_pattern or alpha_pattern says of a module: its first key that ends the name, as PEFT has it."""
    patterns = settings.get(field) or {}
    if not isinstance(patterns, dict):
        raise FileError(f"{path}: {field} must be an object, got {patterns!r:.99}")
    key = next((key for key in patterns if _match(rf"(.*\.)?({key})$", module, field, path)), None)
    if key is None:
        return None
    return (int_field if field == "rank_pattern" else float_field)(patterns, key, path)


def targeted_modules(settings: dict[str, Any], path: Path, modules: list[str]) -> list[str]:
    """The matrices that an adapter stands beside, as PEFT's `check_target_module_exists` finds them."""
    said = settings.get("target_modules")
    if isinstance(said, str) and said.lower() == "all-linear":
        chosen = [module for module in modules if module.startswith("model.layers.")]
    else:
        chosen = named_modules(settings, "target_modules", path, modules)
    excluded = [*_matching(settings, "exclude_modules", path, modules), *_whole(settings, path, modules)]
    layers = settings.get("layers_to_transform")
    if layers is not None and layers != [] and not isinstance(said, str):
        numbers = layers if isinstance(layers, list) else [layers]
        if not all(type(number) is int for number in numbers):
            raise FileError(f"{path}: layers_to_transform must be a list of whole numbers, got {layers!r:.99}")
        chosen = [module for module in chosen if module in (said or []) or _layer(settings, path, module) in numbers]
    return [module for module in chosen if module not in excluded]


def _layer(settings: dict[str, Any], path: Path, module: str) -> int | None:
    """The number of a module's layer, found as layers_pattern says."""
    said = settings.get("layers_pattern") or [r"[^.]*"]
    patterns = [said] if isinstance(said, str) else said
    if not isinstance(patterns, list) or not all(isinstance(pattern, str) for pattern in patterns):
        raise FileError(f"{path}: layers_pattern must be a name or a list of names, got {said!r:.99}")
    for pattern in patterns:
        if found := _match(rf"(?:^|.*?\.)(?:{pattern})\.(\d+)\.", module, "layers_pattern", path):
            return int(found[found.re.groups])
    return None


def _whole(settings: dict[str, Any], path: Path, modules: list[str]) -> list[str]:
    """The modules within modules_to_save, which get no adapters."""
    names = settings.get("modules_to_save") or []
    names = names if isinstance(names, list) else []
    return [m for m in modules for n in names if _match(rf"(^|.*\.){n}($|\..*)", m, "modules_to_save", path)]


def named_modules(settings: dict[str, Any], field: str, path: Path, modules: list[str]) -> list[str]:
    """The modules that a field names, FileError if it names some and none is a Llama's."""
    chosen = _matching(settings, field, path, modules)
    if settings.get(field) and not chosen:
        said = settings[field]
        names = f"{said!r} fits" if isinstance(said, str) else f"{', '.join(map(repr, said))} is"
        kinds = ", ".join(dict.fromkeys(module.rpartition(".")[2] for module in modules))
        raise FileError(f"{path}: {field}: {names} no module of a Llama, expected some of {kinds}")
    return chosen


def _matching(settings: dict[str, Any], field: str, path: Path, modules: list[str]) -> list[str]:
    """The modules whose names end as one of a list says, or that a pattern fits. Other names of a list fit nothing."""
    said = settings.get(field) or []
    if isinstance(said, str):
        return [module for module in modules if _match(said, module, field, path, re.fullmatch)]
    if not (isinstance(said, list) and all(isinstance(end, str) for end in said)):
        raise FileError(f"{path}: {field} must be a list of names or a pattern, got {said!r:.99}")
    return [module for module in modules if any(f".{module}".endswith(f".{end}") for end in said)]


def _match(
    pattern: str, module: str, field: str, path: Path, how: Callable[[str, str], re.Match[str] | None] = re.match
) -> re.Match[str] | None:
    try:
        return how(pattern, module)
    except re.error as error:
        raise FileError(f"{path}: {field}: {pattern!r:.99} isn't a pattern: {error}") from error
