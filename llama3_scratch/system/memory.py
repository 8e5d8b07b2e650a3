"""What a model takes in memory and what is free, told before anything large is allocated. No torch here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from llama3_scratch.config import Config
from llama3_scratch.errors import ResourceError

_F32 = 4


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes. `mapped` weights stay in their file, where the system reads them when needed: they aren't allocated."""

    mapped: int
    weights: int
    cache: int
    activations: int

    @property
    def allocated(self) -> int:
        return self.weights + self.cache + self.activations


def memory_plan(
    config: Config,
    *,
    context: int,
    batch: int = 1,
    mapped: int = 0,
    weights: int = 0,
    cache_bytes: float = _F32,
    chunk: int = 512,
) -> MemoryPlan:
    """The plan for `batch` prompts of `context` tokens each, answer included, `cache_bytes` a number in the cache.

    Activations are an estimate: the widest moment of a layer, when `chunk` tokens of each prompt run through it.
    """
    tokens = batch * min(chunk, context)
    # f32 copies on the way: gate, up, their product, one more; the residual stream, its norms, q, k, v and the sums.
    heads = config.n_heads * config.head_dim
    layer = tokens * (4 * config.hidden_dim + 8 * config.dim + 4 * heads) * _F32
    mask = tokens * context * (1 + _F32)
    logits = 2 * batch * config.vocab_size * _F32
    return MemoryPlan(mapped, weights, config.kv_bytes(context, batch, cache_bytes), layer + mask + logits)


def available_memory() -> int | None:
    """Bytes of main memory that can be had now, a container's limit included; None where the system doesn't say."""
    try:
        meminfo = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines())
        free = int(meminfo["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        try:
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, ValueError, OSError):
            return None
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text(encoding="utf-8"))  # "max" where there is none
        used = int((group / "memory.current").read_text(encoding="utf-8"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines())
        return min(free, limit - used + int(stat["file"]))  # pages of files count as used, but are given up
    except (OSError, KeyError, ValueError):
        return free


def require_memory(plan: MemoryPlan, free: int | None) -> None:
    """Raise ResourceError, with the plan and what to lower, if it takes more than `free` bytes; None is unknown."""
    if free is None or plan.allocated <= free:
        return
    if plan.weights > free:
        remedy = "take a smaller model, or one file in its own dtype (Meta's or Hugging Face's), which is only mapped"
    else:
        remedy = "lower `max_seq_len` or `max_tokens`, give fewer prompts at once, or take a smaller model"
    parts = {"weights": plan.weights, "KV cache": plan.cache, "activations": plan.activations}
    table = ", ".join(f"{name} {format_bytes(n_bytes)}" for name, n_bytes in parts.items() if n_bytes)
    raise ResourceError(
        f"needs {format_bytes(plan.allocated)} of memory ({table}), {format_bytes(free)} are free; {remedy}"
    )


def format_bytes(n_bytes: int) -> str:
    """Bytes for people: `2.47 GB`, `540 MB`."""
    for unit, scale in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n_bytes >= scale:
            return f"{n_bytes / scale:.3g} {unit}" if n_bytes < 999.5 * scale else f"{n_bytes / scale:.0f} {unit}"
    return f"{n_bytes} bytes" if n_bytes else "nothing"
