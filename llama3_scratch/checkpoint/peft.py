"""PEFT's layout of an adapter: `adapter_config.json` and `adapter_model.safetensors`, read and written.

As in Hugging Face's layout of the weights, the rows of q and k are in another order: of B (rows × rank) and of DoRA's
magnitudes, while A (rank × columns) is the same in both.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from llama3_scratch.checkpoint.check import scan
from llama3_scratch.checkpoint.hf import read_safetensors
from llama3_scratch.checkpoint.hf_out import write_safetensors
from llama3_scratch.checkpoint.meta import open_pth
from llama3_scratch.config import Config, expected
from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.params.hf_layout import half_split, hf_name, interleaved, rotated_heads
from llama3_scratch.params.lora import adapted, stack
from llama3_scratch.stored import FLOATS, Params, dtype_name, stored
from llama3_scratch.system.files import float_field, fresh_folder, int_field, listed, read_json, text_field
from llama3_scratch.text.tokenizer import CHAT_TOKENS

if TYPE_CHECKING:
    from llama3_scratch.checkpoint.load import Checkpoint

log = logging.getLogger("llama3_scratch")

_CONFIG, _SAFE, _PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_PREFIX = "base_model.model."
_VOCABULARY = ("model.embed_tokens", "lm_head")  # what has a row a token
_ENDS = {"A.weight": ".lora_A.weight", "B.weight": ".lora_B.weight", "magnitude": ".lora_magnitude_vector"}

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


def read_peft(folder: Path, config: Config) -> Params:
    """The adapters in a folder that PEFT wrote, by the names of the weights of `config` beside which they stand."""
    if not folder.is_dir():
        raise FileError(f"{folder}: not found, expected the folder of an adapter with {_CONFIG} and {_SAFE}")
    path = folder / _CONFIG
    settings = read_json(path, "PEFT's adapter_config.json")
    _check_settings(settings, path)
    shapes = expected(config)
    modules = {hf_name(name).removesuffix(".weight"): name for name in shapes}
    targeted = _targeted(settings, path, [module for module in modules if len(shapes[modules[module]]) == 2])
    if "model.embed_tokens" in targeted:
        raise FileError(f"{path}: target_modules: an adapter of the embedding (embed_tokens) isn't supported")
    file, found = _tensors(folder)
    parts = _by_module(found, modules, file)
    adapted_ones = [module for module, its in parts.items() if its.keys() != {"weight"}]
    if settings.get("target_modules") and (
        more := [module for module in adapted_ones if module not in targeted and len(shapes[modules[module]]) == 2]
    ):
        raise FileError(
            f"{file}: {_PREFIX}{more[0]} has an adapter, which {_CONFIG} doesn't name among its modules and PEFT "
            "ignores; correct one of the two"
        )
    saved = _chosen(settings, "modules_to_save", path, list(modules))
    missing = [module for module in targeted if "A.weight" not in parts.get(module, ())]
    missing += [module for module in saved if "weight" not in parts.get(module, ())]
    made: Params = {}
    for module, its in parts.items():
        name, stem = modules[module], modules[module].removesuffix("weight")
        rank = _setting(settings, "rank_pattern", module, path) or int_field(settings, "r", path)
        alpha = _setting(settings, "alpha_pattern", module, path) or float_field(settings, "lora_alpha", path)
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
            f"{file}: {listed(missing)} missing, though {_CONFIG} names {len(targeted) + len(saved)} modules"
        )
    scan(found, file)
    return made


def _check_settings(settings: dict[str, Any], path: Path) -> None:
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


def _setting(settings: dict[str, Any], field: str, module: str, path: Path) -> Any:
    """What rank_pattern or alpha_pattern says of a module: its first key that ends the name, as PEFT has it."""
    patterns = settings.get(field) or {}
    if not isinstance(patterns, dict):
        raise FileError(f"{path}: {field} must be an object, got {patterns!r:.99}")
    key = next((key for key in patterns if _match(rf"(.*\.)?({key})$", module, field, path)), None)
    if key is None:
        return None
    return (int_field if field == "rank_pattern" else float_field)(patterns, key, path)


def _tensors(folder: Path) -> tuple[Path, Params]:
    for name, reader in ((_SAFE, read_safetensors), (_PICKLED, open_pth)):
        if (folder / name).exists():
            return folder / name, reader(folder / name)
    raise FileError(f"{folder}: {_SAFE} is missing, and {_PICKLED} too; expected one of them beside {_CONFIG}")


def _targeted(settings: dict[str, Any], path: Path, modules: list[str]) -> list[str]:
    """The matrices that an adapter stands beside, as PEFT's `check_target_module_exists` finds them."""
    said = settings.get("target_modules")
    if isinstance(said, str) and said.lower() == "all-linear":
        chosen = [module for module in modules if module.startswith("model.layers.")]
    else:
        chosen = _chosen(settings, "target_modules", path, modules)
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


