"""What `bench` measures of this project: prefill and decoding as `generate` runs them, and the machine's limits."""

from __future__ import annotations

import re
import time
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from llama3_scratch.cache import Cache, MakeSlots, Slots
from llama3_scratch.caches.paged import PagedCache, pages_for
from llama3_scratch.caches.quantized import SLOTS_BY_BITS
from llama3_scratch.config import OFFICIAL, Config, expected
from llama3_scratch.errors import UsageError
from llama3_scratch.inference.choices import ModelChoice
from llama3_scratch.inference.engine.engine import PREFILL_TOKENS, Engine
from llama3_scratch.inference.fast_forward import FastForward
from llama3_scratch.inference.loading import activations_dtype, open_model
from llama3_scratch.inference.prefill import CHUNK, prefill, step
from llama3_scratch.inference.requests import Request
from llama3_scratch.inference.sample import sampler
from llama3_scratch.native import kernels
from llama3_scratch.params import quantize
from llama3_scratch.stored import SHORT_DTYPE, Params, map_tensors, n_bytes, quantised
from llama3_scratch.stored import form as form_of
from llama3_scratch.system.machine import measure, peak_flops
from llama3_scratch.system.memory import available_memory, memory_plan, require_memory
from llama3_scratch.system.timings import peak_rss_bytes

FLOATS = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
MEASURED_FORMS = (*FLOATS, *quantize.FORMS)
SLOTS: dict[int, MakeSlots] = {32: Slots, **SLOTS_BY_BITS}  # what a cache keeps keys and values in, by bits
# A weight, head and embedding included, which stay at 8 bits beside layers in 4.
_BITS = {"f32": 32, "bf16": 16, "f16": 16, "int8-row": 8.1, "int8": 8.5, "int4": 6, "int4-sym": 5.6, "nf4": 5.4}


def in_form(params: Params, form: str) -> Params:
    """Float weights in another form. Raises UsageError for weights that are integers already."""
    if key := quantised(params):
        raise UsageError(f"{key}: these weights are stored as integers; leave `forms` out, or give the float model")
    if form in FLOATS:
        return map_tensors(params, lambda tensor: tensor.to(FLOATS[form]))
    return quantize.quantize(params, form)


def random_params(config: Config, form: str) -> Params:
    """Weights of `config` in `form` whose values mean nothing, made so that only one of them is held as floats."""
    params: Params = {}

    def alike(stem: str, other: str, *, copied: bool) -> Params:
        """What is stored under `other`, once more under `stem`."""
        ends = {key.removeprefix(other): tensor for key, tensor in params.items() if key.startswith(f"{other}.")}
        return {f"{stem}{end}": tensor.clone() if copied else tensor for end, tensor in ends.items()}

    for name, shape in expected(config).items():
        stem = name.removesuffix(".weight")
        first = re.sub(r"^layers\.\d+\.", "layers.0.", stem)
        if config.tied and name == "output.weight":
            params |= alike(stem, "tok_embeddings", copied=False)
        elif first != stem:
            params |= alike(stem, first, copied=True)  # its own memory, since shared weights would stay in a cache
        else:
            params |= in_form({name: torch.randn(shape) * 0.02}, form)
    return params


