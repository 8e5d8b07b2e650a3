"""Byte-level BPE as Hugging Face and GGUF store it ↔ the tokenizer of ranks.

Their tokens are strings in GPT-2's alphabet (one printable character per byte) with a list of merges; ours are bytes
whose id is their priority. The two agree where ids rise in the order of the merges, as they do in every vocabulary
that a BPE trainer wrote; another one is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.tokenizer import PATTERN, Tokenizer

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# GPT-2's after every digit was set apart: a run of spaces before a digit then ends its text and stays whole.
SMOLLM_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+"
# By GGUF's `tokenizer.ggml.pre`.
PATTERNS = {
    "llama-bpe": PATTERN,
    "llama3": PATTERN,
    "smollm": SMOLLM_PATTERN,
    "gpt-2": GPT2_PATTERN,
    "default": GPT2_PATTERN,
}
# The system line with which SmolLM2's template begins a chat that has none.
SMOLLM_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def _alphabet() -> dict[str, int]:
    """GPT-2's character for each byte: printable Latin-1 as itself, the others from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


BYTE_OF = _alphabet()
CHARACTER_OF = {byte: character for character, byte in BYTE_OF.items()}


def to_alphabet(token: bytes) -> str:
    """A token in GPT-2's byte alphabet."""
    return "".join(CHARACTER_OF[byte] for byte in token)


def byte_level_tokenizer(
    tokens: dict[str, int],
    merges: Sequence[tuple[str, str]],
    special_tokens: dict[str, int],
    *,
    pattern: str,
    bos_id: int | None,
    eos_id: int | None,
    stop_tokens: Sequence[int],
    chat_format: str | None,
    add_bos: bool,
    system_prompt: str | None = None,
    ignore_merges: bool = False,
    source: Path,
) -> Tokenizer:
    """The tokenizer of a vocabulary in GPT-2's byte alphabet; FileError, naming the token, where ranks can't carry it.

    `special_tokens` are plain text and may stand in `tokens` too: every token that isn't made by merging belongs
    there. `ignore_merges`: a whole word that is a token is taken as it is, which is what tiktoken does.
    """
    special_ids = set(special_tokens.values())
    ids = {token: id for token, id in tokens.items() if id not in special_ids}
    ranks: dict[bytes, int] = {}
    for token, id in ids.items():
        try:
            ranks[bytes([BYTE_OF[character] for character in token])] = id
        except KeyError as error:
            raise FileError(
                f"{source}: token {id}, {token!r}, has {error.args[0]!r}, which is outside GPT-2's byte alphabet; "
                "only byte-level BPE can be read"
            ) from error
    if len(set(ranks.values())) < len(ids) or b"" in ranks:
        raise FileError(f"{source}: a token is empty or an id stands twice, expected one id for each token")
    last, made = -1, set()
    for index, (left, right) in enumerate(merges):
        missing = next((token for token in (left, right, left + right) if token not in ids), None)
        if missing is not None:
            raise FileError(f"{source}: merge {index}, {left!r} {right!r}, needs {missing!r}, which is no token")
        id = ids[left + right]
        if id < last:
            raise FileError(
                f"{source}: merge {index}, {left!r} {right!r}, gives token {id} after a merge that gave {last}; "
                "expected ids that rise in the order of the merges, only such a vocabulary can be read"
            )
        last = id
        made.add(id)
    if not ignore_merges:
        stray = next((token for token, id in ids.items() if len(token) > 1 and id not in made), None)
        if stray is not None:
            raise FileError(f"{source}: token {ids[stray]}, {stray!r}, is made by no merge and isn't a special token")
    try:
        return Tokenizer(
            ranks,
            pattern=pattern,
            special_tokens=special_tokens,
            bos_id=bos_id,
            eos_id=eos_id,
            stop_tokens=stop_tokens,
            chat_format=chat_format,
            add_bos=add_bos,
            system_prompt=system_prompt,
        )
    except UsageError as error:
        raise FileError(f"{source}: {error}") from error


def chat_settings(template: str | None, special_tokens: dict[str, int]) -> tuple[str | None, str | None]:
    """(chat_format, system_prompt) that a chat template and the special tokens mean; (None, None) without either."""
    if template is None:
        return None, None
    if "<|start_header_id|>" in template and "<|start_header_id|>" in special_tokens:
        return "llama3", None
    if "<|im_start|>" in template and "<|im_start|>" in special_tokens:
        return "chatml", SMOLLM_SYSTEM if SMOLLM_SYSTEM in template else None
    return None, None
