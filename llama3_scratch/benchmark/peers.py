"""What `bench` measures of others on the same weights: Hugging Face transformers, and llama.cpp by its own timings.

llama.cpp is that of a wheel, or its own program `llama-bench`, which can be built for this processor.
"""

from __future__ import annotations

import json
import random
import re
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from llama3_scratch.config import OFFICIAL, Config, expected
from llama3_scratch.errors import Llama3Error, UsageError
from llama3_scratch.system.timings import peak_rss_bytes

PEERS = {"hf": "transformers", "llama.cpp": "xllamacpp"}  # and the package that brings each
# llama.cpp's form beside each of ours: the one of as many bits, rounded as simply.
TWINS = {"f32": "F32", "bf16": "F16", "f16": "F16", "int8": "Q8_0", "int4": "Q4_0"}
# Bytes a weight of the layers, and of the head.
BYTES = {"F32": (4.0, 4.0), "F16": (2.0, 2.0), "Q8_0": (34 / 32, 34 / 32), "Q4_0": (18 / 32, 34 / 32)}
HF_BYTES = {"f32": 4, "bf16": 2}  # a weight
_PATIENCE = 120  # seconds that one measurement may take before it is left out


def llama_cpp_form(form: str) -> str:
    """llama.cpp's form to be compared with ours, of which the layers' counts."""
    return next((twin for ours, twin in TWINS.items() if form.startswith(ours)), "Q4_0")


def read_bytes(config: Config, layers: float, head: float) -> int:
    """Bytes of weights read for a token, with so many bytes a weight of the layers and of the head; norms are f32."""
    total = 0.0
    for name, shape in expected(config).items():
        if len(shape) == 1:
            total += 4 * shape[0]
        elif name != "tok_embeddings.weight":
            total += shape[0] * shape[1] * (head if name == "output.weight" else layers)
    return round(total)


class Files:
    """Writes what the peers read, in a process whose memory isn't theirs."""

    def __init__(self, *, model: str | None, shape: str | None) -> None:
        self._model, self._shape = model, shape

    def write(self, target: str, layout: str, kind: str | None = None) -> None:
        """Write "hf" or "gguf", the latter's matrices as `kind`."""
        if self._shape is not None:
            self._write_random(Path(target), kind or "F16")
            return
        from llama3_scratch.checkpoint.conversion import Conversion, convert
        from llama3_scratch.checkpoint.load import load
        from llama3_scratch.stored import quantised

        checkpoint = load(str(self._model))
        floats = layout == "hf" and quantised(checkpoint.params)  # a layout without integers
        convert(checkpoint, Path(target), Conversion(to=layout, type=kind, dtype="float32" if floats else None))

    def _write_random(self, target: Path, kind: str) -> None:
        import torch

        from llama3_scratch.checkpoint.gguf_out import write_gguf
        from llama3_scratch.text.tokenizer import PATTERN, Tokenizer

        assert self._shape is not None
        config = OFFICIAL[self._shape]
        # Every row is the same one, so that nothing is in memory but the tensor being written.
        shapes = expected(config).items()
        params = {name: (torch.randn(shape[-1]) * 0.02).expand(shape) for name, shape in shapes}
        ranks = {bytes([byte]): byte for byte in range(256)} | {b"th": 256}  # llama.cpp wants a merge
        words = Tokenizer(
            ranks,
            pattern=PATTERN,
            special_tokens={"<s>": 257, "</s>": 258},
            bos_id=257,
            eos_id=258,
            stop_tokens=[258],
            chat_format=None,
            add_bos=True,
        )
        write_gguf(target, params, config, words, kind=kind)


