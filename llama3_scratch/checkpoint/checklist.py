"""A folder's files and their hashes: checklist.chk, as Meta writes it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from llama3_scratch.errors import FileError, MismatchError
from llama3_scratch.system.files import read_text
from llama3_scratch.system.progress import progress
from llama3_scratch.system.writing import write_whole

CHECKLIST = "checklist.chk"
_ALGORITHM = {32: "md5", 64: "sha256"}  # by hex digits: Meta lists MD5, other tools SHA-256
_CHUNK = 1 << 20


def digest(path: Path, algorithm: str, advance: Callable[[int], None] = lambda count: None) -> str:
    """The hex digest of a file; `advance` hears of every chunk's bytes."""
    state = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            state.update(chunk)
            advance(len(chunk))
    return state.hexdigest()


def read_checklist(path: Path) -> dict[str, str]:
    """File name → hex digest, from lines of `digest  name` as md5sum and sha256sum write them."""
    listed: dict[str, str] = {}
    for number, line in enumerate(read_text(path, "a list of checksums").splitlines(), 1):
        if not line.strip():
            continue
        found = re.fullmatch(r"([0-9a-fA-F]+) [ *]?(\S.*?)\s*", line)
        if not found or len(found[1]) not in _ALGORITHM:
            raise FileError(f"{path}:{number}: expected an MD5 or SHA-256 digest and a file name, got {line[:80]!r}")
        name = found[2].removeprefix("./")
        if name.startswith("/") or ".." in PurePosixPath(name).parts or re.search(r"[\\:\0]", name):
            raise FileError(f"{path}:{number}: {found[2]!r} leads out of the folder, refused")
        listed[name] = found[1].lower()
    if not listed:
        raise FileError(f"{path}: lists no file, so nothing can be verified")
    return listed


def write_checklist(folder: Path, names: Iterable[str]) -> None:
    """Write SHA-256 digests of a folder's files as its checklist.chk."""
    lines = [f"{digest(folder / name, 'sha256')}  {name}\n" for name in names]
    write_whole(folder / CHECKLIST, "".join(lines))


def check_files(folder: Path) -> list[str]:
    """Names of the files that agree with the folder's checklist.chk; MismatchError if any doesn't."""
    listed = read_checklist(folder / CHECKLIST)
    total = sum((folder / name).stat().st_size for name in listed if (folder / name).is_file())
    wrong = []
    with progress("verifying", total) as advance:
        for name, wanted in listed.items():
            if not (folder / name).is_file():
                wrong.append(f"{name} is listed but missing")
                continue
            algorithm = _ALGORITHM[len(wanted)]
            got = digest(folder / name, algorithm, advance)
            if got != wanted:
                wrong.append(f"{name}: {algorithm} expected {wanted}, got {got}")
    if wrong:
        raise MismatchError(f"{folder}: {'; '.join(wrong)}; download it again")
    return list(listed)