def _chosen(settings: dict[str, Any], field: str, path: Path, modules: list[str]) -> list[str]:
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


def _by_module(found: Params, modules: dict[str, str], file: Path) -> dict[str, Params]:
    """The parts of each module's adapter by the ends of `lora`'s names, and `weight` where it was saved whole.

    PEFT saves a head that has an adapter whole too, which is then the base model's own.
    """
    parts: dict[str, Params] = {}
    for key, tensor in found.items():
        part = next((part for part, end in _ENDS.items() if key.endswith(end)), "weight")
        module = key.removeprefix(_PREFIX).removesuffix(_ENDS.get(part, ".weight")).removesuffix(".base_layer")
        if module not in modules or not key.startswith(_PREFIX):
            if key.endswith(".bias"):
                raise FileError(f"{file}: {key}: a bias, and no linear of a Llama has one; its adapter isn't supported")
            raise FileError(
                f"{file}: {key} isn't part of an adapter of this model, expected names as "
                f"{_PREFIX}model.layers.0.self_attn.q_proj{_ENDS['A.weight']}"
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
            there = ", ".join(_ENDS[part][1:] for part in its if part != "weight")
            raise FileError(f"{file}: {_PREFIX}{module}{_ENDS[missing[0]]} is missing, there is {there}")
    for part, tensor in its.items():
        key = f"{_PREFIX}{module}{_ENDS.get(part, '.weight')}"
        if part not in wanted:
            what = "a magnitude, but use_dora isn't true" if len(shape) == 2 else "an adapter of a norm, which none has"
            raise FileError(f"{file}: {key}: {what}; see {_CONFIG}")
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
                else f"from {_CONFIG}'s r or rank_pattern"
            )
            raise FileError(f"{file}: {key}: shape {list(found)}, expected {list(expects)} ({why})")


