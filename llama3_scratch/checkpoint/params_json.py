"""Meta's `params.json`: the model's sizes, some of them by formula, some left for the weights to say."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from llama3_scratch.config import Config, RopeScaling, hidden_dim, rope_factor
from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.stored import Params
from llama3_scratch.system.files import read_json
from llama3_scratch.system.json_fields import float_field, int_field

log = logging.getLogger("llama3_scratch")

_KNOWN = {
    "dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "vocab_size", "multiple_of", "ffn_dim_multiplier",
    "norm_eps", "rope_theta", "use_scaled_rope", "rope_scaling_factor", "max_seq_len", "max_batch_size",
    "context_length",
    "quantization_args", "lora_args", "vision_model", "vision_chunk_size", "vision_max_num_chunks",
    "vision_num_cross_attention_layers",
}  # fmt: skip
_SCHEME = "int4_weight_int8_dynamic_activation"


def read_params_json(
    path: Path, shards: list[dict[str, Tensor]] | None = None, *, rope_scale_factor: float | None = None
) -> Config:
    """The Config that a `params.json` and the shards' shapes mean; what one leaves open the other decides."""
    data = read_json(path, "params.json, the model's sizes")
    if unknown := sorted(set(data) - _KNOWN):
        log.warning("%s: unknown keys ignored: %s", path, ", ".join(unknown))
    _refuse_other_models(data, path)
    shards = shards or [{}]
    dim, n_heads = int_field(data, "dim", path), int_field(data, "n_heads", path)
    scaled = data.get("use_scaled_rope") or False
    if not isinstance(scaled, bool):
        raise FileError(f"{path}: use_scaled_rope must be true or false, got {scaled!r}")
    vocab_size = _vocab_size(data, path, shards, dim)
    if vocab_size == 32000 and "rope_theta" not in data:
        raise FileError(
            f"{path}: vocab_size 32000 without rope_theta is Llama 1 or 2, which needs SentencePiece; take a Llama 3"
        )
    head_dim = int_field(data, "head_dim", path, None)
    _check_count(path, shards, dim, n_heads * head_dim if head_dim else dim, vocab_size)
    n_layers = int_field(data, "n_layers", path)
    if shards[0] and n_layers > len(shards[0]):  # before a table is made of what may be a billion layers
        raise FileError(f"{path}: n_layers is {n_layers}, but the weights have only {len(shards[0])} tensors")
    try:
        config = Config(
            dim=dim,
            n_layers=n_layers,
            n_heads=n_heads,
            n_kv_heads=int_field(data, "n_kv_heads", path, n_heads),
            vocab_size=vocab_size,
            hidden_dim=_hidden_dim(data, path, shards, dim),
            norm_eps=float_field(data, "norm_eps", path, 1e-5),
            rope_theta=float_field(data, "rope_theta", path, 500_000.0),
            max_seq_len=int_field(data, "context_length", path, _context(data, scaled)),
            head_dim=head_dim,
        )
    except UsageError as error:
        raise FileError(f"{path}: {error}") from error
    return replace(config, rope_scaling=_rope_scaling(data, path, config, scaled, rope_scale_factor))


def _matrix(shards: list[dict[str, Tensor]], name: str) -> Tensor | None:
    """A shard's part of a weight, where it's there and a matrix."""
    part = shards[0].get(f"{name}.weight")
    return part if part is not None and part.ndim == 2 else None


def _vocab_size(data: dict[str, Any], path: Path, shards: list[dict[str, Tensor]], dim: int) -> int:
    stated, tok = data.get("vocab_size"), _matrix(shards, "tok_embeddings")
    if stated not in (None, -1):
        return int_field(data, "vocab_size", path)
    if tok is None:
        raise FileError(f"{path}: vocab_size is {stated}, and there is no tok_embeddings.weight that says it")
    rows = tok.shape[0] * (len(shards) if tok.shape[1] == dim else 1)  # Llama 2 cut the embedding's columns
    log.warning("%s: vocab_size is %s, taken from tok_embeddings.weight: %d", path, stated, rows)
    return rows


def _check_count(path: Path, shards: list[dict[str, Tensor]], dim: int, n_rows: int, vocab_size: int) -> None:
    """Raise FileError if a part of wq, of which all shards together have `n_rows`, means more or fewer shards."""
    wq, tok = _matrix(shards, "layers.0.attention.wq"), _matrix(shards, "tok_embeddings")
    if wq is None or wq.shape[1] != dim or n_rows % wq.shape[0] or n_rows // wq.shape[0] == len(shards):
        return
    implied, rows = n_rows // wq.shape[0], f"{wq.shape[0]} rows of wq"
    if tok is not None:
        rows = f"{tok.shape[0]} rows of tok_embeddings and {rows}"
    remedy = "the others are missing" if len(shards) < implied else "some belong to another model"
    raise FileError(
        f"{path.parent}: a shard has {rows}, so vocab_size {vocab_size} and dim {dim} imply {implied} shards, "
        f"found {len(shards)}; {remedy}"
    )


