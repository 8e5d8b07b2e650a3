"""Byte-level BPE as Hugging Face and GGUF store it, tokens and merges ↔ the ranks of our tokenizer.

Their tokens are strings in GPT-2's alphabet (one printable character per byte) with a list of merges; ours are bytes
whose id is their priority. The two agree where ids rise in the order of the merges, as they do in every vocabulary
that a BPE trainer wrote; another one is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.text.merge_order import first_difference
from llama3_scratch.text.tokenizer import Tokenizer


def _alphabet() -> dict[str, int]:
    """GPT-2's character for each byte: printable Latin-1 as itself, the others from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


BYTE_OF = _alphabet()
_CHARACTER_OF = {byte: ord(character) for character, byte in BYTE_OF.items()}


def to_alphabet(token: bytes) -> str:
    """A token in GPT-2's byte alphabet."""
    return token.decode("latin-1").translate(_CHARACTER_OF)


def byte_level_tokenizer(
    tokens: dict[str, int],
    merges: Sequence[Sequence[str]],
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
    splits: Sequence[str] = (),
    added_tokens: Mapping[str, int] | None = None,
    token_flags: Mapping[str, Mapping[str, bool]] | None = None,
    longest_first: bool = False,
    source: Path,
) -> Tokenizer:
    """The tokenizer of a vocabulary in GPT-2's byte alphabet; FileError, naming the token, where ranks can't carry it.

    `special_tokens` and `added_tokens` are plain text and may stand in `tokens` too: every token that isn't made by
    merging is one of them. `ignore_merges`: a whole word that is a token is taken as it is, as tiktoken does.
    """
    ids = dict(tokens)
    merged = {*chain.from_iterable(merges), *map("".join, merges)}
    names = {id: name for name, id in (special_tokens | dict(added_tokens or {})).items()}
    for token, id in tokens.items():
        if id in names and len(token) > 1 and token not in merged:
            del ids[token]
        elif id in names and (token != names[id] or to_alphabet(token.encode()) != token):
            raise FileError(
                f"{source}: added token {id}, {names[id]!r}, is also {token!r} in bytes, which is another text"
            )
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
        try:
            _, _, id = ids[left], ids[right], ids[left + right]
        except KeyError as error:
            raise FileError(
                f"{source}: merge {index}, {left!r} {right!r}, needs {error.args[0]!r}, which is no token"
            ) from error
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
    if (wrong := first_difference(ids, merges, ignore_merges=ignore_merges)) is not None:
        raise FileError(
            f"{source}: token {ids[wrong]}, {wrong!r}, isn't what merging its own bytes gives, so ranks give other "
            "ids; only a vocabulary as a BPE trainer writes it can be read"
        )
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
            splits=splits,
            added_tokens=added_tokens,
            token_flags=token_flags,
            longest_first=longest_first,
        )
    except UsageError as error:
        raise FileError(f"{source}: {error}") from error


def merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The merges that ranks stand for, in order: every split of a token in two tokens, since tiktoken takes any."""
    pairs = []
    for token in sorted(ranks, key=ranks.__getitem__):
        halves = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [pair for pair in halves if pair[0] in ranks and pair[1] in ranks]
        pairs += sorted(known, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    return pairs
