"""A process for each thing that `bench` measures, kept until the end: its memory is its own, and all can take turns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import Any

from llama3_scratch import errors
from llama3_scratch.errors import Llama3Error
from llama3_scratch.system import stdio
from llama3_scratch.system.cli import as_ours


class Worker:
    """An object in a process of its own, whose methods are called by name. Its errors are raised here."""

    def __init__(self, kind: str, **settings: Any) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - what it says on stderr, read if it dies
        self._process = subprocess.Popen(
            [sys.executable, "-m", "llama3_scratch.benchmark.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            encoding="utf-8",
        )
        try:
            self("start", kind=kind, **settings)
        except BaseException:
            self.close()
            raise

    def __call__(self, method: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"method": method, "arguments": arguments}) + "\n")
            self._process.stdin.flush()
            reply = self._process.stdout.readline()
        except BrokenPipeError:
            reply = ""
        if not reply:
            raise Llama3Error(f"a measured process ended by itself, with {self._process.wait()}: {self._last_words()}")
        answer = json.loads(reply)
        if "error" in answer:
            raise getattr(errors, answer["kind"], Llama3Error)(answer["error"])
        return answer["value"]

    def _last_words(self) -> str:
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing; perhaps memory ran out"

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def close(self) -> None:
        self._process.kill()  # nothing in it is worth a farewell
        self._process.communicate()
        self._said.close()


def start(kind: str, settings: dict[str, Any]) -> Any:
    """What measures `kind`, made by these settings in this process."""
    if kind != "ours":  # others are fastest as they come, llama.cpp by half
        os.environ.pop("OMP_WAIT_POLICY", None)
    if kind in ("ours", "roof"):
        from llama3_scratch.benchmark import ours

        return (ours.Ours if kind == "ours" else ours.Roof)(**settings)
    from llama3_scratch.benchmark import peers

    classes = {
        "files": peers.Files,
        "hf": peers.HuggingFace,
        "llama.cpp": peers.LlamaCpp,
        "llama-bench": peers.LlamaBench,
    }
    return classes[kind](**settings)


def serve() -> None:
    """Answer calls from stdin, a line each, until it closes."""
    stdio.prepare()
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints mustn't stand between the replies
    measured: Any = None
    for line in sys.stdin:
        call = json.loads(line)
        try:
            if call["method"] == "start":
                measured, value = start(call["arguments"].pop("kind"), call["arguments"]), None
            else:
                value = getattr(measured, call["method"])(**call["arguments"])
            reply = {"value": value}
        except Exception as error:
            known = as_ours(error)
            text = str(known or f"{type(error).__name__}: {error}").strip().splitlines()[0]
            reply = {"error": text, "kind": type(known or Llama3Error).__name__}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    serve()
