"""The trace for machines: JSON lines, or all tensors in one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llama3_scratch.checkpoint.hf_out import write_safetensors
from llama3_scratch.files import write_whole
from llama3_scratch.trace.tracer import Step


def write(path: Path, steps: Sequence[Step]) -> None:
    """Write the steps as the ending says; a safetensors file holds the tensors that were kept, named by step labels."""
    if path.suffix == ".jsonl":
        write_whole(path, "".join(json.dumps(as_dict(step), ensure_ascii=False) + "\n" for step in steps))
        return
    tensors = {
        step.label: step.value.contiguous() for step in steps if step.value is not None and step.kind != "argument"
    }
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write_safetensors(temporary, tensors)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def as_dict(step: Step) -> dict[str, Any]:
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
        "dtype": str(step.dtype).removeprefix("torch."),
        "statistics": step.statistics and asdict(step.statistics),
        "weights": list(step.weights),
        "flops": step.cost.flops,
        "bytes": step.cost.bytes,
        "seconds": step.cost.seconds,
    }
