"""Writing Hugging Face's layout, so that transformers and vLLM serve what is trained here."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from llama3_scratch.config import Config, expected
from llama3_scratch.errors import UsageError
from llama3_scratch.params.hf_layout import half_split, hf_name, rotated_heads
from llama3_scratch.stored import FLOATS, Params, dtype_name
from llama3_scratch.system.writing import fresh_folder
from llama3_scratch.text.hf_tokenizer import write_tokenizer_json
from llama3_scratch.text.tokenizer import Tokenizer
from llama3_scratch.tied import tie


def write_hf(
    folder: Path,
    params: Params,
    config: Config,
    tokenizer: Tokenizer | None,
    *,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Write config.json, safetensors and the tokenizer. The folder appears whole or not at all.

    More than `max_shard_bytes` of weights become several files and an index. A tied head is left out, as transformers
    does.
    """
    params = tie(params, config)
    names = [name for name in expected(config) if not (config.tied and name == "output.weight")]
    if config.rope_divisors is not None:
        raise UsageError("this model's RoPE divides each frequency by a number of its own, which config.json can't say")
    if others := [name for name in params if name not in names and name != "output.weight"]:
        raise UsageError(
            f"{others[0]}: quantised weights and adapters have no place in a Hugging Face folder of a Llama"
        )
    if odd := [name for name in names if params[name].dtype not in FLOATS]:
        raise UsageError(f"{odd[0]}: dtype {params[odd[0]].dtype}, expected float32, bfloat16 or float16")
    with fresh_folder(folder) as temporary:
        _write_json(temporary / "config.json", config_json(params, config, tokenizer))
        _write_json(temporary / "generation_config.json", _token_ids(tokenizer))
        if tokenizer is not None:
            write_tokenizer_json(tokenizer, temporary)
        groups = list(_groups(params, names, max_shard_bytes))
        weight_map: dict[str, str] = {}
        for number, group in enumerate(groups, 1):
            several = f"-{number:05d}-of-{len(groups):05d}" if len(groups) > 1 else ""
            path = temporary / f"model{several}.safetensors"
            write_safetensors(path, {hf_name(name): _rows(params[name], name, config) for name in group})
            weight_map |= {hf_name(name): path.name for name in group}
        if len(groups) > 1:
            total = sum(params[name].nbytes for name in names)
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            _write_json(temporary / "model.safetensors.index.json", index)


def _groups(params: Params, names: list[str], max_bytes: int) -> Iterator[list[str]]:
    """The names in runs of at most `max_bytes` bytes of weights; a tensor larger than that stands alone."""
    group: list[str] = []
    size = 0
    for name in names:
        if group and size + params[name].nbytes > max_bytes:
            yield group
            group, size = [], 0
        group.append(name)
        size += params[name].nbytes
    yield group


def _rows(tensor: Tensor, name: str, config: Config) -> Tensor:
    heads = rotated_heads(name, config)
    return (half_split(tensor, heads) if heads else tensor).detach().contiguous()


def write_safetensors(path: Path, tensors: Params, metadata: dict[str, str] | None = None) -> None:
    """Write one file of tensors, contiguous each; OSError where it can't be."""
    try:
        save_file(tensors, path, metadata={"format": "pt", **(metadata or {})})
    except SafetensorError as error:
        raise OSError(str(error)) from error
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)  # the library leaves the file to its owner alone


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def _token_ids(tokenizer: Tokenizer | None) -> dict[str, Any]:
    if tokenizer is None:
        return {"bos_token_id": None, "eos_token_id": None}
    stops = list(tokenizer.stop_tokens)
    return {"bos_token_id": tokenizer.bos_id, "eos_token_id": stops[0] if len(stops) == 1 else stops or None}


def config_json(params: Params, config: Config, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """config.json with RoPE in both spellings: transformers 5 reads rope_parameters, 4 the other two."""
    dtype = dtype_name(params["tok_embeddings.weight"].dtype)
    scaling = config.rope_scaling and {
        "rope_type": "llama3",
        "factor": config.rope_scaling.factor,
        "low_freq_factor": config.rope_scaling.low_freq_factor,
        "high_freq_factor": config.rope_scaling.high_freq_factor,
        "original_max_position_embeddings": config.rope_scaling.original_context,
    }
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": config.hidden_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
        "rope_parameters": {"rope_theta": config.rope_theta, **(scaling or {"rope_type": "default"})},
        "tie_word_embeddings": config.tied,
        **_token_ids(tokenizer),
        "dtype": dtype,
        "torch_dtype": dtype,
    }