class Ours:
    """One model in one form, with one kind of cache and one size of batch."""

    def __init__(
        self,
        *,
        model: str | None,
        shape: str | None,
        form: str | None,
        kv: int | None,
        batch: int,
        slots: int,
        threads: int,
        device: str = "cpu",
        dtype: str = "auto",
    ) -> None:
        torch.set_num_threads(threads)
        begun = time.perf_counter()
        if shape is not None:
            config, form = OFFICIAL[shape], form or "bf16"
            _require(config, form, slots, batch)
            params = map_tensors(random_params(config, form), lambda tensor: tensor.to(device))
            self._dtype = activations_dtype(dtype, params)
        else:
            choice = ModelChoice(model=model, device=device, dtype=dtype)
            checkpoint, self._dtype = open_model(choice, as_floats=form is not None, needs_tokenizer=False)
            config, params = checkpoint.config, checkpoint.params
            if form is not None and form != form_of(params):
                _require(config, form, slots, batch)
                params = in_form(params, form)
            del checkpoint  # the other form's file needn't stay mapped
        if slots > config.max_seq_len:
            raise UsageError(f"`pp`, `tg` and `contexts` take {slots} tokens, the model's context {config.max_seq_len}")
        self._dtype_name = SHORT_DTYPE[str(self._dtype).removeprefix("torch.")]
        if kv == 32 and self._dtype != torch.float32:
            raise UsageError(f"`kv` 32: the cache is in the activations' {self._dtype_name}, or in 16, 8 or 4 bits")
        self._params, self._config, self._make = params, config, SLOTS[kv or 32]
        self._kv_bits = kv or 8 * self._dtype.itemsize
        self._model = FastForward(params, config, dtype=self._dtype)
        self._batch, self._slots, self._known = batch, slots, 0
        if batch > 1:
            self._spare = batch * slots // PREFILL_TOKENS + 2  # whoever is first goes on until the last has begun
            pages, limit = batch * pages_for(slots + self._spare), slots + self._spare
            self._pool = PagedCache(
                config, pages, limit=limit, keys=self._make, values=self._make, dtype=self._dtype, device=device
            )
        self._load_s = time.perf_counter() - begun
        generator = torch.Generator().manual_seed(0)
        self.prompts_BT = torch.randint(config.vocab_size, (batch, slots), generator=generator)
        self._sample = sampler(temperature=0)
        self.prefill(min(slots, 16))  # pages are touched and threads woken
        self.decode(2, 0)

    def about(self) -> dict[str, Any]:
        """The form, seconds of loading, bytes of weights, those read for a token, those of a slot of the cache."""
        read = {id(tensor): tensor for key, tensor in self._params.items() if not key.startswith("tok_embeddings.")}
        kept = self._make(torch.empty(1, 1, self._config.n_kv_heads, self._config.head_dim, dtype=self._dtype))
        kept.grow(1)
        return {
            "form": form_of(self._params),
            "dtype": self._dtype_name,
            "kv": self._kv_bits,
            "load_s": self._load_s,
            "weight_bytes": n_bytes(self._params),
            "read_bytes": sum(tensor.nbytes for tensor in read.values()),
            "slot_bytes": 2 * self._config.n_layers * sum(tensor.nbytes for tensor in kept.tensors().values()),
            "sizes": asdict(self._config) | {"rope_scaling": None, "rope_divisors": None},
            "kernels": kernels.chosen() or "none",
        }

    def peak(self) -> int:
        return peak_rss_bytes()

    @torch.inference_mode()
    def prefill(self, tokens: int) -> float:
        """Seconds from `tokens` tokens of each prompt to the next token."""
        begun = time.perf_counter()
        if self._batch == 1:
            self._cache = Cache(self._slots, keys=self._make, values=self._make)
            self._next(prefill(self._model, self._cache, self.prompts_BT[:, :tokens].tolist()))
        else:
            self._first_tokens(self._engine(), tokens, 1)
        self._known = tokens
        return time.perf_counter() - begun

    @torch.inference_mode()
    def decode(self, tokens: int, context: int) -> float:
        """Seconds of `tokens` steps after `context` tokens of each prompt."""
        if self._batch > 1:
            engine = self._engine()
            self._first_tokens(engine, max(context, 1), tokens + self._spare)
            begun = time.perf_counter()
            for _ in range(tokens):
                engine.step()
            return time.perf_counter() - begun
        if self._known < context:
            self.prefill(context)
        self._cache.rewind(context)
        self._known = context
        next_B1 = self.prompts_BT[:, context : context + 1].tolist()
        begun = time.perf_counter()
        for _ in range(tokens):
            next_B1 = self._next(step(self._model, self._cache, next_B1))
        return time.perf_counter() - begun

    def _next(self, logits_B1V: Tensor) -> list[list[int]]:
        return [[self._sample(logits_V, ())] for logits_V in logits_B1V[:, 0]]

    def _engine(self) -> Engine:
        return Engine(self._model, self._pool, max_rows=self._batch, prefill_tokens_beside=PREFILL_TOKENS)

    def _first_tokens(self, engine: Engine, tokens: int, max_tokens: int) -> None:
        """Take in all prompts' first `tokens` tokens, until each answer has begun."""
        prompts = self.prompts_BT[:, :tokens].tolist()
        for prompt in prompts:
            engine.add(Request(prompt, self._sample, max_tokens))
        begun = set[Request]()
        while len(begun) < len(prompts):
            begun |= {event.request for event in engine.step()}


def _require(config: Config, form: str, slots: int, batch: int) -> None:
    weights = int(config.n_parameters * _BITS[form] / 8)
    require_memory(memory_plan(config, context=slots, batch=batch, weights=weights, chunk=CHUNK), available_memory())


class Roof:
    """The machine itself."""

    def __init__(self, *, threads: int | None, device: str = "cpu") -> None:
        self._device = torch.device(device)
        if threads is not None:
            torch.set_num_threads(threads)

    def about(self) -> dict[str, Any]:
        return {"threads": torch.get_num_threads()}

    def measure(self) -> dict[str, float]:
        """Bytes/s that are read from the device's memory, on a CPU by all threads together, and FLOP/s by type."""
        found = measure(self._device, torch.float32)
        if self._device.type == "cpu":
            return {"bandwidth": found.bandwidth, **peak_flops()}
        return {"bandwidth": found.bandwidth, "f32": found.flops, "bf16": measure(self._device, torch.bfloat16).flops}
