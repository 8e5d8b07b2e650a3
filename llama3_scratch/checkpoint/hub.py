"""A model's files from the Hugging Face hub: which ones, fetched whole or gone on with, and what its errors mean."""

from __future__ import annotations

import contextlib
import errno
import glob
import logging
import shutil
import sys
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from llama3_scratch.checkpoint.checklist import CHECKLIST, digest, write_checklist
from llama3_scratch.checkpoint.names import ELSEWHERE, weights_dir
from llama3_scratch.errors import FileError, MismatchError, UsageError
from llama3_scratch.system.writing import move_into_place, require_space

log = logging.getLogger("llama3_scratch")

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


def fetch_from_hub(repo: str, folder: Path) -> None:
    """Fetch what a model needs of a repo into `folder`, which appears whole; a later call goes on where one ended."""
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
    require_space(partial, sum(sizes.values()) - there, f"free some space or {ELSEWHERE}")
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
    move_into_place(here, folder)
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
