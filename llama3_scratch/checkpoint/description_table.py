"""A description as rows for a person and as JSON for a program."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from llama3_scratch.checkpoint.description import Description
from llama3_scratch.system.memory import MemoryPlan, available_memory, format_bytes

if TYPE_CHECKING:
    from llama3_scratch.text.tokenizer import Tokenizer


def as_json(found: Description, memory: MemoryPlan, context: int, batch: int) -> dict[str, Any]:
    tokenizer = found.tokenizer
    return {
        "source": found.source,
        "layout": found.layout,
        "config": asdict(found.config) | {"head_dim": found.config.head_dim},
        "n_parameters": found.config.n_parameters,
        "stored_bytes": found.stored,
        "forms": {
            form: {"weights": n_weights, "bytes": n_bytes, "bits_per_weight": round(8 * n_bytes / n_weights, 3)}
            for form, (n_weights, n_bytes) in found.forms.items()
        },
        "runs_as": found.runs_as,
        "kernels": found.kernels,
        "rope": found.rope,
        "tokenizer": tokenizer
        and {
            "n_words": tokenizer.n_words,
            "ranks": len(tokenizer.ranks),
            "special_tokens": len(tokenizer.special_tokens),
            "added_tokens": len(tokenizer.added_tokens),
            "bos_id": tokenizer.bos_id,
            "eos_id": tokenizer.eos_id,
            "stop_tokens": list(tokenizer.stop_tokens),
            "chat_format": tokenizer.chat_format,
        },
        "memory_bytes": asdict(memory)
        | {"allocated": memory.allocated, "free": available_memory(), "context": context, "batch": batch},
    }


def rows(found: Description, memory: MemoryPlan, context: int, batch: int) -> list[tuple[str, str]]:
    config, free = found.config, available_memory()
    enough = "" if free is None else f", {format_bytes(free)} are free"
    if free is not None and memory.allocated > free:
        enough = f", but only {format_bytes(free)} are free"
    return [
        ("model", found.source),
        ("layout", found.layout),
        ("parameters", f"{config.n_parameters:,}{', the head tied to the embedding' if config.tied else ''}"),
        ("stored as", _forms_row(found.forms)),
        ("runs as", found.runs_as),
        *([("kernels", found.kernels or _why_torch())] if found.kernels is not None else []),
        ("layers", f"{config.n_layers}, each {config.dim} wide, feed-forward {config.hidden_dim}"),
        ("heads", f"{config.n_heads} of queries, {config.n_kv_heads} of keys and values, each {config.head_dim} wide"),
        ("vocabulary", f"{config.vocab_size:,}"),
        ("context", f"{config.max_seq_len:,} tokens"),
        ("norm eps", f"{config.norm_eps:g}"),
        ("RoPE", found.rope),
        ("tokenizer", _tokenizer_row(found.tokenizer)),
        ("", ""),
        ("memory", f"for {context:,} tokens, {batch} prompt{'s' if batch > 1 else ''} at once, in float32 on a CPU"),
        ("weights", f"{format_bytes(memory.weights)} allocated, {format_bytes(memory.mapped)} mapped from the file"),
        ("KV cache", format_bytes(memory.cache)),
        ("activations", f"about {format_bytes(memory.activations)}"),
        ("together", f"{format_bytes(memory.allocated)} allocated{enough}"),
    ]


def _forms_row(forms: dict[str, tuple[int, int]]) -> str:
    """Each form with its bits a weight, scales included, the largest first."""
    rows = sorted(forms.items(), key=lambda row: -row[1][1])
    return ", ".join(f"{form} {format_bytes(size)} ({8 * size / n:.3g} bits a weight)" for form, (n, size) in rows)


def _tokenizer_row(tokenizer: Tokenizer | None) -> str:
    if tokenizer is None:
        return "not here"
    added = f"{len(tokenizer.added_tokens)} added words, " if tokenizer.added_tokens else ""
    return (
        f"{len(tokenizer.ranks):,} ranks, {len(tokenizer.special_tokens)} special tokens, {added}"
        f"chat format {tokenizer.chat_format or 'none'}, BOS {tokenizer.bos_id}, "
        f"stops at {', '.join(map(str, tokenizer.stop_tokens))}"
    )


def _why_torch() -> str:
    from llama3_scratch.native.kernels import why_torch

    return why_torch()
