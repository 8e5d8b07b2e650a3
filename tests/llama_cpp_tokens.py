"""llama.cpp's own tokens: a tiny Llama with a given vocabulary in a GGUF file, asked in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# llama.cpp ends its process where it meets something that it can't read.
ASK = """
import json, os, sys, urllib.request, xllamacpp
answers = []
for path, texts in json.loads(sys.stdin.read()):
    options = xllamacpp.CommonParams()
    options.model.path, options.hostnames, options.port = path, ["127.0.0.1"], 0
    options.n_ctx, options.n_parallel, options.warmup, options.verbosity = 64, 1, False, -1
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(options)
    answers.append([])
    for text, special in texts:
        body = json.dumps({"content": text, "add_special": False, "parse_special": special}).encode()
        kind = {"Content-Type": "application/json"}
        request = urllib.request.Request(server.listening_address + "/tokenize", body, kind)
        answers[-1].append(json.loads(urllib.request.urlopen(request).read())["tokens"])
print(json.dumps(answers), flush=True)
os._exit(0)
"""


def write_vocabulary(path: Path, words: list[str], kinds: list[int], merges: list[str], **values: Any) -> Path:
    """A GGUF file of a Llama as small as llama.cpp loads it; `values` are tokenizer.ggml's, None for those left out."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(32)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    for name, value in values.items():
        if isinstance(value, str):
            writer.add_string(f"tokenizer.ggml.{name}", value)
        elif isinstance(value, bool):
            writer.add_bool(f"tokenizer.ggml.{name}", value)
        elif value is not None:
            writer.add_uint32(f"tokenizer.ggml.{name}", value)
    square = np.zeros((32, 32), np.float32)
    writer.add_tensor("token_embd.weight", np.zeros((len(words), 32), np.float32))
    writer.add_tensor("output_norm.weight", np.ones(32, np.float32))
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"blk.0.{name}.weight", square)
    for name in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.0.{name}.weight", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def llama_cpp_tokens(files: list[tuple[Path, list[tuple[str, bool]]]]) -> list[list[list[int]]]:
    """llama.cpp's ids of each file's texts, where True stands beside a text with its control tokens parsed."""
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("the package xllamacpp isn't installed")
    asked = json.dumps([[str(path), texts] for path, texts in files])
    done = subprocess.run([sys.executable, "-c", ASK], input=asked, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])
