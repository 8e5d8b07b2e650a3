"""What numbers a model has, as one hash: of every byte, computed once and then remembered by the files' states.

A remembered hash is believed only while no file shows any sign of a change: path, size, both times, inode. They are
remembered in `fingerprints.json` of the user's cache folder, which may be deleted; that it can't be written costs time
only.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llama3_scratch.checkpoint import names
from llama3_scratch.stored import Params, dtype_name, n_bytes
from llama3_scratch.system.progress import progress
from llama3_scratch.system.writing import write_whole

log = logging.getLogger("llama3_scratch")

FILE = "fingerprints.json"
MAX_REMEMBERED = 256  # hashes
# Nanoseconds; the coarsest clock of a file system (FAT's) shows two changes within it as one.
CLOCK_TICK = 2_000_000_000
_SUFFIXES = (".pth", ".safetensors", ".json", ".bin")  # what decides a folder's numbers, sizes and scales too
State = tuple[str, int, int, int, int, int]


@dataclass(frozen=True)
class Origin:
    """What `params` were made of: files, as they were when this was made, and in words what was done to the weights.

    To be made before the files are read, and completed by `of`: a file that changes in between is noticed then.
    """

    paths: tuple[Path, ...]
    made: str
    states: tuple[State, ...]
    taken: int  # nanoseconds since 1970
    params: Params = field(default_factory=dict, repr=False)
    known: list[str] = field(default_factory=list, repr=False)

    @classmethod
    def now(cls, paths: Iterable[Path], made: str = "") -> Origin:
        """The files as they are now."""
        paths = tuple(paths)
        return cls(paths, made, states(paths), time.time_ns())

    def of(self, params: Params) -> Origin:
        """The origin of these weights: none other's, not even of a copy of the dict that was changed."""
        return replace(self, params=params, known=[])


def states(paths: Iterable[Path]) -> tuple[State, ...]:
    """All that the system says of the files, and of the files within folders, that shows a change; () if it can't."""
    try:
        return tuple(_state(file) for path in paths for file in _files(path))
    except OSError:
        return ()


def _state(path: Path) -> State:
    found = path.stat()
    return str(path.absolute()), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)
    if of := re.fullmatch(r"(.*)-\d{5}(-of-\d{5}\.gguf)", path.name, re.IGNORECASE):
        part = re.compile(rf"{re.escape(of[1])}-\d{{5}}{re.escape(of[2])}")
        return sorted(file for file in path.parent.iterdir() if part.fullmatch(file.name))
    return [path]


def fingerprint(params: Params, origin: Origin | None = None) -> str:
    """SHA-256 of all names, dtypes, shapes and bytes, in hex; remembered where their origin is given.

    Equal for the same numbers in the same forms, from whatever layout they were read.
    """
    if origin is None or origin.params is not params:
        return _hash(params)
    if not origin.known:
        origin.known.append(_remembered(origin))
    return origin.known[0]


def _remembered(origin: Origin) -> str:
    settled = all(max(state[-2:]) < origin.taken - CLOCK_TICK for state in origin.states)
    if not origin.states or not settled or states(origin.paths) != origin.states:
        return _hash(origin.params)
    key = hashlib.sha256(json.dumps([origin.states, origin.made, _forms(origin.params)]).encode()).hexdigest()
    known = _read()
    if key in known:
        return known[key]
    found = _hash(origin.params)
    if states(origin.paths) == origin.states:
        _write({**_read(), key: found})
    return found


def _forms(params: Params) -> list[str]:
    """Every tensor but for its numbers, and the programs that might make others of the same files."""
    forms = [f"{name} {dtype_name(tensor.dtype)} {list(tensor.shape)}" for name, tensor in sorted(params.items())]
    newest = max(file.stat().st_mtime_ns for file in Path(__file__).parents[1].rglob("*.py"))
    return [*forms, str(newest), torch.__version__]


def _read() -> dict[str, str]:
    try:
        found = json.loads((names.user_cache() / FILE).read_bytes())
        return {key: value for key, value in found.items() if re.fullmatch("[0-9a-f]{64}", value)}
    except (OSError, ValueError, AttributeError, TypeError, RecursionError, RuntimeError):
        return {}


def _write(known: dict[str, str]) -> None:
    try:
        path = names.user_cache() / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(dict(list(known.items())[-MAX_REMEMBERED:]), indent=0))
    except (OSError, RuntimeError) as error:
        log.debug("%s can't be remembered: %s", FILE, error)


def _hash(params: Params) -> str:
    unique = {id(tensor): tensor for tensor in params.values()}  # a tied head once
    with progress("hashing the weights", n_bytes(params)) as advance, ThreadPoolExecutor(os.cpu_count()) as pool:

        def digest(tensor: Tensor) -> str:
            plain = tensor.detach().cpu().contiguous().flatten()
            values: Any = plain.view(torch.uint8).numpy()
            advance(plain.nbytes)
            return f"{dtype_name(tensor.dtype)} {list(tensor.shape)} {hashlib.sha256(values).hexdigest()}"

        digests = dict(zip(unique, pool.map(digest, unique.values()), strict=True))
    lines = [f"{name} {digests[id(tensor)]}\n" for name, tensor in sorted(params.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
