"""The model's own tokens in the place of others that say the same, and never of any that say something else."""

from __future__ import annotations

import pytest

from llama3_scratch.serving.said_before import MAX_ANSWERS, SaidBefore
from llama3_scratch.text.byte_level import BYTE_OF, byte_level_tokenizer
from llama3_scratch.text.pre_tokenizers import GPT2_PATTERN

END = 300


@pytest.fixture
def before():
    tokenizer = byte_level_tokenizer(
        {**BYTE_OF, "ab": 256},
        [("a", "b")],
        {"<end>": END},
        pattern=GPT2_PATTERN,
        bos_id=None,
        eos_id=END,
        stop_tokens=[END],
        chat_format=None,
        add_bos=False,
        source=__file__,
    )
    return SaidBefore(tokenizer), tokenizer


def test_an_answer_that_was_cut_otherwise_is_taken_as_it_was_said(before):
    said, tokenizer = before
    a, b = tokenizer.encode("a")[0], tokenizer.encode("b")[0]
    assert tokenizer.encode("ab") == [256]
    prompt = [*tokenizer.encode("x"), END]
    said.keep(prompt, [a, b, END], "ab", "")
    again = [*prompt, 256, END, *tokenizer.encode("y")]
    restored = [*prompt, a, b, END, *tokenizer.encode("y")]
    assert said.restore(again, "") == restored
    said.keep([*restored, END], [a, b, a, b, END], "abab", "")
    more = [*again, END, 256, 256, END, *tokenizer.encode("z")]
    assert said.restore(more, "") == [*restored, END, a, b, a, b, END, *tokenizer.encode("z")], "both answers"


def test_what_says_more_less_or_other_stays(before):
    said, tokenizer = before
    a, b = tokenizer.encode("a")[0], tokenizer.encode("b")[0]
    prompt = [*tokenizer.encode("x"), END]
    said.keep(prompt, [a, b, END], "ab", "key 0")
    for ids in ([*prompt, 256, a, END], [*prompt, a, END], [*prompt, b, a, END], [*prompt], [END, 256, END]):
        assert said.restore(ids, "key 0") == ids
    assert said.restore([*prompt, 256, END], "key 1") == [*prompt, 256, END], "another key's"
    assert said.restore([*prompt, 256], "key 0") == [*prompt, a, b], "an answer that is to be gone on with"


def test_an_answer_whose_text_was_cut_is_not_kept(before):
    said, tokenizer = before
    a, b = tokenizer.encode("a")[0], tokenizer.encode("b")[0]
    prompt = [*tokenizer.encode("x"), END]
    said.keep(prompt, [a, b, a, END], "ab", "")
    assert said.restore([*prompt, 256, END], "") == [*prompt, 256, END]


def test_the_oldest_are_forgotten(before):
    said, tokenizer = before
    a, b = tokenizer.encode("a")[0], tokenizer.encode("b")[0]
    for number in range(MAX_ANSWERS + 1):
        said.keep([number, END], [a, b, END], "ab", "")
    assert said.restore([0, END, 256, END], "") == [0, END, 256, END]
    assert said.restore([1, END, 256, END], "") == [1, END, a, b, END]
