"""Byte-pair encoding: ours learns what the library learns, and its ranks give tiktoken the ids that ours gives."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from storyteller.stories import stories

from llama3_scratch.errors import UsageError
from llama3_scratch.text.bpe import encode, tokenizer_of, train_bpe, train_bpe_with_library
from llama3_scratch.text.tokenizer_file import read_tokenizer, write_tokenizer
from tests.recipes import script

ENGLISH = list(stories(0, 60))
CHINESE = [
    "从前有座山，山上有座庙，庙里有个老和尚在给小和尚讲故事。讲的什么故事呢？",
    "小猫钓鱼：小猫看见蝴蝶飞来了，就去捉蝴蝶。蝴蝶飞走了，小猫空着手回来。",
    "床前明月光，疑是地上霜。举头望明月，低头思故乡。",
    "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。",
] * 3
SAMPLES = ["", " ", "Once upon a time", "naïve 🎈 x\r\n\r\n\ty 1234567", "小猫和小狗 went home.", "\x00\x7fÿ"]


@pytest.mark.parametrize("texts", [ENGLISH, CHINESE, ENGLISH + CHINESE], ids=["English", "Chinese", "both"])
@pytest.mark.parametrize("size", [256, 300, 700])
def test_ours_and_the_librarys_merges_are_the_same(texts, size):
    pytest.importorskip("tokenizers")
    ours = train_bpe(texts, size)
    assert ours == train_bpe_with_library(texts, size)
    assert len(ours) == size or texts is CHINESE, "where no pair is left, fewer"
    assert list(ours.values()) == list(range(len(ours)))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(alphabet="ab 长\n.", max_size=30), max_size=6), st.integers(256, 280))
def test_the_same_on_any_text(texts, size):
    pytest.importorskip("tokenizers")
    assert train_bpe(texts, size) == train_bpe_with_library(texts, size)


@pytest.mark.parametrize("texts", [ENGLISH, ENGLISH + CHINESE], ids=["English", "both"])
def test_ids_are_tiktokens(texts):
    ranks = train_bpe(texts, 600)
    tokenizer = tokenizer_of(ranks)
    for text in [*SAMPLES, *texts[:20]]:
        ids = tokenizer.encode(text, bos=False, eos=False)
        assert encode(text, ranks) == ids and tokenizer.decode(ids) == text


def test_frequent_words_become_tokens_and_text_gets_shorter():
    ranks = train_bpe(ENGLISH, 900)
    assert b" said" in ranks and b" happy" in ranks
    text = ENGLISH[0]
    assert len(encode(text, ranks)) < 0.4 * len(text.encode())
    shuffled = random.Random(0).sample(ENGLISH, len(ENGLISH))
    assert train_bpe(shuffled, 900) == ranks, "the order of texts says nothing"


def test_a_text_with_nothing_to_merge():
    assert len(train_bpe([""], 1000)) == 256 and len(train_bpe([], 256)) == 256
    assert len(train_bpe(["aaaa"], 1000)) == 258  # aa, aaaa
    with pytest.raises(UsageError, match="at least the 256 bytes, got a size of 255"):
        train_bpe(["a"], 255)
    with pytest.raises(UsageError, match="at least the 256 bytes"):
        train_bpe_with_library(["a"], 10)


def test_metas_file_gives_the_same_ids(tmp_path):
    tokenizer = tokenizer_of(train_bpe(ENGLISH, 500))
    write_tokenizer(tokenizer, tmp_path)
    again = read_tokenizer(tmp_path)
    assert again.n_words == 502 and again.bos_id == 500 and again.stop_tokens == [501]
    for text in SAMPLES:
        assert again.encode(text, bos=True, eos=True) == tokenizer.encode(text, bos=True, eos=True)


def test_three_encodings_are_compared(tmp_path, capsys):
    pytest.importorskip("tokenizers")
    write_tokenizer(tokenizer_of(train_bpe(ENGLISH, 500)), tmp_path)
    (tmp_path / "text.txt").write_text("\n\n".join(ENGLISH[:5] + CHINESE[:4] + SAMPLES[2:5]))
    bench = script("bench_bpe")
    assert bench([str(tmp_path / "text.txt"), "--tokenizer", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["tiktoken", "tokenizers", "ours"]
    assert all(line.endswith("MB/s  the same ids") for line in lines)
