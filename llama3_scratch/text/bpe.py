"""Byte-level byte-pair encoding, learnt and applied: where a tokenizer's ranks come from (arXiv:1508.07909).

A text is cut into pieces by a pattern, and each piece begins as its bytes. Then, again and again, the pair of
neighbours that is seen most often becomes a new token; its rank is the order in which it was made. Encoding does the
same merges in the same order. No torch here.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import regex

from llama3_scratch.errors import UsageError
from llama3_scratch.text.byte_level import BYTE_OF, merges, to_alphabet
from llama3_scratch.text.tokenizer import PATTERN, Tokenizer

Ranks = dict[bytes, int]


def train_bpe(texts: Iterable[str], size: int, *, pattern: str = PATTERN) -> Ranks:
    """The ranks of `size` tokens learnt from texts, or of fewer where there is nothing left to merge.

    Of pairs that are seen equally often the one of lower ranks is taken, as the `tokenizers` library does.
    """
    ranks = _single_bytes(size)
    counts = Counter(piece for text in texts for piece in regex.findall(pattern, text))
    words = [[ranks[bytes([byte])] for byte in piece.encode()] for piece in counts]
    often = list(counts.values())
    tokens = list(ranks)
    seen: Counter[tuple[int, int]] = Counter()  # of each pair, how often it is seen in all words
    where: defaultdict[tuple[int, int], set[int]] = defaultdict(set)  # and in which
    for word, ids in enumerate(words):
        for pair in pairwise(ids):
            seen[pair] += often[word]
            where[pair].add(word)
    queue = [(-count, pair) for pair, count in seen.items()]
    heapq.heapify(queue)
    while len(ranks) < size and queue:
        count, pair = heapq.heappop(queue)
        if -count != seen[pair]:  # it was merged away in part since it was put there
            if seen[pair] > 0:
                heapq.heappush(queue, (-seen[pair], pair))
            continue
        token = tokens[pair[0]] + tokens[pair[1]]
        if token not in ranks:
            ranks[token] = len(tokens)
            tokens.append(token)
        changed: Counter[tuple[int, int]] = Counter()
        for word in where.pop(pair):
            before = words[word]
            words[word] = after = _merged(before, pair, ranks[token])
            for old in pairwise(before):
                changed[old] -= often[word]
            for new in pairwise(after):
                changed[new] += often[word]
                where[new].add(word)
        for other, change in changed.items():
            seen[other] += change
            if change > 0:
                heapq.heappush(queue, (-seen[other], other))
        seen[pair] = 0
    return ranks


def encode(text: str, ranks: Ranks, *, pattern: str = PATTERN) -> list[int]:
    """Ids of a text: in each piece, the neighbours whose token has the lowest rank are merged first."""
    return [id for piece in regex.findall(pattern, text) for id in _encode_piece(piece.encode(), ranks)]


def _encode_piece(piece: bytes, ranks: Ranks) -> Iterator[int]:
    parts = [piece] if piece in ranks else [bytes([byte]) for byte in piece]
    while len(parts) > 1:
        pairs = [ranks.get(one + other, len(ranks)) for one, other in pairwise(parts)]
        first = min(pairs)
        if first == len(ranks):
            break
        at = pairs.index(first)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return (ranks[part] for part in parts)


def _merged(ids: list[int], pair: tuple[int, int], new: int) -> list[int]:
    """`ids` with every such pair, from the left, as one token."""
    merged: list[int] = []
    i = 0
    while i < len(ids):
        if i + 1 < len(ids) and (ids[i], ids[i + 1]) == pair:
            merged.append(new)
            i += 2
        else:
            merged.append(ids[i])
            i += 1
    return merged


def _single_bytes(size: int) -> Ranks:
    """All 256 bytes, printable ones first, as GPT-2 and Meta have them."""
    if size < 256:
        raise UsageError(f"a byte-level vocabulary has at least the 256 bytes, got a size of {size}")
    return {bytes([BYTE_OF[character]]): rank for rank, character in enumerate(sorted(BYTE_OF))}


def train_bpe_with_library(texts: Iterable[str], size: int, *, pattern: str = PATTERN) -> Ranks:
    """`train_bpe` by the `tokenizers` library, for texts of gigabytes: the same ranks."""
    _single_bytes(size)
    tokenizer = with_library({}, pattern=pattern)
    from tokenizers import pre_tokenizers, trainers

    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False, min_frequency=1
    )
    tokenizer.train_from_iterator(texts, trainer)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return {bytes(BYTE_OF[character] for character in token): rank for token, rank in vocabulary}


def with_library(ranks: Ranks, *, pattern: str = PATTERN) -> Any:
    """A `tokenizers.Tokenizer` of these ranks, whose ids are ours."""
    try:
        from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    except ImportError as error:
        raise UsageError('the library is tokenizers, which is missing: pip install -e ".[train]"') from error
    vocabulary = {to_alphabet(token): rank for token, rank in ranks.items()}
    pairs = [(to_alphabet(one), to_alphabet(other)) for one, other in merges(ranks)]
    # A piece that is a token as a whole is taken as it is, as tiktoken does.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=True) if ranks else models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer


def tokenizer_of(ranks: Ranks, *, pattern: str = PATTERN) -> Tokenizer:
    """A tokenizer of these ranks, with a token at the beginning of a text and one at its end behind them."""
    special = {name: len(ranks) + i for i, name in enumerate(("<|begin_of_text|>", "<|end_of_text|>"))}
    bos, eos = special.values()
    return Tokenizer(
        ranks,
        pattern=pattern,
        special_tokens=special,
        bos_id=bos,
        eos_id=eos,
        stop_tokens=[eos],
        chat_format=None,
        add_bos=True,
    )
