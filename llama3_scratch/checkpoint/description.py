"""What a checkpoint is, from its headers alone: layout, sizes, RoPE, tokenizer, and the memory that it takes."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from llama3_scratch.checkpoint.names import canonical, resolve, weights_dir
from llama3_scratch.config import OFFICIAL, Config, official_name, rope_factor
from llama3_scratch.errors import FileError
from llama3_scratch.system.memory import MemoryPlan, memory_plan

if TYPE_CHECKING:
    from llama3_scratch.text.tokenizer import Tokenizer

log = logging.getLogger("llama3_scratch")

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Description:
    """What the headers say. `stored` is bytes by dtype, `forms` is weights and bytes by the form they're in; of the
    weights once loaded, `mapped` bytes stay in their file and `weights` bytes are allocated; `runs_as` is the form in
    which `generate` multiplies by them, on a CPU and unless told otherwise. `kernels` are those in C
    that this processor gets, "" where there are none and None where it wasn't asked."""

    source: str
    layout: str
    config: Config
    stored: dict[str, int]
    forms: dict[str, tuple[int, int]]
    mapped: int
    weights: int
    runs_as: str
    rope: str
    tokenizer: Tokenizer | None
    kernels: str | None = None

    def plan(self, context: int, batch: int = 1) -> MemoryPlan:
        """Memory for `batch` prompts of `context` tokens, in float32 as on a CPU."""
        return memory_plan(self.config, context=context, batch=batch, mapped=self.mapped, weights=self.weights)


def describe(path_or_name: str | Path) -> Description:
    """Read the headers of anything that `load` reads; an official name without weights is told from the table."""
    name = str(path_or_name)
    official = official_name(name)
    if official and not Path(name).exists() and not (weights_dir() / canonical(name)).is_dir():
        return _official(name, OFFICIAL[official])
    path = resolve(path_or_name)
    from llama3_scratch.checkpoint.load import layout
    from llama3_scratch.native import kernels

    found = {"meta": _meta, "hf": _hf, "gguf": _gguf, "llama2c": _llama2c}[layout(path)](path)
    return replace(found, kernels=kernels.chosen() or "")


def _official(name: str, config: Config) -> Description:
    n_bytes = 2 * config.n_parameters
    one = config.dim < 8192  # Meta cuts 70B and 405B into 8 shards
    return Description(
        source=name,
        layout=f"not downloaded; python -m llama3_scratch.download {name}",
        config=config,
        stored={"bfloat16": n_bytes},
        forms={"bfloat16": (config.n_parameters, n_bytes)},
        mapped=n_bytes if one else 0,
        weights=0 if one else n_bytes,
        runs_as="bf16",
        rope=_rope(config),
        tokenizer=None,
    )


def _meta(folder: Path) -> Description:
    from llama3_scratch.checkpoint.load import find_tokenizer
    from llama3_scratch.checkpoint.meta import open_pth, shard_paths
    from llama3_scratch.checkpoint.params_json import read_params_json
    from llama3_scratch.stored import FORM_KEYS, dtype_name, form
    from llama3_scratch.stored import stored as weight_of

    shards = [open_pth(path) for path in shard_paths(folder)]  # mapped, so no weight is read
    config = read_params_json(folder / "params.json", shards)
    stored: Counter[str] = Counter()
    forms: dict[str, tuple[int, int]] = {}
    for shard in shards:
        for tensor in {tensor.data_ptr(): tensor for tensor in shard.values()}.values():
            stored[dtype_name(tensor.dtype)] += tensor.nbytes
        seen: set[int] = set()
        for name, tensor in shard.items():
            stem = name.removesuffix(".weight")
            if ".adaptor." in name or stem == name or tensor.data_ptr() in seen:
                continue
            seen.add(tensor.data_ptr())
            parts = [shard[f"{stem}.{part}"] for part in FORM_KEYS if f"{stem}.{part}" in shard]
            weight = weight_of(shard, stem)
            n_weights = tensor.numel() if tensor.ndim == 1 else math.prod(weight.shape)
            _count(forms, weight.name, n_weights, sum(part.nbytes for part in (tensor, *parts)))
    tok, output = shards[0].get("tok_embeddings.weight"), shards[0].get("output.weight")
    tied = output is None or (tok is not None and tok.data_ptr() == output.data_ptr())
    one = len(shards) == 1
    return Description(
        source=str(folder),
        layout="Meta, 1 file" if one else f"Meta, {len(shards)} shards, merged when loaded",
        config=replace(config, tied=tied),
        stored=dict(stored),
        forms=forms,
        mapped=stored.total() if one else 0,
        weights=0 if one else stored.total(),
        runs_as=form(shards[0]),
        rope=_rope(config),
        tokenizer=_tokenizer_if_whole(find_tokenizer, folder),
    )


