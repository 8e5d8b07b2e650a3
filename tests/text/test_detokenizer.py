"""Text as it streams: whole characters only, nothing of a stop string, nothing that drives a terminal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama3_scratch.checkpoint.hf_out import write_hf
from llama3_scratch.checkpoint.load import load
from llama3_scratch.text.detokenizer import Detokenizer, piece, text_of, visible
from llama3_scratch.text.dialog import decode_message
from llama3_scratch.text.tokenizer import PATTERN, Tokenizer
from tests import tiny


def feed(data: bytes, stop=(), reason="length"):
    """The texts seen after each byte, one token each, and the answer."""
    answer = Detokenizer(tiny.tokenizer(), [257], stop)
    seen = []
    for byte in data:
        done = answer.take(byte)
        seen.append(answer.text)
        if done:
            break
    answer.finish(reason)
    return seen, answer


def test_f117_half_characters_wait_and_are_flushed_at_the_end():
    seen, answer = feed("é€😀".encode())
    assert seen == ["", "é", "é", "é", "é€", "é€", "é€", "é€", "é€😀"]
    assert answer.text == "é€😀"
    assert feed("é€".encode()[:-1], reason="stop")[1].text == "é�"


@pytest.mark.parametrize("reason", ["length", "interrupted"])
def test_f117_a_character_that_a_limit_cuts_is_left_out(reason):
    for text in ("é", "€", "😀", "👩‍🚀", "x\u0301"):
        data = f"a{text}".encode()
        for end in range(1, len(data) + 1):
            seen, answer = feed(data[:end], reason=reason)
            assert answer.text == data[:end].decode(errors="ignore") and answer.tokens == list(data[:end])
            assert answer.text.startswith(seen[-1])
    assert feed(b"a\xffb\xe2", reason=reason)[1].text == "a�b", "what can't become a character isn't cut by a limit"
    assert feed("ST€".encode()[:-1], stop=["ST€"], reason=reason)[1].text == "ST"


def test_f118_a_stop_string_split_over_tokens_never_shows():
    seen, answer = feed(b"one STOP two", stop=["STOP"])
    assert answer.text == "one "
    assert all("S" not in text for text in seen)
    assert len(answer.tokens) == len("one STOP"), "nothing is taken after it"


def test_what_only_began_like_a_stop_string_comes_out():
    assert feed(b"a STO", stop=["STOP"])[1].text == "a STO"
    assert feed(b"aaab", stop=["aab"])[1].text == "a"
    assert feed(b"x END", stop=["STOP", "END", "ND"])[1].text == "x "


def test_a_stop_token_is_kept_as_a_token_and_leaves_no_text():
    answer = Detokenizer(tiny.tokenizer(), [257])
    assert [answer.take(token) for token in (104, 105, 257)] == [False, False, True]
    assert (answer.text, answer.tokens) == ("hi", [104, 105, 257])


def test_f117_half_a_character_before_a_stop_token_is_flushed_too():
    answer = Detokenizer(tiny.tokenizer(), [257])
    assert [answer.take(token) for token in (104, 0xE2, 257)] == [False, False, True]
    answer.finish("stop")
    assert answer.text == "h�"


@given(st.text(), st.lists(st.text(min_size=1, max_size=4), max_size=3))
def test_streaming_equals_cutting_the_whole_text(text, stop):
    ends = []  # the first position at which some stop string is complete decides
    for end in range(len(text) + 1):
        starts = [end - len(s) for s in stop if text[:end].endswith(s) and end >= len(s)]
        if starts:
            ends = starts
            break
    assert feed(text.encode(), stop)[1].text == (text[: min(ends)] if ends else text)


def test_f120_control_characters_are_shown_not_obeyed():
    assert visible("a\x1b[2Jb\x07\n\tc\x9b") == "a␛[2Jb␇\n\tc�"


def test_ids_that_only_pad_the_embedding_have_no_text_as_in_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    model = load(tiny.folder(tmp_path / "model", None))
    assert model.config.vocab_size == 272 > model.tokenizer.n_words == 258
    write_hf(tmp_path / "hf", model.params, model.config, model.tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    for ids in ([271], [72, 271, 105], [258, 259, 260], [72, 105]):
        assert text_of(ids, model.tokenizer) == theirs.decode(ids)
    assert decode_message([72, 271, 105], model.tokenizer)["content"] == "Hi"


def test_a_gap_in_the_vocabulary_has_no_text():
    ranks = {bytes([byte]): byte for byte in range(256)}
    tokenizer = Tokenizer(
        ranks,
        pattern=PATTERN,
        special_tokens={"<s>": 300},
        bos_id=300,
        eos_id=None,
        stop_tokens=[],
        chat_format=None,
        add_bos=True,
    )
    assert [piece(id, tokenizer) for id in (65, 256, 299, 300, 301, 10**9)] == [b"A", b"", b"", b"<s>", b"", b""]