class HuggingFace:
    """transformers without its compiler, with its dynamic cache."""

    def __init__(
        self, *, folder: str | None, shape: str | None, form: str, batch: int, slots: int, threads: int
    ) -> None:
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[form]
        begun = time.perf_counter()
        if shape is not None:
            from llama3_scratch.checkpoint.hf_out import config_json

            sizes = config_json({"tok_embeddings.weight": torch.empty(0, dtype=dtype)}, OFFICIAL[shape], None)
            config = transformers.LlamaConfig.from_dict(sizes)
            self._model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
        else:
            assert folder is not None
            self._model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        self._model.eval()
        self._load_s = time.perf_counter() - begun
        generator = torch.Generator().manual_seed(0)
        self._prompts_BT = torch.randint(self._model.config.vocab_size, (batch, slots), generator=generator)
        self._cache: Any = None
        tried = min(8, slots)
        begun = time.perf_counter()
        self._prefill(tried)
        self._s_per_token = (time.perf_counter() - begun) / tried

    def about(self) -> dict[str, Any]:
        return {"load_s": self._load_s}

    def peak(self) -> int:
        return peak_rss_bytes()

    def prefill(self, tokens: int) -> float | None:
        """Seconds from `tokens` tokens of each prompt to the next token; None where it would take minutes."""
        if self._s_per_token * tokens > _PATIENCE:
            return None
        begun = time.perf_counter()
        self._prefill(tokens)
        return time.perf_counter() - begun

    def decode(self, tokens: int, context: int) -> float | None:
        """Seconds of `tokens` steps after `context` tokens of each prompt; None where it would take minutes."""
        if self._s_per_token * context > _PATIENCE:
            return None
        if not context:
            self._cache = None
        elif self._cache is None or self._cache.get_seq_length() < context:
            self._prefill(context)
        else:
            self._cache.crop(context)
        next_B1 = self._prompts_BT[:, context : context + 1]
        begun = time.perf_counter()
        for _ in range(tokens):
            next_B1 = self._step(next_B1)
        return time.perf_counter() - begun

    def _prefill(self, tokens: int) -> None:
        self._cache = None
        self._step(self._prompts_BT[:, :tokens])

    def _step(self, tokens_BT: Any) -> Any:
        out = self._model(tokens_BT, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._cache = out.past_key_values
        return out.logits[:, -1:].argmax(-1)


class LlamaCpp:
    """llama.cpp's server, called in this process; the seconds are those that it says itself."""

    def __init__(self, *, file: str, vocab_size: int, batch: int, slots: int, threads: int) -> None:
        import xllamacpp

        parameters = xllamacpp.CommonParams()
        parameters.model.path = file
        parameters.n_parallel = batch
        parameters.n_ctx = batch * -(-(slots + 2) // 256) * 256
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
        parameters.warmup = True
        parameters.verbosity = 0
        begun = time.perf_counter()
        self._server = xllamacpp.Server(parameters)
        self._load_s = time.perf_counter() - begun
        self._random = random.Random(0)
        self._vocab_size, self._batch = vocab_size, batch
        self._threads = ThreadPoolExecutor(batch)
        self._prompts = [self._prompt(slots) for _ in range(batch)]

    def about(self) -> dict[str, Any]:
        import xllamacpp

        features = re.findall(r"(\w+) = 1\b", xllamacpp.get_system_info())
        said = f"the wheel xllamacpp {xllamacpp.__version__}, compiled for {', '.join(features)}"
        return {
            "load_s": self._load_s,
            "build": f"{said}; faster where it is built for this processor, as scripts/native_llama_bench.sh does",
        }

    def peak(self) -> int:
        return peak_rss_bytes()

    def prefill(self, tokens: int) -> float:
        """Seconds of `tokens` tokens of each prompt."""
        prompts = [self._prompt(tokens) for _ in range(self._batch)]
        return max(timings["prompt_ms"] for timings in self._timings(prompts, 1, known=False)) / 1e3

    def decode(self, tokens: int, context: int) -> float:
        """Seconds of `tokens` steps after `context` tokens of each prompt."""
        prompts = [prompt[: context + 1] for prompt in self._prompts]
        # The first new token falls out of the prompt's last step: one more is asked for, and its time isn't counted.
        return max(timings["predicted_ms"] for timings in self._timings(prompts, tokens + 1, known=True)) / 1e3

    def _prompt(self, tokens: int) -> list[int]:
        return self._random.choices(range(self._vocab_size), k=tokens)

    def _timings(self, prompts: list[list[int]], new: int, *, known: bool) -> list[dict[str, Any]]:
        """Let all prompts run at once, which its server makes one batch; `known` ones may still be in its cache."""

        def ask(prompt: list[int]) -> dict[str, Any]:
            settings = {"n_predict": new, "ignore_eos": True, "temperature": 0, "cache_prompt": known}
            said = self._server.handle_completions({"prompt": prompt, **settings})
            answer = said if isinstance(said, dict) else json.loads(said)
            timings = answer.get("timings")
            if timings is None or timings["predicted_n"] != new:
                raise Llama3Error(f"llama.cpp didn't answer with {new} tokens: {str(answer)[:200]}")
            return timings

        return list(self._threads.map(ask, prompts))


class LlamaBench:
    """llama.cpp's own program `llama-bench`, started anew for each run; the seconds are those that it says itself."""

    def __init__(self, *, program: str, file: str, batch: int, slots: int, threads: int) -> None:
        if batch > 1:
            raise UsageError(f"llama-bench takes one prompt at once, not {batch}; the wheel's llama.cpp takes more")
        self._command = [program, "--model", file, "--threads", str(threads), "--repetitions", "1", "--output", "json"]
        begun = time.perf_counter()
        found = self._run("--n-prompt", "0", "--n-gen", "1", "--no-warmup")
        self._load_s = time.perf_counter() - begun - found["avg_ns"] / 1e9
        self._build = f"{program}, build {found['build_number']} ({found['build_commit']}), on {found['backends']}"

    def about(self) -> dict[str, Any]:
        return {"load_s": self._load_s, "build": self._build}

    def peak(self) -> int:
        return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    def prefill(self, tokens: int) -> float:
        """Seconds of `tokens` tokens of a prompt."""
        return self._run("--n-prompt", str(tokens), "--n-gen", "0")["avg_ns"] / 1e9

    def decode(self, tokens: int, context: int) -> float:
        """Seconds of `tokens` steps after `context` tokens."""
        return self._run("--n-prompt", "0", "--n-gen", str(tokens), "--n-depth", str(context))["avg_ns"] / 1e9

    def _run(self, *arguments: str) -> dict[str, Any]:
        done = subprocess.run([*self._command, *arguments], capture_output=True, encoding="utf-8", errors="replace")
        try:
            [found] = json.loads(done.stdout)
        except ValueError:
            last = "".join(done.stderr.strip().splitlines()[-1:])
            raise Llama3Error(f"{self._command[0]} ended with {done.returncode} and no result: {last}") from None
        return found
