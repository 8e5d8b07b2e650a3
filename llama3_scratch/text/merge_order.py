"""Whether ranks say what a list of merges says: tiktoken joins any neighbours that make a token, BPE those listed.

They agree where every token, encoded by itself, comes out as itself: then at the moment when its two halves meet, they
are the pair that is listed. So it is in what a BPE trainer wrote, but not where somebody has added tokens by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

Rank = Callable[[str, str], int | None]


def first_difference(ids: dict[str, int], merges: Sequence[Sequence[str]], *, ignore_merges: bool) -> str | None:
    """A token that tiktoken makes where the merges don't, or the other way round; None where there is none.

    `ids` are tokens in GPT-2's byte alphabet, which rise in the order of the merges. With `ignore_merges` a word that
    is a token is taken as it is, in both.
    """
    order = {(left, right): index for index, (left, right) in enumerate(merges)}
    halves: dict[str, tuple[str, str]] = {}
    for left, right in merges:
        halves.setdefault(left + right, (left, right))
    longer = [token for token in ids if len(token) > 1]
    if len(order) > len(halves):  # several ways to a token, as where every one is listed
        doubtful = [token for token in longer if _unlisted(token, ids, order)]
    else:
        doubtful = []
        unsure: set[str] = set()
        for token in sorted(longer, key=ids.__getitem__):
            if token not in halves or _crossed(token, halves, order, unsure):
                unsure.add(token)
                doubtful.append(token)

    def listed(left: str, right: str) -> int | None:
        return order.get((left, right))

    def any_token(left: str, right: str) -> int | None:
        return ids.get(left + right)

    for token in doubtful:
        by_merges = _merged(token, listed)
        if ignore_merges or len(order) > len(halves):
            if by_merges != _merged(token, any_token):
                return token
        elif by_merges != [token]:
            return token
    return None


def _unlisted(token: str, ids: dict[str, int], order: dict[tuple[str, str], int]) -> bool:
    """Whether `token` can be cut in two tokens that no merge joins."""
    for cut in range(1, len(token)):  # plain loops: Llama 3's vocabulary has 800,000 cuts
        if (right := token[cut:]) in ids and (left := token[:cut]) in ids and (left, right) not in order:
            return True
    return False


def _crossed(
    token: str, halves: dict[str, tuple[str, str]], order: dict[tuple[str, str], int], unsure: set[str]
) -> bool:
    """Whether a merge may join something across the middle of `token` before its halves are whole."""
    left, right = halves[token]
    limit = order[left, right]
    ends: list[tuple[str, int]] = []  # what stands left of the middle, and the merge that takes it up
    while True:
        if left in unsure:
            return True
        ends.append((left, limit))
        if left not in halves:
            break
        limit, left = order[halves[left]], halves[left][1]
    limit = order[halves[token]]
    while True:
        if right in unsure:
            return True
        for end, taken in ends:
            index = order.get((end, right))
            # Of one merge in several places the leftmost goes first.
            if index is not None and (end, right) != halves[token] and index < taken and index <= limit:
                return True
        if right not in halves:
            return False
        limit, right = order[halves[right]], halves[right][0]


def _merged(token: str, rank: Rank) -> list[str]:
    """`token`'s bytes, merged as BPE does: the lowest rank first, and of equal ones the leftmost."""
    parts = list(token)
    while len(parts) > 1:
        ranks = [rank(left, right) for left, right in pairwise(parts)]
        known = [each for each in ranks if each is not None]
        if not known:
            break
        at = ranks.index(min(known))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts
