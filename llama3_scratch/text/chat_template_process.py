"""The process in which a chat template is rendered, so that one that never ends can be stopped."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from llama3_scratch.errors import FileError

MAX_SECONDS = 1.0  # of a rendering
# The processor's seconds are counted where the system can: a busy machine is no fault of the template's.
DEADLINE_SECONDS = 10 * MAX_SECONDS if hasattr(signal, "setitimer") else MAX_SECONDS
_START_SECONDS = 30.0  # for Python and jinja2 to start
REMEDY = "take the chat format llama3 or chatml, which needs none"


class TemplateProcess:
    """The process that renders, started when it is first needed and ended with this one."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._inherited: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        """The process's number; None where none runs."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def ask(self, request: dict[str, Any]) -> list[dict[str, str]]:
        """The answers to a request, of which each is as `chat_template_worker` says."""
        line = json.dumps(request).encode() + b"\n"
        with self._lock:
            process = self._running()
            found = self._said(process, line, DEADLINE_SECONDS)
            if not found.endswith(b"\n"):
                self.stop()
                late = (-signal.SIGKILL, -signal.SIGPROF) if hasattr(signal, "SIGPROF") else (1,)
                what = f"takes more than {MAX_SECONDS:g} s" if process.returncode in late else "ends its process"
                raise FileError(f"the model's chat template {what}; {REMEDY}")
            answers = json.loads(found)
            if any("limit" in answer for answer in answers):
                self.stop()  # what it took is given back
            return answers

    def _running(self) -> subprocess.Popen[bytes]:
        process = self._process
        if process is not None and process.poll() is None:
            return process
        command = [str(sys.executable), "-I", "-S", str(Path(__file__).with_name("chat_template_worker.py"))]
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )
        except OSError as error:
            raise FileError(f"{command[0]}: can't be started to render the chat template: {error}") from error
        self._process = process
        path = json.dumps([str(place) for place in sys.path if Path(place).is_absolute()]).encode() + b"\n"
        if self._said(process, path, _START_SECONDS) != b"{}\n":
            self.stop()
            raise FileError(
                f"jinja2, which renders the model's chat template, can't be imported; pip install jinja2, or {REMEDY}"
            )
        return process

    def _said(self, process: subprocess.Popen[bytes], line: bytes, seconds: float) -> bytes:
        """The line with which the process answers; none where it ends before, as it does when the time is over."""
        assert process.stdin and process.stdout
        timer = threading.Timer(seconds, process.kill)
        timer.daemon = True
        timer.start()
        try:
            with contextlib.suppress(OSError):  # it is gone
                process.stdin.write(line)
                process.stdin.flush()
            return process.stdout.readline()
        except BaseException:
            self.stop()
            raise
        finally:
            timer.cancel()

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()  # one that ends by itself keeps its code
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe
                with contextlib.suppress(OSError):  # what wasn't read any more
                    pipe.close()

    def forked(self) -> None:
        """In a fork: leave the parent's process to it, and a lock that another thread of the parent's may have held."""
        # Kept: closing it would write out what the parent is about to, and can wait for a lock without end.
        self._inherited, self._process, self._lock = self._process or self._inherited, None, threading.Lock()
        if self._inherited is not None:
            for pipe in (self._inherited.stdin, self._inherited.stdout):
                with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("r+b", buffering=0) as nothing:
                    assert pipe
                    os.dup2(nothing.fileno(), pipe.fileno(), inheritable=False)


PROCESS = TemplateProcess()
atexit.register(PROCESS.stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=PROCESS.forked)
