"""Meta's files from gs:// and az:// folders: copied to a local cache first, since only local files can be mapped."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llama3_scratch.errors import FileError, MismatchError, UsageError
from llama3_scratch.system.progress import progress
from llama3_scratch.system.writing import fresh_file, require_space, unwritable, write_whole

_WANTED = re.compile(r"consolidated\..*\.pth|params\.json|tokenizer\.model|tokenizer_extra\.json|checklist\.chk")
_CHUNK = 1 << 20


def fetch(url: str, cache: Path) -> Path:
    """The copy within `cache` of a remote Meta folder; only files that are new or changed there are fetched."""
    import blobfile

    scheme, _, rest = url.partition("://")
    parts = [part for part in rest.split("/") if part]
    if not parts or any(part in (".", "..") or re.search(r"[\0\\:]", part) for part in parts):
        raise UsageError(f"{url!r}: expected gs://bucket/folder or az://account/container/folder")
    folder = cache.joinpath(scheme, *parts)
    try:
        entries = _entries(url)
        folder.mkdir(parents=True, exist_ok=True)
        _synchronise(entries, folder)
    except blobfile.Error as error:
        raise FileError(f"{url}: can't be read: {str(error).splitlines()[0]}; check the path and your login") from error
    except OSError as error:
        raise unwritable(folder, error) from error
    return folder


def _entries(url: str) -> dict[str, Any]:
    """The remote folder's files of Meta's, by name."""
    import blobfile

    try:
        found = {
            entry.name: entry for entry in blobfile.scandir(url) if entry.is_file and _WANTED.fullmatch(entry.name)
        }
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileError(f"{url}: no such remote folder; check the path and your access to it") from error
    missing = [name for name in ("params.json", "tokenizer.model") if name not in found]
    if not any(name.endswith(".pth") for name in found):
        missing.insert(0, "consolidated.*.pth")
    if missing:
        raise FileError(f"{url}: {', '.join(missing)} not found; give the folder that holds Meta's files")
    return found


def _synchronise(entries: dict[str, Any], folder: Path) -> None:
    """Make `folder` hold exactly the remote files; a file is replaced whole or not at all."""
    record = folder / ".versions.json"
    try:
        known = json.loads(record.read_bytes())
    except (FileNotFoundError, ValueError):
        known = {}
    for path in folder.iterdir():
        if path != record and path.name not in entries and path.is_file():  # a folder is another model's copy
            path.unlink()
    versions = {name: [entry.stat.size, entry.stat.mtime, entry.stat.version] for name, entry in entries.items()}
    stale = [name for name in entries if known.get(name) != versions[name] or not (folder / name).is_file()]
    needed = sum(entries[name].stat.size for name in stale)
    require_space(folder, needed)
    with progress("fetching", needed) as advance:
        for name in stale:
            _copy(entries[name], folder / name, advance)
            known[name] = versions[name]
            write_whole(record, json.dumps(known))


def _copy(entry: Any, path: Path, advance: Callable[[int], None]) -> None:
    import blobfile

    with (
        fresh_file(path) as temporary,
        blobfile.BlobFile(entry.path, "rb", streaming=True) as source,
        temporary.open("wb") as target,
    ):
        while chunk := source.read(_CHUNK):
            target.write(chunk)
            advance(len(chunk))
        if (got := target.tell()) != entry.stat.size:
            raise MismatchError(f"{entry.path}: expected {entry.stat.size} bytes, got {got}; try again")
