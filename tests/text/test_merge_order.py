"""Lists of merges that ranks can't say, found by comparing with `tokenizers`."""

from __future__ import annotations

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from llama3_scratch.errors import FileError
from llama3_scratch.text.byte_level import merges as every_merge
from llama3_scratch.text.hf_tokenizer import read_tokenizer_json
from tests.tokenizer_json import document, folder, theirs

PIECES = st.tuples(st.integers(0, 9), st.integers(0, 9))
TEXTS = ["abcabc", "aaaaa", "abab", "cbacba", "aabbcc", "bcbcb"]


def vocabulary(picks: list[tuple[int, int]]) -> list[str]:
    """Merges of tokens over a, b and c, each made of two of those before it."""
    tokens, merges = ["a", "b", "c"], []
    for left, right in picks:
        pair = tokens[left % len(tokens)], tokens[right % len(tokens)]
        if "".join(pair) not in tokens and len("".join(pair)) < 7:
            tokens.append("".join(pair))
            merges.append(" ".join(pair))
    return merges


@settings(deadline=None, max_examples=200)
@given(
    st.lists(PIECES, max_size=7),
    st.lists(PIECES, max_size=2),
    st.booleans(),
    st.lists(st.text("abc", min_size=1, max_size=12), max_size=8),
)
def test_what_is_read_merges_as_tokenizers_does(tmp_path_factory, picks, others, ignore_merges, texts):
    merges = vocabulary(picks)
    data = document(merges=tuple(merges))
    tokens = [merge.replace(" ", "") for merge in merges]
    # A second way to a token, which a trainer wouldn't write.
    for index, cut in others:
        if tokens and (token := tokens[index % len(tokens)]) and 0 < cut < len(token):
            pair = (token[:cut], token[cut:])
            at = index % len(tokens)
            if set(pair) <= {*"abc", *tokens} and " ".join(pair) not in data["model"]["merges"]:
                place = [merge.replace(" ", "") for merge in data["model"]["merges"]].index(tokens[at])
                data["model"]["merges"].insert(place + 1, " ".join(pair))
    data["model"]["ignore_merges"] = ignore_merges
    try:
        ours = read_tokenizer_json(folder(tmp_path_factory.mktemp("merges"), data))
    except FileError as error:
        event("refused")
        assert "isn't what merging its own bytes gives" in str(error)
        return
    event("read")
    encode = theirs(data).encode
    for text in [*TEXTS, *tokens, *texts]:
        if len(data["model"]["merges"]) > len(tokens) and not ignore_merges and text in tokens:
            continue  # Llama 3's first tokenizer.json was such a file, and Meta's own tokenizer takes whole words
        assert ours.encode(text, bos=False, eos=False) == encode(text).ids, text


@pytest.mark.parametrize(
    ("merges", "ignore_merges", "token"),
    [
        (("a b", "b c", "a bc"), False, "abc"),  # ab is joined before bc is
        (("a b", "b c", "a bc"), True, "abc"),
        (("a b", "ab c"), False, None),
        (("a a", "a aa"), False, "aaa"),  # the leftmost two go first
        (("a a", "aa a", "aa aa"), False, None),
        (("a b", "c a", "ca b"), False, "cab"),
    ],
)
def test_one_of_each(merges, ignore_merges, token, tmp_path):
    data = document(merges=merges)
    data["model"]["ignore_merges"] = ignore_merges
    if token is None:
        read_tokenizer_json(folder(tmp_path, data))
        return
    with pytest.raises(FileError, match=f"'{token}', isn't what merging its own bytes gives"):
        read_tokenizer_json(folder(tmp_path, data))


def test_every_way_to_a_token_may_be_listed(tmp_path):
    """As in the files that are converted from ranks, where a token may be reached as a whole word only."""
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"ab": 256, b"bc": 257, b"abc": 258, b"aabc": 259}
    data = document(merges=tuple(f"{left.decode()} {right.decode()}" for left, right in every_merge(ranks)))
    data["model"]["vocab"] = {token: id for token, id in data["model"]["vocab"].items() if id < 256}
    data["model"]["vocab"] |= {"ab": 256, "bc": 257, "abc": 258, "aabc": 259}
    data["model"]["ignore_merges"] = True
    ours = read_tokenizer_json(folder(tmp_path, data))
    for text in TEXTS:
        assert ours.encode(text, bos=False, eos=False) == theirs(data).encode(text).ids
