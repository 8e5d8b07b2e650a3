"""How long whole commands take: one token of a model from start to end, and what torch alone takes."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from llama3_scratch.benchmark.measure import Subject
from llama3_scratch.errors import Llama3Error


def startup(subjects: Sequence[Subject], repeats: int) -> dict[str, Any]:
    """Seconds of whole commands in turns: one token of each model, and what torch alone takes to be imported."""
    commands = [
        ["-m", "llama3_scratch.generate", "Hello", *model, "--max-tokens", "1"]
        for model in (["--model", subject.given] if subject.given else [] for subject in subjects)
    ]
    commands.append(["-c", "import torch"])
    rows: list[dict[str, Any]] = [{"command": shlex.join(["python", *words]), "seconds": []} for words in commands]
    for repeat in range(-1, repeats):  # the first brings the files into the system's cache, uncounted
        for row, words in zip(rows, commands, strict=True):
            seconds, row["peak_bytes"] = whole_command(words)
            if repeat >= 0:
                row["seconds"].append(seconds)
    return {"rows": rows}


def whole_command(words: Sequence[str]) -> tuple[float, int]:
    """Seconds and peak memory of a command of Python's."""
    with tempfile.TemporaryFile() as said:
        begun = time.perf_counter()
        process = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            last = said.read().decode(errors="replace").strip().splitlines()[-1:]
            raise Llama3Error(f"{shlex.join(['python', *words])} ended with {process.returncode}: {''.join(last)}")
    return seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
