"""What a measurement was made with: command, date, processor, versions."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import importlib.util
import platform
from pathlib import Path
from typing import Any

from llama3_scratch.benchmark.peers import PEERS


def about(command: str, repeats: int) -> dict[str, Any]:
    """What stands beside every figure: the command, when it ran, on which processor, with which versions."""
    packages = ("llama3_scratch", "torch", *PEERS.values())
    versions = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "command": command,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": _cpu(),
        "repeats": repeats,
        "versions": {"python": platform.python_version(), **versions},
    }


def _cpu() -> str:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line for line in lines if line.startswith("model name")).partition(":")[2].strip()
    return platform.processor() or platform.machine()
