"""PEFT's layout of an adapter, written."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

from llama3_scratch.checkpoint.hf_out import write_safetensors
from llama3_scratch.checkpoint.peft import ENDS, PREFIX, SAFETENSORS_FILE
from llama3_scratch.checkpoint.peft_config import CONFIG_FILE
from llama3_scratch.config import Config
from llama3_scratch.errors import UsageError
from llama3_scratch.params.hf_layout import half_split, hf_name, rotated_heads
from llama3_scratch.params.lora import adapted
from llama3_scratch.stored import Params
from llama3_scratch.system.writing import fresh_folder


def write_peft(folder: Path, params: Params, config: Config, *, base: str | None = None, rslora: bool = False) -> None:
    """Write the adapters beside the weights of `params` as PEFT reads them; `base` names the model that they're for.

    Alpha is said as scale · rank, or with `rslora` as scale · √rank. The folder appears whole or not at all.
    """
    names = adapted(params)
    if not names:
        raise UsageError(f"{folder}: there are no adapters to write; attach some first")
    magnitudes = [f"{name}.adaptor.magnitude" in params for name in names]
    if any(magnitudes) != all(magnitudes):
        raise UsageError(f"{folder}: some of the adapters are DoRA's, some aren't, which {CONFIG_FILE} can't say")
    tensors: Params = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for name in names:
        module = hf_name(f"{name}.weight").removesuffix(".weight")
        heads = rotated_heads(name, config)
        for part, end in ENDS.items():
            if (tensor := params.get(f"{name}.adaptor.{part}")) is not None:
                turned = half_split(tensor, heads) if heads and part != "A.weight" else tensor
                tensors[f"{PREFIX}{module}{end}"] = turned.detach().cpu().contiguous()
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
        (temporary / CONFIG_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        write_safetensors(temporary / SAFETENSORS_FILE, tensors)


def _short(alpha: float) -> float:
    """The whole number that a scale in f32 was made of, where there is one."""
    return round(alpha) if math.isclose(alpha, round(alpha), rel_tol=1e-6) else alpha
