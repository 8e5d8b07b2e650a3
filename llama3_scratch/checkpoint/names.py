"""What names a model: a path, a remote folder or a known name; and where the weights of a name lie."""

from __future__ import annotations

import os
import re
from pathlib import Path

from llama3_scratch.config import OFFICIAL, official_name
from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.system.files import require_utf8_name

DEFAULT = "smollm2-135m"
BLOCKS = f"{DEFAULT}-blocks"  # the same numbers in 4 and 8 bits, as its file has them: what generates fastest
ELSEWHERE = "set LLAMA3_SCRATCH_WEIGHTS to a folder elsewhere"  # the remedy where weights can't be written
STORYTELLER = "storyteller"  # a small model of this project's own, which lies beside its code
FETCHED = [DEFAULT, BLOCKS, *OFFICIAL]  # the names that `download` knows, beside repo ids
_REPO = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"


def weights_dir() -> Path:
    """Where the weights of names lie: $LLAMA3_SCRATCH_WEIGHTS, else the checkout's weights/, else the user's cache."""
    if chosen := os.environ.get("LLAMA3_SCRATCH_WEIGHTS"):
        return Path(chosen).expanduser()
    checkout = Path(__file__).parents[2]
    if (checkout / "pyproject.toml").exists():
        return checkout / "weights"
    return user_cache()


def user_cache() -> Path:
    """The folder of what can be made again: within $XDG_CACHE_HOME, else ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llama3_scratch"


def storyteller() -> Path | None:
    """The folder of the model that comes with the code; None where the code was installed without it."""
    folder = Path(__file__).parents[2] / "weights" / STORYTELLER
    return folder if (folder / "params.json").exists() else None


def canonical(name: str) -> str:
    """The folder of a known name within `weights_dir()`: `smollm2-135m`, `llama3.2-1b-instruct`, `owner/name`."""
    if name.lower() in (DEFAULT, BLOCKS):
        return name.lower()
    if official := official_name(name):
        # Of Llama 3.3 there is only the instruct model.
        instruct = name.lower().endswith("-instruct") or official == "llama3.3-70b"
        return official + ("-instruct" if instruct else "")
    if re.fullmatch(_REPO, name, re.ASCII) and ".." not in name:
        return name
    raise UsageError(
        f"{name!r} isn't a name that can be fetched; use one of {', '.join(FETCHED)} "
        "(llama3… also with -instruct) or a Hugging Face repo id owner/name"
    )


def resolve(path_or_name: str | Path) -> Path:
    """The file or folder that a path, a gs:// or az:// folder, or the name of downloaded weights means."""
    text = str(path_or_name)
    if text.startswith(("gs://", "az://")):
        from llama3_scratch.checkpoint.remote import fetch

        return fetch(text, weights_dir() / ".remote")
    if not text or "\0" in text:
        raise UsageError(f"expected a path or a name of weights, got {text!r}")
    try:
        path = Path(path_or_name).expanduser()
        if path.exists():
            require_utf8_name(path)
            return path
    except (OSError, RuntimeError) as error:  # too long a name, an unknown ~user
        raise FileError(f"{text[:99]}: can't be a path: {getattr(error, 'strerror', error)}") from error
    if text.lower() == STORYTELLER and (shipped := storyteller()) is not None:
        return shipped
    if ".." in path.parts or ":" in text:
        raise UsageError(f"{text!r}: no such file or folder, and a name of weights holds neither '..' nor ':'")
    try:
        folder = weights_dir() / canonical(text)
    except UsageError as error:
        raise FileError(
            f"{text}: no such file or folder, nor a known name; known are "
            f"{', '.join([STORYTELLER] * (storyteller() is not None) + FETCHED)} (llama3… also with -instruct) "
            "and the repo ids that were downloaded"
        ) from error
    if not folder.is_dir():
        raise FileError(
            f"{text}: no such file or folder, and not downloaded to {weights_dir()}; "
            f"fetch it with: python -m llama3_scratch.download {text}"
        )
    return folder
