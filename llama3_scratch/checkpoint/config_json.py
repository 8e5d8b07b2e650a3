"""Hugging Face's config.json as a Config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llama3_scratch.config import Config, RopeScaling
from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.system.json_fields import float_field, int_field


def hf_config(data: dict[str, Any], path: Path) -> Config:
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
