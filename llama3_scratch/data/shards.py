"""Token shards: texts as long rows of ids on disk, mapped and never read whole.

A folder holds `train_000.bin` …, `validation_000.bin` … (ids of 2 or 4 bytes, little-endian), the tokenizer they were
made with, and `shards.json`, which says how long each is and what its bytes hash to. Every document stands between the
tokenizer's begin and end tokens, as far as it has them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from llama3_scratch.data.documents import placed
from llama3_scratch.data.windows import Windows
from llama3_scratch.errors import FileError, MissingFileError, UsageError
from llama3_scratch.system.files import read_json, require_file
from llama3_scratch.system.writing import make_folder, unwritable, write_whole
from llama3_scratch.text.tokenizer import Tokenizer
from llama3_scratch.text.tokenizer_file import FILE, read_tokenizer, write_tokenizer

log = logging.getLogger("llama3_scratch")

MANIFEST = "shards.json"
PARTS = ("train", "validation")
SHARD_TOKENS = 1 << 28  # of a file
MAX_SAMPLED_DOCUMENTS = 1000  # that are looked at before it's settled that chance holds out none, or all


def write_shards(
    documents: Iterable[str],
    tokenizer: Tokenizer,
    folder: Path,
    *,
    validation: float = 0.01,
    seed: int = 0,
    shard: int = SHARD_TOKENS,
) -> dict[str, Any]:
    """Encode documents into `folder`, the share `validation` of them held out; what its manifest says.

    Which are held out depends on the seed and on what a document says, so that a text that stands twice is never in
    both parts. Where chance would hold out none or all of up to MAX_SAMPLED_DOCUMENTS documents, as of a single long
    one, the end of each is held out, from a white space on. Documents are taken one by one: they may be more than
    memory holds.
    """
    if tokenizer.bos_id is None and tokenizer.eos_id is None:
        raise UsageError("the tokenizer has neither a begin nor an end token, so documents couldn't be separated")
    make_folder(folder)
    try:
        (folder / MANIFEST).unlink(missing_ok=True)  # whoever reads now finds no data rather than half of two
        writers = {part: _Writer(folder, part, tokenizer.n_words, shard) for part in PARTS}
        bos, eos = tokenizer.bos_id is not None, tokenizer.eos_id is not None
        for number, (part, text) in enumerate(_assigned(documents, validation, seed), start=1):
            with placed(f"document {number}, {text!r:.40}"):
                ids = tokenizer.encode(text, bos=bos, eos=eos)
            writers[part].add(ids, len(text.encode()))
        manifest = {
            "vocab_size": tokenizer.n_words,
            "dtype": id_dtype(tokenizer.n_words).name,
            "parts": {part: writer.end() for part, writer in writers.items()},
        }
        write_tokenizer(tokenizer, folder, extra_file=True)
        write_whole(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    except OSError as error:
        raise unwritable(folder, error) from error
    if not manifest["parts"]["train"]["tokens"]:
        raise FileError(f"{folder}: no document is left to train on")
    if validation and not manifest["parts"]["validation"]["tokens"]:
        log.warning(
            "%s: nothing was held out of %d documents, so there will be no held-out loss",
            folder,
            manifest["parts"]["train"]["documents"],
        )
    return manifest


def _assigned(documents: Iterable[str], validation: float, seed: int) -> Iterator[tuple[str, str]]:
    """Each document, or its beginning and its end, behind the part that it goes into."""

    def part(text: str) -> str:
        digest = hashlib.sha256(f"{seed}\n{text}".encode(errors="surrogatepass")).digest()
        return PARTS[int.from_bytes(digest[:8], "big") < validation * 2**64]

    parted = ((part(text), text) for text in documents if text.strip())
    if not 0 < validation < 1:
        yield from parted
        return
    first: list[tuple[str, str]] = []
    for one in parted:
        first.append(one)
        if one[0] != first[0][0] or len(first) == MAX_SAMPLED_DOCUMENTS:
            break
    else:
        if first:
            log.info("held out is the end of each of %d documents, %g %% of it", len(first), 100 * validation)
            for _, text in first:
                yield from zip(PARTS, _ends(text, validation), strict=False)
            return
    yield from first
    yield from parted


def _ends(text: str, share: float) -> tuple[str, ...]:
    """The text without its last `share`, and that, parted at a line's end, else at a white space, else behind a full
    stop of Chinese or Japanese, which are written without; one where there's none of these."""
    least = round(len(text) * (1 - share))
    places = (re.compile(pattern).search(text, least) for pattern in (r"\n", r"\s", "(?<=[。！？])"))
    found = next(filter(None, places), None)
    parts = (text[: found.start()], text[found.end() :]) if found else (text,)
    return parts if all(part.strip() for part in parts) else (text,)