def write_peft(folder: Path, params: Params, config: Config, *, base: str | None = None, rslora: bool = False) -> None:
    """Write the adapters beside the weights of `params` as PEFT reads them; `base` names the model that they're for.

    Alpha is said as scale · rank, or with `rslora` as scale · √rank. The folder appears whole or not at all.
    """
    names = adapted(params)
    if not names:
        raise UsageError(f"{folder}: there are no adapters to write; attach some first")
    magnitudes = [f"{name}.adaptor.magnitude" in params for name in names]
    if any(magnitudes) != all(magnitudes):
        raise UsageError(f"{folder}: some of the adapters are DoRA's, some aren't, which {_CONFIG} can't say")
    tensors: Params = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for name in names:
        module = hf_name(f"{name}.weight").removesuffix(".weight")
        heads = rotated_heads(name, config)
        for part, end in _ENDS.items():
            if (tensor := params.get(f"{name}.adaptor.{part}")) is not None:
                turned = half_split(tensor, heads) if heads and part != "A.weight" else tensor
                tensors[f"{_PREFIX}{module}{end}"] = turned.detach().cpu().contiguous()
        ranks[module] = len(params[f"{name}.adaptor.A.weight"])
        scale = params[f"{name}.adaptor.scale"].item()
        alphas[module] = _short(scale * (math.sqrt(ranks[module]) if rslora else ranks[module]))
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    kinds = {module.rpartition(".")[2] for module in ranks}
    everywhere = len(ranks) == len(kinds - {"lm_head"}) * config.n_layers + ("lm_head" in kinds)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {module: its for module, its in ranks.items() if its != rank},
        "alpha_pattern": {module: its for module, its in alphas.items() if its != alpha},
        "target_modules": sorted(kinds if everywhere else ranks),
        "use_rslora": rslora,
        "use_dora": any(magnitudes),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    with fresh_folder(folder) as temporary:
        (temporary / _CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        write_safetensors(temporary / _SAFE, tensors)


def _short(alpha: float) -> float:
    """The whole number that a scale in f32 was made of, where there is one."""
    return round(alpha) if math.isclose(alpha, round(alpha), rel_tol=1e-6) else alpha


def add_adapters(checkpoint: Checkpoint, folders: list[Path]) -> Checkpoint:
    """The checkpoint with the adapters of these folders beside its weights, added up where they share some."""
    device = checkpoint.params["norm.weight"].device
    found = [read_peft(folder, checkpoint.config) for folder in folders]
    params = stack(checkpoint.params, *({name: tensor.to(device) for name, tensor in one.items()} for one in found))
    same = all(params[name] is checkpoint.params[name] for name in ("tok_embeddings.weight", "output.weight"))
    config = replace(checkpoint.config, tied=checkpoint.config.tied and same)
    checkpoint = replace(checkpoint, params=params, config=config)
    for folder in folders:
        _warn_of_another_base(folder, checkpoint.path)
    _warn_of_untrained_tokens(folders, checkpoint)
    return checkpoint


def _warn_of_another_base(folder: Path, path: Path) -> None:
    """Say so where the name of the model that an adapter is for isn't in this one's, or the other way round."""
    base = text_field(
        read_json(folder / _CONFIG, "PEFT's adapter_config.json"), "base_model_name_or_path", folder / _CONFIG
    )
    if not base or Path(base).expanduser().resolve() == path.resolve():
        return
    ours = path.resolve()
    names = [base.rstrip("/").rpartition("/")[2], (ours.parent if ours.name == "original" else ours).name]
    wanted, got = (re.sub(r"[^a-z0-9]", "", name.lower()) for name in names)
    if wanted not in got and got not in wanted:
        log.warning("%s: an adapter for %s, the model is %s; the sizes fit, the answers may not", folder, base, path)


def _warn_of_untrained_tokens(folders: list[Path], checkpoint: Checkpoint) -> None:
    """Say so where a chat format is made of tokens that a base model never saw: Llama 3's base models have such.

    Their rows of the embedding are as they began, next to zero or all alike, and adapters of projections don't mend it.
    """
    tokenizer, params = checkpoint.tokenizer, checkpoint.params
    if tokenizer is None:
        return
    chats = [folder for folder in folders if _has_template(folder)] or folders * (tokenizer.chat_format is not None)
    ids = {name: id for name in CHAT_TOKENS if (id := tokenizer.special_tokens.get(name)) is not None}
    if tokenizer.chat_format == "template" and tokenizer.chat_template:
        ids = {name: id for name, id in ids.items() if name in tokenizer.chat_template.source}
    if not chats or not ids:
        return
    weight = stored(params, "tok_embeddings")
    rows = weight.floats(torch.tensor(list(ids.values()), device=weight.values.device), torch.float32)
    norms = torch.linalg.vector_norm(rows, dim=1)
    usual = torch.linalg.vector_norm(weight.floats(slice(0, 1024), torch.float32), dim=1).median()
    alike = (rows[:, None] == rows).all(-1).sum(1) > 1
    untrained = (norms < 0.01 * usual) | alike
    if names := [name for name, bad in zip(ids, untrained.tolist(), strict=True) if bad]:
        log.warning(
            "%s: its chat format has %s, whose embeddings were never trained in this model; answers may not end or "
            "make sense. Take the instruct model and an adapter of it",
            chats[0],
            ", ".join(names),
        )


def _has_template(folder: Path) -> bool:
    path = folder / "tokenizer_config.json"
    inside = path.exists() and "chat_template" in read_json(path, "Hugging Face's tokenizer_config.json")
    return inside or (folder / "chat_template.jinja").exists()
