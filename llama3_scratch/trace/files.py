"""The trace for machines: JSON lines, or all tensors in one safetensors file."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llama3_scratch.checkpoint.hf_out import write_safetensors
from llama3_scratch.errors import FileError
from llama3_scratch.stored import Params, dtype_name
from llama3_scratch.system.writing import fresh_file, write_whole
from llama3_scratch.trace.tracer import TracedTensor


def write(path: Path, steps: Sequence[TracedTensor], params: Params, files: Mapping[str, str]) -> None:
    """Write the steps as the ending says; a safetensors file holds the tensors that were kept, named by step labels.

    `params` are the run's, `files` say where each weight was read from.
    """
    if path.suffix == ".jsonl":
        dicts = (as_dict(step, params, files) for step in steps)
        write_whole(path, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in dicts))
        return
    tensors = {
        step.label: real(step.value).contiguous()
        for step in steps
        if step.value is not None and step.kind != "argument"
    }
    with fresh_file(path) as temporary:
        write_safetensors(temporary, tensors)


def require_writable(path: Path) -> None:
    """Raise FileError, before anything is computed, where the file couldn't be written."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise FileError(f"{path}: can't be written: {'is a folder' if path.is_dir() else 'its folder is not there'}")
    try:
        with tempfile.TemporaryFile(dir=path.absolute().parent):
            pass
    except OSError as error:
        raise FileError(f"{path}: can't be written: {error.strerror}") from error


def real(value: Tensor) -> Tensor:
    """A complex tensor as pairs of numbers, since safetensors has no complex64 for every reader, and no complex128."""
    return torch.view_as_real(value.resolve_conj()) if value.is_complex() else value


def as_dict(step: TracedTensor, params: Params, files: Mapping[str, str]) -> dict[str, Any]:
    """A step as JSON holds it, without its tensor."""
    return {
        "pass": step.call,
        "key": step.key,
        "layer": step.layer,
        "kind": step.kind,
        "path": step.path,
        "function": step.function,
        "line": step.line,
        "source": step.source,
        "name": step.name,
        "axes": step.letters,
        "shape": list(step.shape),
        "dtype": dtype_name(step.dtype),
        "statistics": step.statistics and asdict(step.statistics),
        "weights": [
            {"key": key, "file": files.get(key), "shape": list(weight.shape), "dtype": dtype_name(weight.dtype)}
            for key, weight in ((key, params[key]) for key in step.weights)
        ],
        "flops": step.cost.flops,
        "bytes": step.cost.bytes,
        "seconds": step.cost.seconds,
    }