def id_dtype(vocab_size: int) -> np.dtype:
    """The type of stored ids: the smallest that holds them all."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


class _Writer:
    """The files of one part, each begun when the last is full."""

    def __init__(self, folder: Path, part: str, vocab_size: int, shard: int) -> None:
        self._folder, self._part, self._dtype, self._shard = folder, part, id_dtype(vocab_size), shard
        self._files: list[dict[str, Any]] = []
        self._buffer = array("I")
        self._documents = self._bytes = 0
        for old in folder.glob(f"{part}_*.bin"):
            old.unlink()

    def add(self, ids: list[int], n_bytes: int) -> None:
        self._documents += 1
        self._bytes += n_bytes
        self._buffer.extend(ids)
        while len(self._buffer) >= self._shard:
            self._write(self._shard)

    def _write(self, tokens: int) -> None:
        data = np.array(self._buffer[:tokens], dtype=self._dtype).tobytes()
        name = f"{self._part}_{len(self._files):03}.bin"
        write_whole(self._folder / name, data)
        self._files.append({"name": name, "tokens": tokens, "sha256": hashlib.sha256(data).hexdigest()})
        del self._buffer[:tokens]

    def end(self) -> dict[str, Any]:
        if self._buffer:
            self._write(len(self._buffer))
        tokens = sum(file["tokens"] for file in self._files)
        return {"documents": self._documents, "bytes": self._bytes, "tokens": tokens, "files": self._files}


class Shards:
    """What `write_shards` wrote, mapped. Raises FileError for anything that isn't as it was written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / MANIFEST).is_file():
            found = "a file" if folder.is_file() else f"no {MANIFEST} in it" if folder.is_dir() else "nothing"
            raise MissingFileError(f"{folder}: expected a folder of prepared data, found {found}")
        manifest = read_json(folder / MANIFEST, "the manifest of prepared data")
        self.tokenizer = read_tokenizer(folder / FILE)
        if self.tokenizer.n_words != manifest["vocab_size"]:
            raise FileError(
                f"{folder}: the tokenizer has {self.tokenizer.n_words} tokens, the data were made with "
                f"{manifest['vocab_size']}; prepare them again"
            )
        self._dtype = np.dtype(manifest["dtype"]).newbyteorder("<")
        self.parts: dict[str, dict[str, Any]] = manifest["parts"]

    def batches(self, part: str, *, size: int, length: int, seed: int) -> Windows:
        """Batches of `size` rows of `length` tokens of a part, shuffled by `seed`, each epoch in another order."""
        paths = [self.folder / file["name"] for file in self.parts[part]["files"]]
        files = [self._map(file) for file in self.parts[part]["files"]]
        digest = hashlib.sha256("".join(file["sha256"] for file in self.parts[part]["files"]).encode()).hexdigest()
        fingerprint = f"{digest[:16]} {size}×{length} seed {seed}"
        windows = Windows(files, self.tokenizer, size=size, length=length, seed=seed, fingerprint=fingerprint)
        windows.watch(paths)
        return windows

    def held_out(self, *, size: int, length: int) -> Windows | None:
        """The held-out part in batches of up to `size` rows, None and a warning where it has not even one."""
        tokens = [file["tokens"] for file in self.parts["validation"]["files"]]
        rows = sum(max(0, number - 1) // length for number in tokens)
        if not rows:
            log.warning(
                "%s: held out are %d tokens, too few for a row of %d, so there will be no held-out loss; prepare the "
                "data with a larger share `validation` to have one",
                self.folder,
                sum(tokens),
                length,
            )
            return None
        return self.batches("validation", size=min(size, rows), length=length, seed=0)

    def _map(self, file: dict[str, Any]) -> np.ndarray:
        path = self.folder / file["name"]
        require_file(path, "token ids")
        size, wanted = path.stat().st_size, file["tokens"] * self._dtype.itemsize
        if size % self._dtype.itemsize:
            raise FileError(f"{path}: {size} bytes, which isn't a multiple of the {self._dtype.itemsize} of an id")
        if size != wanted:
            raise FileError(f"{path}: {size} bytes, {MANIFEST} says {wanted}; prepare the data again")
        mapped = np.memmap(path, dtype=self._dtype, mode="r")
        if hashlib.sha256(mapped.data).hexdigest() != file["sha256"]:
            raise FileError(f"{path}: isn't what was written; prepare the data again")
        return mapped