def _hf(folder: Path) -> Description:
    from llama3_scratch.checkpoint.hf import read_hf_header
    from llama3_scratch.params.hf_layout import rotated_heads
    from llama3_scratch.stored import form_of
    from llama3_scratch.text.hf_tokenizer import read_tokenizer_json

    config, tensors = read_hf_header(folder)
    stored: Counter[str] = Counter()
    forms: dict[str, tuple[int, int]] = {}
    copied = 0  # q and k, whose rows are reordered
    for name, (shape, dtype) in tensors.items():
        n_bytes = math.prod(shape) * _BYTES[dtype]
        stored[dtype] += n_bytes
        _count(forms, dtype, math.prod(shape), n_bytes)
        copied += n_bytes if rotated_heads(name, config) else 0
    return Description(
        source=str(folder),
        layout="Hugging Face, safetensors",
        config=config,
        stored=dict(stored),
        forms=forms,
        mapped=stored.total() - copied,
        weights=copied,
        runs_as=form_of({name.removesuffix(".weight"): dtype for name, (_, dtype) in tensors.items()}),
        rope=_rope(config, "config.json"),
        tokenizer=_tokenizer_if_whole(read_tokenizer_json, folder),
    )


def _gguf(path: Path) -> Description:
    from llama3_scratch.checkpoint.gguf import allocated, form, gguf_name, header_config
    from llama3_scratch.checkpoint.gguf_header import FLOATS, read_header
    from llama3_scratch.checkpoint.gguf_vocab import read_vocabulary
    from llama3_scratch.config import expected
    from llama3_scratch.native import kernels
    from llama3_scratch.stored import form_of

    header = read_header(path)
    config = header_config(header)
    stored: Counter[str] = Counter()
    forms: dict[str, tuple[int, int]] = {}
    decoded = 0  # blocks become f32, or stay what they are where `generate` has kernels for them
    blocks = "floats" if kernels.chosen() is None else "stored"
    for tensor in header.tensors.values():
        stored[tensor.kind] += tensor.n_bytes
        _count(forms, tensor.kind, math.prod(tensor.shape), tensor.n_bytes)
        decoded += allocated(tensor, blocks)
    names = [name for name in expected(config) if not (config.tied and name == "output.weight")]
    runs = {name.removesuffix(".weight"): form(header.tensors[gguf_name(name)], blocks) for name in names}
    return Description(
        source=str(path),
        layout="GGUF",
        config=config,
        stored=dict(stored),
        forms=forms,
        mapped=sum(n_bytes for kind, n_bytes in stored.items() if kind in FLOATS),
        weights=decoded,
        runs_as=form_of(runs),
        rope=_rope(config, "the file's rope_freqs or metadata"),
        tokenizer=read_vocabulary(header.values, path, config.vocab_size),
    )


def _llama2c(path: Path) -> Description:
    from llama3_scratch.checkpoint.llama2c import read_llama2c

    config, _ = read_llama2c(path)  # mapped, so no weight is read
    n_bytes = path.stat().st_size
    return Description(
        source=str(path),
        layout="llama2.c",
        config=config,
        stored={"float32": n_bytes},
        forms={"float32": (n_bytes // 4, n_bytes)},
        mapped=n_bytes,
        weights=0,
        runs_as="f32",
        rope=_rope(config),
        tokenizer=None,
    )


def _count(forms: dict[str, tuple[int, int]], form: str, n_weights: int, n_bytes: int) -> None:
    """Add a tensor to the weights and bytes of its form."""
    weights_before, bytes_before = forms.get(form, (0, 0))
    forms[form] = weights_before + n_weights, bytes_before + n_bytes


def _tokenizer_if_whole(read: Callable[[Path], Tokenizer], folder: Path) -> Tokenizer | None:
    """The tokenizer, or None with a warning that says what is wrong with it."""
    try:
        return read(folder)
    except FileError as error:
        log.warning("%s", error)
        return None


def _rope(config: Config, says: str = "") -> str:
    """How RoPE is scaled and who decided it: the file `says`, or for Meta's files the shape."""
    if config.rope_divisors is not None:
        return f"theta {config.rope_theta:g}, divided by factors of its own ({says})"
    if config.rope_scaling is None:
        return f"theta {config.rope_theta:g}, not scaled"
    factor = config.rope_scaling.factor
    known, why = rope_factor(config)
    if not says:
        says = why if factor == known else "params.json's rope_scaling_factor"
    return f"theta {config.rope_theta:g}, scaled by {factor:g}: {says}"
