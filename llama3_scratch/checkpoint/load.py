"""`load`: any supported file or folder → config, params and tokenizer."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from llama3_scratch.checkpoint import gguf, gguf_header, hf, llama2c, meta
from llama3_scratch.checkpoint.check import SCAN_LIMIT, check, scan
from llama3_scratch.checkpoint.fingerprint import Origin
from llama3_scratch.checkpoint.names import resolve
from llama3_scratch.config import Config, expected
from llama3_scratch.errors import FileError, MissingFileError, UsageError
from llama3_scratch.stored import Params, map_tensors, n_bytes, stored
from llama3_scratch.text.hf_tokenizer import read_tokenizer_json
from llama3_scratch.text.tokenizer import Tokenizer
from llama3_scratch.text.tokenizer_file import EXTRA_FILE, read_tokenizer, with_rows

log = logging.getLogger("llama3_scratch")


@dataclass(frozen=True)
class Checkpoint:
    """A model that was read: its sizes, its weights under Meta's names, its tokenizer, and where it came from.

    By its origin, where it has one, the hash of its weights is remembered.
    """

    config: Config
    params: Params
    tokenizer: Tokenizer | None
    path: Path
    origin: Origin | None = field(default=None, repr=False, compare=False)

    def __repr__(self) -> str:
        forms = {stored(self.params, name.removesuffix(".weight")).name for name in expected(self.config)}
        size = f"{self.config.n_parameters:,} parameters in {', '.join(sorted(forms))}"
        return f"Checkpoint({self.path}: {size}, {self.tokenizer or 'no tokenizer'})"

    def require_tokenizer(self) -> Tokenizer:
        """Its tokenizer, FileError where it has none."""
        if self.tokenizer is None:
            raise FileError(f"{self.path}: has no tokenizer, so it can't take text; use it from Python, with tokens")
        return self.tokenizer


def layout(path: Path) -> str:
    """Which door opens `path`: "meta", "hf", "gguf" or "llama2c"."""
    if not path.exists():
        raise FileError(f"{path}: not found; expected a folder with weights, a .gguf or .bin file, or a known name")
    if path.is_file():
        if path.suffix.lower() == ".gguf" or gguf_header.is_gguf(path):
            return "gguf"
        if path.suffix == ".bin":
            return "llama2c"
        if blob := _ollamas_blob(path):
            raise FileError(f"{path}: Ollama's list of a model's files; its weights are {blob}, give that")
        raise FileError(f"{path}: expected a folder, a .gguf or a .bin file; give the folder that it lies in")
    names = [entry.name for entry in path.iterdir()]
    has_hf = any(
        name.startswith("model") and name.endswith((".safetensors", ".safetensors.index.json")) for name in names
    )
    if any(name.startswith("consolidated.") and name.endswith(".pth") for name in names):
        if has_hf:
            log.warning("%s: both consolidated.*.pth and model*.safetensors are here; Meta's are taken", path)
        return "meta"
    if has_hf:
        return "hf"
    ggufs = sorted(name for name in names if name.lower().endswith(".gguf"))
    inside = ["original"] if (path / "original").is_dir() else ggufs[:1]
    hint = "".join(f"; there is {path / name}, give that" for name in inside)
    raise FileError(f"{path}: no weights: looked for consolidated.*.pth, model*.safetensors and *.gguf{hint}")


def _ollamas_blob(path: Path) -> Path | None:
    """The weights that a manifest of Ollama's names: they lie in `blobs`, beside `manifests`."""
    try:
        with path.open("rb") as file:
            layers = json.loads(file.read(100_000))["layers"]
        digests = [layer["digest"] for layer in layers if layer["mediaType"] == "application/vnd.ollama.image.model"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    root = next((parent.parent for parent in path.parents if parent.name == "manifests"), None)
    if root is None or not digests or not re.fullmatch(r"sha256:[0-9a-f]{64}", str(digests[0])):
        return None
    return root / "blobs" / digests[0].replace(":", "-")


def load(
    path_or_name: str | Path,
    *,
    device: torch.device | str = "cpu",
    rope_scale_factor: float | None = None,
    allow_extra: bool = False,
    blocks: str = "floats",
    needs_tokenizer: bool = False,
) -> Checkpoint:
    """Read a checkpoint, its weights in their stored dtype and, on a CPU, mapped from the file where that can be.

    A GGUF file's quantised tensors become floats; `blocks="stored"` keeps those in Q8_0, Q4_0 and Q4_1 as they are, in
    a quarter of the memory or less, and with the same logits.
    `path_or_name` is Meta's or Hugging Face's folder, a `.gguf` or llama2.c `.bin` file, or a name that
    `python -m llama3_scratch.download` knows. Raises FileError, with one sentence, for anything that isn't whole. A
    folder without a tokenizer is, its `tokenizer` is None; unless the caller `needs_tokenizer`, whose FileError comes
    before its weights are read.
    """
    path = resolve(path_or_name)
    kind = layout(path)
    if rope_scale_factor is not None and kind != "meta":
        raise UsageError(f"`rope_scale_factor` is for Meta's folders, whose params.json lacks it; {path} says its own")
    if allow_extra and kind not in ("meta", "hf"):
        raise UsageError(f"`allow_extra` is for Meta's and Hugging Face's folders, {path} is a file of its own kind")
    tokenizer: Tokenizer | None = None
    if kind == "meta":
        tokenizer = if_there(find_tokenizer, path, needed=needs_tokenizer)  # first: shards are merged into memory
        config, params = meta.read_meta(path, rope_scale_factor=rope_scale_factor, allow_extra=allow_extra)
    elif kind == "hf":
        tokenizer = if_there(read_tokenizer_json, path, needed=needs_tokenizer)
        config, params = hf.read_hf(path, allow_extra=allow_extra)
    elif kind == "gguf":
        config, params, tokenizer = gguf.read_gguf(path, blocks=blocks)
    else:
        config, params = llama2c.read_llama2c(path)
    check(params, config, path)
    if tokenizer is not None:
        tokenizer = with_rows(tokenizer, config.vocab_size, path)
    if n_bytes(params) < SCAN_LIMIT:
        scan(params, path)
    if torch.device(device).type != "cpu":
        params = map_tensors(params, lambda tensor: tensor.to(device))
    checkpoint = Checkpoint(config, params, tokenizer, path)
    if needs_tokenizer:
        checkpoint.require_tokenizer()
    return checkpoint


def weight_files(checkpoint: Checkpoint) -> dict[str, str]:
    """The file within `checkpoint.path` that each weight was read from; of several, the first and the last.

    A tied head is the embedding's, unless it is stored as a copy.
    """
    path, names = checkpoint.path, checkpoint.params
    match layout(path):
        case "meta":
            found = meta.weight_files(path, names)
        case "hf":
            found = hf.weight_files(path)
        case "gguf":
            found = gguf.weight_files(path, names)
        case _:
            found = dict.fromkeys(names, path.name)
    tied = {"output.weight": found["tok_embeddings.weight"]} if "tok_embeddings.weight" in found else {}
    return tied | found


def if_there(read: Callable[[Path], Tokenizer], folder: Path, *, needed: bool = False) -> Tokenizer | None:
    """The tokenizer; None, with a warning, where there is none and it isn't `needed`. A damaged one is an error."""
    try:
        return read(folder)
    except MissingFileError as error:
        if needed:
            raise
        log.warning("%s; tokens can be given, but no text", error)
        return None


def find_tokenizer(folder: Path) -> Tokenizer:
    """The `tokenizer.model` of Meta's folder, of its parent or of `original/`."""
    places = [place / "tokenizer.model" for place in (folder, folder.parent, folder / "original")]
    found = next((place for place in places if place.exists()), None)
    if found is None:
        raise MissingFileError(
            f"{places[0]}: not found, nor in {folder.parent} or {places[2].parent}; it comes with the weights"
        )
    tokenizer = read_tokenizer(found)
    if not found.with_name(EXTRA_FILE).exists() and not meta.says_instruct(folder):
        tokenizer.set_chat_format(None)
    return tokenizer
