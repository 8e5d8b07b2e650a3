"""How OpenMP's threads wait for their next work: asleep.

Torch's threads spin for some milliseconds after every operation unless told otherwise. That keeps others off the
processors, other programs and the kernels' own threads alike: on a busy machine a small model takes sixteen times as
long. OMP_WAIT_POLICY=PASSIVE tells them, but is read once, when torch is loaded.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

_POLICY = "OMP_WAIT_POLICY"


def sleep_while_waiting() -> None:
    """Have this process's OpenMP threads sleep while they wait, unless OMP_WAIT_POLICY or GOMP_SPINCOUNT is set.

    Before torch is loaded the environment says it, for child processes too. After that GNU's runtime, which is torch's
    on Linux, can only be told by its numbers: it spins a three-hundredth as long while it manages more threads than
    there are processors, so as many are started, and sleep for good.
    """
    if _POLICY in os.environ or "GOMP_SPINCOUNT" in os.environ:
        return
    os.environ[_POLICY] = "PASSIVE"
    if "torch" in sys.modules:
        for runtime in _loaded_runtimes():
            _crowd(runtime)


def _loaded_runtimes() -> set[str]:
    """The files of GNU's OpenMP runtime in this process, on Linux: torch's own, and perhaps other packages'."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    return {line.split(maxsplit=5)[5] for line in maps.splitlines() if "libgomp" in line}


def _crowd(runtime: str) -> None:
    """Start a team of one thread more than there are processors, which its first thread keeps by never ending."""
    import ctypes

    started = threading.Event()

    def hold() -> None:
        gomp = ctypes.CDLL(runtime)
        nothing = ctypes.cast(gomp.omp_get_thread_num, ctypes.c_void_p)  # a function that does no harm
        gomp.GOMP_parallel(nothing, None, ctypes.c_uint(len(os.sched_getaffinity(0)) + 1), ctypes.c_uint(0))
        started.set()
        threading.Event().wait()

    threading.Thread(target=hold, name="llama3_scratch: OpenMP's wait policy", daemon=True).start()
    started.wait(timeout=1)
