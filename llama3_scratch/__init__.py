"""Llama 3 from scratch: pure functions over Meta's own weights.

    import llama3_scratch as l3

    ck = l3.load("smollm2-135m")
    l3.answer(ck, "What is the capital of France?")
    logits_BTV = l3.forward(ck.tokenizer.encode("The capital of France is"), ck.params, ck.config)

Every module is an attribute too: `l3.linear.linear`, `l3.inference.stream.stream`.

Importing the package has one effect on the process: OpenMP's threads, which are torch's, sleep while they wait instead
of spinning (`wait_policy`). Set OMP_WAIT_POLICY yourself, before Python starts, to keep your own.
"""

# ruff: noqa: F401
from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from typing import TYPE_CHECKING, Any

from llama3_scratch import registry
from llama3_scratch.system.wait_policy import sleep_while_waiting

if TYPE_CHECKING:
    from llama3_scratch.cache import NO_CACHE, Cache
    from llama3_scratch.caches.paged import PagedCache
    from llama3_scratch.checkpoint.load import Checkpoint, load
    from llama3_scratch.config import OFFICIAL, Config, RopeScaling, expected
    from llama3_scratch.errors import Llama3Error
    from llama3_scratch.inference.choices import CacheChoice, DraftChoice, ModelChoice, PromptChoice, SamplingChoice
    from llama3_scratch.inference.engine.engine import Engine
    from llama3_scratch.inference.fast_forward import FastForward
    from llama3_scratch.inference.loading import open_model
    from llama3_scratch.inference.notebook import Talk, answer, stream_answer
    from llama3_scratch.inference.requests import Request
    from llama3_scratch.inference.sample import sampler
    from llama3_scratch.model import block, decode, embed, forward, fused_block, unembed

sleep_while_waiting()
registry.offer(lambda: importlib.import_module("llama3_scratch.native.kernels"))

# Imported at first use: torch takes seconds, and `--help` needs none of it.
_HOME = {
    "inference.choices": ("CacheChoice", "DraftChoice", "ModelChoice", "PromptChoice", "SamplingChoice"),
    "inference.engine.engine": ("Engine",),
    "inference.fast_forward": ("FastForward",),
    "inference.loading": ("open_model",),
    "inference.notebook": ("Talk", "answer", "stream_answer"),
    "cache": ("NO_CACHE", "Cache"),
    "caches.paged": ("PagedCache",),
    "checkpoint.load": ("Checkpoint", "load"),
    "config": ("OFFICIAL", "Config", "RopeScaling", "expected"),
    "errors": ("Llama3Error",),
    "model": ("block", "decode", "embed", "forward", "fused_block", "unembed"),
    "inference.requests": ("Request",),
    "inference.sample": ("sampler",),
}
MODULE_OF = {name: module for module, names in _HOME.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in MODULE_OF:
        return getattr(importlib.import_module(f"{__name__}.{MODULE_OF[name]}"), name)
    if not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}"):
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """What a person may want: the functions and classes above, and every module; nothing that this file imports."""
    modules = (module.name for module in pkgutil.iter_modules(__path__))
    special = (name for name in globals() if name.startswith("__"))
    return sorted({*MODULE_OF, *modules, *special})
