"""The skips that a run under CI may have: what the reason says, and the condition on this machine that makes it true.

`conftest.py` counts the skips of every run and says how many there are and why. Where CI is set in the environment, a
skip that isn't listed here, or whose condition doesn't hold, is a failure. What CI installs and fetches (the extras,
the kernels in C, the default model) isn't listed: there, its absence is one.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Callable

import torch

# A pattern for the whole reason: when it's true.
ALLOWED: dict[str, Callable[[], bool]] = {
    r"this processor has no \w+": lambda: True,  # the level of instructions is asked of the processor itself
    r"LLAMA_WEIGHTS doesn't name a folder .*": lambda: not os.environ.get("LLAMA_WEIGHTS"),  # Meta's to give
    r"there is a CUDA device": torch.cuda.is_available,
    r"no Chromium is installed.*": lambda: (
        not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
    ),
    r"this Python carries no pip": lambda: importlib.util.find_spec("ensurepip") is None,
    r"there may be no limit of memory .*": lambda: True,  # asked of the system by the test
    r"\w+ isn't installed|chroot needs root": lambda: (
        shutil.which("debootstrap") is None or os.getuid() != 0
    ),  # -m long
    r"no fork.*|no /dev/full|reads /proc|.*Linux.*|this system doesn't count .*": lambda: sys.platform != "linux",
}


def reason(longrepr: object) -> str:
    """What a skipped report says: its reason alone, without the place."""
    text = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
    return text.removeprefix("Skipped: ")


def allowed(reason: str) -> bool:
    return any(re.fullmatch(pattern, reason, re.DOTALL) and holds() for pattern, holds in ALLOWED.items())