def _hidden_dim(data: dict[str, Any], path: Path, shards: list[dict[str, Tensor]], dim: int) -> int:
    """F by Meta's formula, or from w1 where the formula's numbers aren't given."""
    w1 = _matrix(shards, "layers.0.feed_forward.w1")
    found = None if w1 is None else w1.shape[0] * len(shards)
    multiple_of = int_field(data, "multiple_of", path, None)
    multiplier = float_field(data, "ffn_dim_multiplier", path, None)
    if multiple_of is None and multiplier is None and found is not None:
        log.info("%s: no multiple_of, the hidden size %d is taken from feed_forward.w1", path, found)
        return found
    multiple_of = multiple_of or 256
    try:
        hidden = hidden_dim(dim, multiple_of, multiplier)
    except OverflowError:
        raise FileError(f"{path}: ffn_dim_multiplier {multiplier:g} makes no hidden size") from None
    if found not in (None, hidden):
        raise FileError(
            f"{path}: multiple_of {multiple_of} and ffn_dim_multiplier {multiplier} mean a hidden size of "
            f"{hidden}, but layers.0.feed_forward.w1.weight has {found} rows"
        )
    return hidden


def _rope_scaling(
    data: dict[str, Any], path: Path, config: Config, scaled: bool, override: float | None
) -> RopeScaling | None:
    if not scaled:
        if override is not None:
            raise UsageError(f"`rope_scale_factor`: {path} has no use_scaled_rope, so there is nothing to scale")
        if "rope_scaling_factor" in data:
            log.warning("%s: rope_scaling_factor is ignored, use_scaled_rope isn't true", path)
        return None
    factor, why = rope_factor(config)
    if "rope_scaling_factor" in data:
        factor, why = float_field(data, "rope_scaling_factor", path), "params.json's rope_scaling_factor"
    if override is not None:
        factor, why = override, "`rope_scale_factor`"
    log.info("RoPE scaling factor %g: %s", factor, why)
    return RopeScaling(factor)


def _context(data: dict[str, Any], scaled: bool) -> int:
    """Llama 3.1 and later were trained to 131,072 tokens, but Meta's int4 releases of 3.2 to 8,192."""
    return 131_072 if scaled and not data.get("quantization_args") else 8192


def _refuse_other_models(data: dict[str, Any], path: Path) -> None:
    sizes = [data.get("vision_chunk_size"), data.get("vision_num_cross_attention_layers")]
    if data.get("vision_model") or any(isinstance(size, int) and size > 0 for size in sizes):
        raise FileError(f"{path}: this is a vision checkpoint, and this is a text-only program; take a text model")
    quantisation = data.get("quantization_args")
    if not quantisation:
        return
    args = quantisation if isinstance(quantisation, dict) else {"scheme": quantisation}
    if (scheme := args.get("scheme", _SCHEME)) != _SCHEME:
        raise FileError(
            f"{path}: quantization_args: only the scheme {_SCHEME} is read, got {scheme!r}; take the bf16 release"
        )
    # Of Meta's two int4 releases one has lora_args; the other is SpinQuant, though not every file says so.
    if args.get("spinquant", not data.get("lora_args")):
        raise FileError(
            f"{path}: quantization_args without lora_args, or with spinquant, is SpinQuant, whose weights need a "
            "Hadamard rotation at run time that isn't done here; take the QLoRA or the bf16 release"
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
        **({} if config.head_dim * config.n_heads == config.dim else {"head_dim": config.head_dim}),
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
    if any(name.endswith(".scales") and tensor.shape[-1] > 1 for name, tensor in params.items()):  # int4, as Meta's
        data["quantization_args"] = {"scheme": _SCHEME, "group_size": _group_size(params), "spinquant": False}
    adaptors = [name.removesuffix("A.weight") for name in params if name.endswith(".adaptor.A.weight")]
    if adaptors:
        numbers = {(params[f"{name}A.weight"].shape[0], params[f"{name}scale"].item()) for name in adaptors}
        if len(numbers) > 1:
            raise UsageError(f"params.json has one rank and scale for all adapters, got {sorted(numbers)}; merge them")
        [(rank, scale)] = numbers
        data["lora_args"] = {"rank": rank, "scale": scale}
    if config.max_seq_len != _context(data, scaling is not None):
        data["context_length"] = config.max_seq_len
    return data


def _group_size(params: Params) -> int:
    """Columns that share a scale in the projections; embedding and head have one a row."""
    names = [name.removesuffix("scales") for name in params if name.startswith("layers.") and name.endswith(".scales")]
    return min((params[f"{name}weight"].shape[1] // params[f"{name}scales"].shape[1] for name in names), default=32)


# Meta's own (multiple_of, ffn_dim_multiplier) by width; others can make the same hidden size.
_OFFICIAL_FFN = {2048: (256, 1.5), 3072: (256, 1.0), 4096: (1024, 1.3), 8192: (4096, 1.3), 16384: (4096, 1.2)}


def _ffn_numbers(config: Config) -> tuple[int, float | None]:
    """A (multiple_of, ffn_dim_multiplier) from which Meta's formula makes the hidden size; Meta's own where known."""
    exact = (1, (config.hidden_dim + 0.5) / int(2 * (4 * config.dim) / 3))
    choices = [
        _OFFICIAL_FFN.get(config.dim, (256, None)),
        *((multiple, None) for multiple in (256, 128, 64, 32, 16, 8, 4, 2, 1)),
        exact,
    ]
    return next(choice for choice in choices if hidden_dim(config.dim, *choice) == config.hidden_dim)
