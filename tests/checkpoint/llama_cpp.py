"""llama.cpp beside our own: what it says of a GGUF that we wrote."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llama3_scratch.cache import Cache
from llama3_scratch.config import Config
from llama3_scratch.inference.sample import sampler
from llama3_scratch.model import forward
from llama3_scratch.stored import Params

# In a process of its own, since llama.cpp ends its process where it meets something that it can't read.
LLAMA_CPP = """
import json, os, sys, xllamacpp
path, prompt, n, sampling = json.loads(sys.argv[1])
options = xllamacpp.CommonParams()
options.model.path = path
options.n_ctx, options.n_parallel, options.warmup, options.verbosity = 512, 1, False, -1
options.cpuparams.n_threads = options.cpuparams_batch.n_threads = 2
options.cache_type_k = options.cache_type_v = type(options.cache_type_k)(0)  # F32
server = xllamacpp.Server(options)
request = {"prompt": prompt, "max_tokens": n, "temperature": 0, "cache_prompt": False, "logprobs": 1, **sampling}
print(json.dumps(server.handle_completions(request)), flush=True)
os._exit(0)
"""


def llama_cpp(path: Path, prompt: str | list[int], n: int, **sampling: float) -> tuple[list[int], str]:
    """llama.cpp's greedy continuation, by what else its sampling may be: (ids, text)."""
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("the package xllamacpp isn't installed")
    arguments = json.dumps([str(path), prompt, n, sampling])
    done = subprocess.run([sys.executable, "-c", LLAMA_CPP, arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    (choice,) = json.loads(done.stdout.splitlines()[-1])["choices"]
    return [token["id"] for token in choice["logprobs"]["content"]], choice["text"]


def greedy(prompt: list[int], params: Params, config: Config, n: int, **sampling: float) -> list[int]:
    """Our greedy continuation in f32, ends of text and all."""
    cache, ids, choose = Cache(len(prompt) + n), list(prompt), sampler(**sampling)
    for _ in range(n):
        tokens_BT = torch.tensor([ids[cache.length :]])
        logits_BTV = forward(tokens_BT, params, config, cache=cache, dtype=torch.float32)
        ids.append(choose(logits_BTV[0, -1], ids))
    return ids[len(prompt) :]
