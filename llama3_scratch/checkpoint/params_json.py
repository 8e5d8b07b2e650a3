"""Meta's `params.json`: the model's sizes, some of them by formula, some left for the weights to say."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from llama3_scratch.config import OFFICIAL, Config, RopeScaling, hidden_dim, rope_factor
from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.files import read_json, real, whole
from llama3_scratch.linear import Params

log = logging.getLogger("llama3_scratch")

_KNOWN = {
    "dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of", "ffn_dim_multiplier", "norm_eps",
    "rope_theta", "use_scaled_rope", "rope_scaling_factor", "max_seq_len", "max_batch_size", "context_length",
    "hidden_dim", "quantization_args", "lora_args", "vision_chunk_size", "vision_max_num_chunks",
    "vision_num_cross_attention_layers",
}  # fmt: skip


def read_params_json(
    path: Path, shards: list[dict[str, Tensor]] | None = None, *, rope_scale_factor: float | None = None
) -> Config:
    """The Config that a `params.json` and the shards' shapes mean; what one leaves open the other decides."""
    data = read_json(path, "params.json, the model's sizes")
    if unknown := sorted(set(data) - _KNOWN - {"vision_model"}):
        log.warning("%s: unknown keys ignored: %s", path, ", ".join(unknown))
    _refuse_other_models(data, path)
    first = (shards or [{}])[0]
    tok, w1 = first.get("tok_embeddings.weight"), first.get("layers.0.feed_forward.w1.weight")
    n_shards = len(shards or [{}])
    dim, n_heads = whole(data, "dim", path), whole(data, "n_heads", path)

    rows = None
    if tok is not None and tok.ndim == 2:
        rows = tok.shape[0] * (n_shards if tok.shape[1] == dim else 1)
    vocab = data.get("vocab_size")
    if vocab in (None, -1):
        if rows is None:
            raise FileError(f"{path}: vocab_size is {vocab} and no tok_embeddings.weight says it")
        log.warning("%s: vocab_size is %s, taken from tok_embeddings.weight: %d", path, vocab, rows)
        vocab = rows
    vocab = whole({"vocab_size": vocab}, "vocab_size", path)
    if rows is not None and rows != vocab and tok is not None and vocab % tok.shape[0] == 0 and tok.shape[1] == dim:
        raise FileError(
            f"{path.parent}: tok_embeddings has {tok.shape[0]} rows x {n_shards} shards, but vocab_size {vocab} "
            f"implies {vocab // tok.shape[0]} shards, found {n_shards}; the others are missing"
        )
    if vocab == 32000 and "rope_theta" not in data:
        raise FileError(f"{path}: vocab_size 32000 without rope_theta is Llama 1 or 2, which needs SentencePiece")

    found_hidden = w1.shape[0] * n_shards if w1 is not None and w1.ndim == 2 else None
    multiple_of = whole(data, "multiple_of", path, None)
    multiplier = real(data, "ffn_dim_multiplier", path, None)
    if multiple_of or multiplier:
        hidden = hidden_dim(dim, multiple_of or 256, multiplier)
        if found_hidden not in (None, hidden):
            raise FileError(
                f"{path}: multiple_of {multiple_of or 256} and ffn_dim_multiplier {multiplier} mean a hidden size of "
                f"{hidden}, but layers.0.feed_forward.w1.weight has {found_hidden} rows"
            )
    elif found_hidden:
        hidden = found_hidden
        log.info("%s: no multiple_of, the hidden size %d is taken from feed_forward.w1", path, hidden)
    else:
        hidden = hidden_dim(dim)

    scaled = data.get("use_scaled_rope") or False
    if not isinstance(scaled, bool):
        raise FileError(f"{path}: use_scaled_rope must be true or false, got {scaled!r}")
    try:
        config = Config(
            dim=dim,
            n_layers=whole(data, "n_layers", path),
            n_heads=n_heads,
            n_kv_heads=whole(data, "n_kv_heads", path, n_heads),
            vocab_size=vocab,
            hidden_dim=hidden,
            norm_eps=real(data, "norm_eps", path, 1e-5),
            rope_theta=real(data, "rope_theta", path, 500_000.0),
            max_seq_len=whole(data, "context_length", path, _context(data, scaled)),
        )
    except UsageError as error:
        raise FileError(f"{path}: {error}") from error
    if not scaled:
        if rope_scale_factor is not None:
            raise UsageError(f"--rope-scale-factor: {path} has no use_scaled_rope, so there is nothing to scale")
        return config
    factor, why = rope_factor(config)
    if "rope_scaling_factor" in data:
        factor, why = real(data, "rope_scaling_factor", path), "params.json's rope_scaling_factor"
    if rope_scale_factor is not None:
        factor, why = rope_scale_factor, "--rope-scale-factor"
    log.info("RoPE scaling factor %g: %s", factor, why)
    return replace(config, rope_scaling=RopeScaling(factor))


