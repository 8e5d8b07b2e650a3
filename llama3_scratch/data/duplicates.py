"""Documents that were there before, word for word or nearly: what stands often is learnt by heart."""

from __future__ import annotations

import hashlib
import re

from llama3_scratch.errors import UsageError

_NGRAM = 5  # words, or Chinese characters, of the n-grams that texts are compared by
_HASHES = 128  # of a MinHash signature


class Exact:
    """Whether a text was seen before, but for spaces and capitals; 16 bytes are kept of each."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def __call__(self, text: str) -> bool:
        digest = hashlib.sha256(" ".join(text.lower().split()).encode()).digest()[:16]
        if digest in self._seen:
            return True
        self._seen.add(digest)
        return False


class Near:
    """Whether of a text's n-grams of five words about the share `threshold` stood in one text seen before.

    The share of n-grams in common (Jaccard's) is estimated by MinHash signatures, and candidates are looked up in
    buckets (datasketch's MinHashLSH), so that texts aren't compared one with another.
    """

    def __init__(self, threshold: float) -> None:
        if not 0 < threshold < 1:
            raise UsageError(f"near duplicates have a share between 0 and 1 in common, got {threshold}")
        try:
            from datasketch import MinHash, MinHashLSH
        except ImportError as error:
            raise UsageError('near duplicates are found by datasketch: pip install -e ".[train]"') from error
        self._min_hash, self._threshold = MinHash, threshold
        self._index = MinHashLSH(threshold=threshold, num_perm=_HASHES)
        self._signatures: list = []

    def __call__(self, text: str) -> bool:
        words = re.findall(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+", text.lower())
        ngrams = {" ".join(words[i : i + _NGRAM]) for i in range(max(1, len(words) - _NGRAM + 1))}
        signature = self._min_hash(num_perm=_HASHES)
        signature.update_batch([ngram.encode() for ngram in ngrams])
        if any(self._signatures[other].jaccard(signature) >= self._threshold for other in self._index.query(signature)):
            return True
        self._index.insert(len(self._signatures), signature)
        self._signatures.append(signature)
        return False
