"""Llama 3 from scratch: pure functions over Meta's own weights.

    import llama3_scratch as l3

    ck = l3.load("smollm2-135m")
    logits_BTV = l3.forward(tokens_BT, ck.params, ck.config)

Every module is an attribute too: `l3.linear.linear`, `l3.stream.stream`.

Importing the package has one effect on the process: OpenMP's threads, which are torch's, sleep while they wait instead
of spinning (`wait_policy`). Set OMP_WAIT_POLICY yourself, before Python starts, to keep your own.
"""

# ruff: noqa: F401
from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from llama3_scratch.wait_policy import sleep_while_waiting

if TYPE_CHECKING:
    from llama3_scratch.cache import NO_CACHE, Cache, RaggedCache
    from llama3_scratch.checkpoint.load import Checkpoint, load
    from llama3_scratch.config import OFFICIAL, Config, RopeScaling, expected
    from llama3_scratch.errors import Llama3Error
    from llama3_scratch.model import block, decode, embed, forward, fused_block, unembed
    from llama3_scratch.sample import sampler

sleep_while_waiting()

# Imported at first use: torch takes seconds, and `--help` needs none of it.
_HOME = {
    "cache": ("NO_CACHE", "Cache", "RaggedCache"),
    "checkpoint.load": ("Checkpoint", "load"),
    "config": ("OFFICIAL", "Config", "RopeScaling", "expected"),
    "errors": ("Llama3Error",),
    "model": ("block", "decode", "embed", "forward", "fused_block", "unembed"),
    "sample": ("sampler",),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _MODULE:
        return getattr(importlib.import_module(f"{__name__}.{_MODULE[name]}"), name)
    if not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}"):
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_MODULE]
