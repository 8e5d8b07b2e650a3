"""Saving a run so that nothing can spoil it: a step's folder is whole, or it isn't there.

A checkpoint is written into `step_N.tmp-<pid>`, its files forced to disk, a manifest with their sizes and hashes last;
then the folder gets its name, `latest` is replaced, and only then older ones are removed. A kill at any moment leaves
the newest whole checkpoint as it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from llama3_scratch.errors import FileError
from llama3_scratch.system.files import read_json
from llama3_scratch.system.writing import make_folder, unwritable, write_whole

log = logging.getLogger("llama3_scratch")

MANIFEST, LATEST = "manifest.json", "latest"
KEPT_CHECKPOINTS = 2  # the newest


def begin(folder: Path, *, resume: bool) -> Path | None:
    """Make `folder` ready for a run: the checkpoint that `resume` goes on from, None where a run begins.

    Raises FileError where there is a run already and `resume` isn't given, or none and it is.
    """
    there = newest(folder)
    if there is None and resume:
        raise FileError(f"{folder}: no whole checkpoint to go on from; without `resume` a run begins")
    if there is not None and not resume:
        raise FileError(
            f"{folder}: there is a run already, at {there.name}; `resume` goes on, another `folder` begins anew"
        )
    make_folder(folder)
    return there


def save(folder: Path, step: int, tensors: dict[str, Any], about: dict[str, Any]) -> Path:
    """Write `step_N` into `folder`: each of `tensors` by torch as `NAME.pth`, `about` as `about.json`.

    Raises ResourceError or FileError where that can't be; what was there before stays.
    """
    target, temporary = folder / f"step_{step}", folder / f"step_{step}.tmp-{os.getpid()}"
    try:
        temporary.mkdir(parents=True)
        for name, value in tensors.items():
            torch.save(value, temporary / f"{name}.pth")
        (temporary / "about.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
        sizes = {path.name: {"bytes": path.stat().st_size, "sha256": _digest(path)} for path in temporary.iterdir()}
        (temporary / MANIFEST).write_text(json.dumps(sizes, indent=1), encoding="utf-8")
        for path in [*temporary.iterdir(), temporary]:
            _to_disk(path)
        if target.exists():  # damaged, or of a run that was begun anew
            shutil.rmtree(target)
        temporary.replace(target)
        _to_disk(folder)
        write_whole(folder / LATEST, target.name + "\n")
    except (OSError, RuntimeError) as error:  # torch's writer raises the latter on a full disk
        shutil.rmtree(temporary, ignore_errors=True)
        raise unwritable(target, error if isinstance(error, OSError) else OSError(str(error))) from error
    for old in steps(folder)[KEPT_CHECKPOINTS:]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def steps(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, whole or not, newest first."""
    found = [path for path in folder.glob("step_*") if re.fullmatch(r"step_\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name[5:]), reverse=True)


def newest(folder: Path) -> Path | None:
    """The newest checkpoint that its manifest says is whole; older ones stand in for damaged ones, with a warning."""
    with contextlib.suppress(OSError):
        named = (folder / LATEST).read_text(encoding="utf-8").strip()
        if not (folder / named).is_dir():
            log.warning("%s: names %s, which isn't there; looking for the newest that is", folder / LATEST, named)
    for path in steps(folder):
        if (damage := _damage(path)) is None:
            return path
        log.warning("%s: %s; an older checkpoint is taken", path, damage)
    return None


def read(checkpoint: Path, name: str) -> Any:
    """What `save` was given under `name`. Raises FileError where it's missing."""
    path = checkpoint / f"{name}.pth"
    if not path.exists():
        raise FileError(f"{path}: not found, so the run can't go on as it was")
    return torch.load(path, weights_only=True, map_location="cpu")


def has(checkpoint: Path, name: str) -> bool:
    """Whether `save` was given something under `name`."""
    return (checkpoint / f"{name}.pth").exists()


def read_about(checkpoint: Path) -> dict[str, Any]:
    return read_json(checkpoint / "about.json", "what a checkpoint says of its run")


def _damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint; None where all its files are as they were written."""
    try:
        manifest = read_json(checkpoint / MANIFEST, "a checkpoint's manifest")
    except FileError as error:
        return str(error)
    for name, wanted in manifest.items():
        path = checkpoint / name
        if not path.exists():
            return f"{name} is missing"
        if path.stat().st_size != wanted["bytes"] or _digest(path) != wanted["sha256"]:
            return f"{name} isn't what was written"
    return None


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _to_disk(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows can't open folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