def _context(data: dict[str, Any], scaled: bool) -> int:
    """Llama 3.1 and later were trained to 131,072 tokens, but Meta's int4 releases of 3.2 to 8,192."""
    return 131_072 if scaled and not data.get("quantization_args") else 8192


def _refuse_other_models(data: dict[str, Any], path: Path) -> None:
    vision = data.get("vision_model") or max(
        (value for key in ("vision_chunk_size", "vision_num_cross_attention_layers")
         if isinstance(value := data.get(key), int)), default=0
    )  # fmt: skip
    if vision and vision != -1:
        raise FileError(f"{path}: this is a vision checkpoint, and this is a text-only program")
    quantisation = data.get("quantization_args")
    if not quantisation:
        return
    scheme = quantisation.get("scheme") if isinstance(quantisation, dict) else quantisation
    if isinstance(quantisation, dict) and quantisation.get("spinquant"):
        raise FileError(
            f"{path}: SpinQuant weights need a Hadamard rotation at run time, which isn't done here; "
            "take the QLoRA or the bf16 release"
        )
    if scheme != "int4_weight_int8_dynamic_activation":
        raise FileError(
            f"{path}: quantization_args has scheme {scheme!r}, only int4_weight_int8_dynamic_activation is read; "
            "take the bf16 release"
        )


def params_json(config: Config, params: Params) -> dict[str, Any]:
    """What `read_params_json` reads back as `config`; Meta's keys first, ours only where Meta has no word for it."""
    if config.rope_divisors is not None:
        raise UsageError("RoPE divisors of its own (GGUF's rope_freqs) have no place in params.json")
    multiple_of, multiplier = _ffn_numbers(config)
    data: dict[str, Any] = {
        "dim": config.dim,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "n_kv_heads": config.n_kv_heads,
        "vocab_size": config.vocab_size,
        "multiple_of": multiple_of,
        **({} if multiplier is None else {"ffn_dim_multiplier": multiplier}),
        "norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
    }
    scaling = config.rope_scaling
    if scaling is not None:
        if replace(scaling, factor=8.0) != RopeScaling():
            raise UsageError(f"only the factor of a RoPE scaling has a place in params.json, got {scaling}")
        data["use_scaled_rope"] = True
        if scaling.factor != rope_factor(config)[0]:
            data["rope_scaling_factor"] = scaling.factor
    quantised = any(name.endswith(".scales") for name in params)
    if quantised:
        data["quantization_args"] = {"scheme": "int4_weight_int8_dynamic_activation", "group_size": 32}
    if adaptor := next((name for name in params if name.endswith(".adaptor.A.weight")), None):
        scale = params[adaptor.replace("A.weight", "scale")].item()
        data["lora_args"] = {"rank": params[adaptor].shape[0], "scale": scale}
    if config.max_seq_len != _context(data, scaling is not None):
        data["context_length"] = config.max_seq_len
    return data


def _ffn_numbers(config: Config) -> tuple[int, float | None]:
    """A (multiple_of, ffn_dim_multiplier) from which Meta's formula makes the hidden size; Meta's own where known."""
    choices = [(256, None), (1024, 1.3), (4096, 1.3), (4096, 1.2), (256, 1.5), (256, 1.0)]
    choices += [(multiple, None) for multiple in (128, 64, 32, 16, 8, 4, 2, 1)]
    base = int(2 * (4 * config.dim) / 3)
    choices.append((1, (config.hidden_dim + 0.5) / base))
    for known in OFFICIAL.values():
        if (known.dim, known.hidden_dim) == (config.dim, config.hidden_dim):
            choices = [choice for choice in choices if choice[1] is not None] + choices
    return next(choice for choice in choices if hidden_dim(config.dim, *choice) == config.hidden_dim)
