"""Added tokens against `tokenizers` and transformers: words that are one token wherever they stand in a text."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.text import tokenizer as module
from llama3_scratch.text.byte_level import to_alphabet
from llama3_scratch.text.hf_tokenizer import read_tokenizer_json, write_tokenizer_json
from llama3_scratch.text.tokenizer import PATTERN, Tokenizer
from llama3_scratch.text.tokenizer_file import read_tokenizer, with_rows, write_tokenizer
from tests import tiny
from tests.tokenizer_json import FLAGS, document, folder, theirs


def word(content: str, **flags: bool) -> dict[str, Any]:
    return {"content": content, "special": False, **flags}


def check(ours: Tokenizer, data: dict[str, Any], text: str) -> list[int]:
    ids = ours.encode(text, bos=False, eos=False)
    assert ids == theirs(data).encode(text).ids, text
    assert ours.encode(text, bos=False, eos=False, allowed_special="all") == theirs(data, special=True).encode(text).ids
    return ids


WORDS = [
    "Zyx",
    "Zyxel",  # the longer one of two
    "xel",
    "eot_id",  # within the name of a control token
    " two words",
    "naïve 日本",
    "🙂",
    "  ",
    "    ",
    "\n\n",
]


def test_a_word_is_one_token_wherever_it_stands(tmp_path):
    data = document({"content": "<|eot_id|>"}, *(word(each) for each in WORDS))
    tokenizer = read_tokenizer_json(folder(tmp_path, data))
    assert list(tokenizer.special_tokens) == ["<|eot_id|>"]
    ids = tokenizer.added_tokens
    assert list(ids) == WORDS
    assert check(tokenizer, data, "aZyxb") == [97, ids["Zyx"], 98]
    assert check(tokenizer, data, "Zyxel!") == [ids["Zyxel"], 33]
    assert check(tokenizer, data, "") == []
    for text in [
        "ZyZyxZyxelxel Zyxelx",
        "<|eot_id|>eot_id",  # typed, a control token's name is text, and isn't searched for words either
        "one two words more",
        "a naïve 日本! naïve日本",
        "🙂🙂 a\n\n\nb       c",
        "Zyx" * 50,
    ]:
        assert tokenizer.decode(check(tokenizer, data, text)) == text
    assert tokenizer.decode_bytes([ids["🙂"]]) == "🙂".encode()


NAMES = st.text("ab <>|\nǰ", min_size=1, max_size=4)
ENTRY = st.fixed_dictionaries(
    {"content": NAMES},
    optional={flag: st.booleans() for flag in (*FLAGS, "special") if flag not in ("lstrip", "rstrip")},
)


@settings(deadline=None, max_examples=150)
@given(st.lists(ENTRY, max_size=6, unique_by=lambda entry: entry["content"]), st.text("ab <>|\nǰ", max_size=30))
def test_any_words_and_flags_are_found_as_tokenizers_finds_them(tmp_path_factory, entries, text):
    data = document(*entries)
    check(read_tokenizer_json(folder(tmp_path_factory.mktemp("words"), data)), data, text)


@pytest.mark.parametrize(
    "text", ["a  Zyx \t b", "Zyx", " Zyx ", "Zyx Zyx\u2003", "Zyx\x1c a", "aZyx Zyxa _Zyx ²Zyx -Zyx", "Zyx\n\nZyx"]
)
@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize(
    "flags", [{"lstrip": True}, {"rstrip": True}, {"lstrip": True, "rstrip": True}, {"single_word": True}]
)
def test_spaces_beside_a_word_and_single_words(flags, special, text, tmp_path):
    data = document({"content": "Zyx", "special": special, **flags})
    tokenizer = read_tokenizer_json(folder(tmp_path, data))
    check(tokenizer, data, text)
    write_tokenizer(tokenizer, tmp_path)
    check(read_tokenizer(tmp_path), data, text)
    (tmp_path / "again").mkdir()
    write_tokenizer_json(tokenizer, tmp_path / "again")
    check(read_tokenizer_json(tmp_path / "again"), data, text)


def test_normalized_words_come_second(tmp_path):
    data = document(word("ab c", normalized=True), word("b"), word("c d", normalized=True))
    tokenizer = read_tokenizer_json(folder(tmp_path, data))
    assert check(tokenizer, data, "ab c d") == [97, 98, 32, *[tokenizer.added_tokens["c d"]]]


def test_a_long_text_is_not_cut_within_a_word(tmp_path, monkeypatch):
    data = document(word("Zyx"))
    tokenizer = read_tokenizer_json(folder(tmp_path, data))
    monkeypatch.setattr(module, "MAX_CHARS", 10)
    monkeypatch.setattr(module, "MAX_RUN", 4)
    for n in range(12):
        ids = tokenizer.encode("q" * n + "Zyx" + "q" * 9, bos=False, eos=False)
        assert ids == [113] * n + [tokenizer.added_tokens["Zyx"]] + [113] * 9


def test_a_word_that_merging_makes_too(tmp_path):
    data = document(word("ab"), word("b"), merges=("a b", "ab c", "Ġ ab"))
    tokenizer = read_tokenizer_json(folder(tmp_path, data))
    assert tokenizer.added_tokens == {"ab": 256, "b": 98}
    assert check(tokenizer, data, "abc ab b") == [256, 99, 32, 256, 32, 98]
    write_tokenizer(tokenizer, tmp_path)
    assert read_tokenizer(tmp_path).encode("abc ab b", bos=False, eos=False) == [256, 99, 32, 256, 32, 98]
    assert len(tokenizer.ranks) == 259


def test_a_word_that_is_spelt_as_another_byte(tmp_path):
    """In `tokenizers` the added é gets the id of byte E9, and can't be read back."""
    with pytest.raises(FileError, match="added token 233, 'é', is also 'é' in bytes"):
        read_tokenizer_json(folder(tmp_path, document(word("é"))))
    tokenizer = Tokenizer(
        {bytes([byte]): byte for byte in range(256)},
        pattern=PATTERN,
        special_tokens={},
        added_tokens={"é": 256},
        bos_id=None,
        eos_id=None,
        stop_tokens=[],
        chat_format=None,
        add_bos=False,
    )
    assert tokenizer.decode(tokenizer.encode("é", bos=False, eos=False)) == "é"
    with pytest.raises(UsageError, match=r"tokenizer\.json can't hold both the added token 'é'"):
        write_tokenizer_json(tokenizer, tmp_path)


def test_a_byte_without_a_token_may_stand_in_a_word(tmp_path):
    data = document(word("\x04\x05"), {"content": "<x>", "id": 4})
    del data["model"]["vocab"][to_alphabet(b"\x04")]
    data["model"]["vocab"]["<x>"] = 4
    tokenizer = read_tokenizer_json(folder(tmp_path, data))
    assert tokenizer.encode("a\x04\x05", bos=False, eos=False) == [97, tokenizer.added_tokens["\x04\x05"]]
    with pytest.raises(UsageError, match=r"byte 0x04, at byte 4 of the text \(character 3, "):
        tokenizer.encode("é\x04\x05\x04", bos=False, eos=False)


def test_the_kind_survives_every_file(tmp_path):
    data = document({"content": "<|eot_id|>"}, word("Zyx"), word("<think>", normalized=True))
    first = read_tokenizer_json(folder(tmp_path, data))
    write_tokenizer(first, tmp_path)
    second = read_tokenizer(tmp_path)
    write_tokenizer_json(second, tmp_path)
    third = read_tokenizer_json(tmp_path)
    for each in (second, third):
        assert (each.special_tokens, each.added_tokens) == ({"<|eot_id|>": 258}, {"Zyx": 259, "<think>": 260})
        assert each.token_flags == first.token_flags == {"Zyx": {"normalized": False}}
        assert each.same_tokens(first)
    other = read_tokenizer_json(
        folder(tmp_path, document({"content": "<|eot_id|>"}, {"content": "Zyx"}, word("<think>")))
    )
    assert not other.same_tokens(first)


def test_files_of_before_lack_the_new_fields(tmp_path):
    write_tokenizer(tiny.tokenizer(), tmp_path)
    path = tmp_path / "tokenizer_extra.json"
    extra = json.loads(path.read_text())
    for key in ("added_tokens", "token_flags", "longest_first", "splits"):
        del extra[key]
    path.write_text(json.dumps(extra))
    assert read_tokenizer(tmp_path).added_tokens == {}


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("added_tokens", ["x"], "added_tokens must be names with their ids"),
        ("added_tokens", {"x": 5}, "'x' has id 5, which is also the rank"),
        ("added_tokens", {"<|im_end|>": 300}, "'<|im_end|>' is a special and an added token"),
        ("token_flags", {"x": {"bold": True}}, "token_flags must be names with true or false for some of lstrip"),
        ("longest_first", 1, "longest_first must be true or false"),
        ("splits", "x", "splits must be a list of strings"),
        ("splits", ["("], "the split pattern '(' isn't a regular expression"),
    ],
)
def test_fields_that_make_no_sense(key, value, says, tmp_path):
    write_tokenizer(tiny.tokenizer(), tmp_path)
    path = tmp_path / "tokenizer_extra.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(FileError) as caught:
        read_tokenizer(tmp_path)
    assert says in str(caught.value)


# Ids as transformers gives them

BOS = {"content": "<s>", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
BESIDE: list[dict[str, Any]] = [
    {"tokenizer_config": {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}},
    {"tokenizer_config": {"bos_token": BOS | {"__type": "AddedToken"}, "eos_token": "Zyx"}},
    {"tokenizer_config": {"eos_token": "</s>", "additional_special_tokens": ["<u>", "Zyx", "<v>"]}},
    {"tokenizer_config": {"extra_special_tokens": ["<u>"], "unk_token": "<unk>", "bos_token": "<u>"}},
    {"tokenizer_config": {}, "special_tokens_map": {"bos_token": "<s>", "eos_token": BOS | {"content": "</s>"}}},
    {"tokenizer_config": {"bos_token": "<b>"}, "special_tokens_map": {"bos_token": "<s>"}},
    {"tokenizer_config": {"added_tokens_decoder": {"300": BOS | {"content": "<x>", "special": False}, "299": BOS}}},
    {"tokenizer_config": {"added_tokens_decoder": {}}, "special_tokens_map": {"bos_token": "<s>"}},
    {"tokenizer_config": {"eos_token": "<y>"}, "added_tokens": {"<x>": 260, "<y>": 261}},
    {"tokenizer_config": {"image_token": "<image>", "add_bos_token": False, "eos_token": "</s>"}},
]


@pytest.mark.parametrize(
    "beside", BESIDE, ids=lambda beside: "+".join(f"{name}{list(beside[name])}" for name in beside)
)
def test_tokens_named_beside_it_get_the_ids_that_transformers_gives_them(beside, tmp_path, caplog):
    transformers = pytest.importorskip("transformers")
    data = document({"content": "<|eot_id|>"}, word("Zyx"))
    beside = {name: dict(content) for name, content in beside.items()}
    beside["tokenizer_config"] |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    ours = read_tokenizer_json(folder(tmp_path, data, **beside))
    hf = transformers.AutoTokenizer.from_pretrained(tmp_path)
    added = {token.content: (id, token.special) for id, token in hf.added_tokens_decoder.items()}
    assert {name: (id, True) for name, id in ours.special_tokens.items()} | {
        name: (id, False) for name, id in ours.added_tokens.items()
    } == added
    assert (ours.bos_id, ours.eos_id) == (hf.bos_token_id, hf.eos_token_id)
    for text in ["Zyx<s><u></s>", "a<x>b<y><image>"]:
        ids = ours.encode(text, bos=False, eos=False, allowed_special="all")
        assert ids == hf(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    "beside, says",
    [
        ({"tokenizer_config": {"additional_special_tokens": "<u>"}}, "must be a list of tokens, got '<u>'"),
        ({"tokenizer_config": {"extra_special_tokens": [3]}}, "additional_special_tokens is 3, which is no token"),
        ({"tokenizer_config": {"added_tokens_decoder": {"x": BOS}}}, "added_tokens_decoder must be tokens by id"),
        ({"tokenizer_config": {"added_tokens_decoder": [BOS]}}, "added_tokens_decoder must be tokens by id"),
        ({"tokenizer_config": {"added_tokens_decoder": {"3": 3}}}, "added_tokens_decoder is 3, which is no token"),
        ({"added_tokens": {"<x>": -1}}, "added_tokens.json: expected tokens with their ids, got {'<x>': -1}"),
    ],
)
def test_what_stands_beside_it_and_is_no_token_is_refused(beside, says, tmp_path):
    with pytest.raises(FileError, match=re.escape(says)):
        read_tokenizer_json(folder(tmp_path, document(), **beside))


def test_ids_in_the_file_are_tokenizers_own(tmp_path, caplog):
    data = document(word("Zyx"), {"content": "<|eot_id|>"})
    data["added_tokens"][0]["id"] = 500
    tokenizer = read_tokenizer_json(folder(tmp_path, data))
    assert tokenizer.added_tokens == {"Zyx": theirs(data).token_to_id("Zyx")} == {"Zyx": 258}
    assert "'Zyx', which is said to be 500, gets 258" in caplog.text


def test_a_token_that_ends_a_turn_is_a_control_token(tmp_path):
    """Whatever the file says, as in llama.cpp: who types it in a chat must not end the turn."""
    data = document(word("<|im_start|>"), word("<|im_end|>"), word("<tool_call>"))
    tokenizer = read_tokenizer_json(folder(tmp_path, data, config={"eos_token_id": 259}))
    assert tokenizer.special_tokens == {"<|im_start|>": 258, "<|im_end|>": 259}
    assert tokenizer.added_tokens == {"<tool_call>": 260}
    assert tokenizer.chat_format == "chatml"


@pytest.mark.parametrize(
    "beside",
    [
        {"generation_config": {"eos_token_id": -1}},
        {"generation_config": {"eos_token_id": [258, -1, 99_999]}},
        {"config": {"bos_token_id": 4_294_967_295, "eos_token_id": 258}},
        {"tokenizer_config": {"add_bos_token": True}},
    ],
    ids=str,
)
def test_ids_that_are_no_tokens_are_left_out_with_a_warning(beside, tmp_path, caplog):
    tokenizer = read_tokenizer_json(folder(tmp_path, document({"content": "<|eot_id|>"}), **beside))
    assert set(tokenizer.stop_tokens) <= {258}
    assert (tokenizer.bos_id, tokenizer.add_bos) == (None, False)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_an_empty_added_token_is_left_out(tmp_path, caplog):
    data = document({"content": ""}, word("Zyx"))
    data["added_tokens"][1]["id"] = 258
    tokenizer = read_tokenizer_json(folder(tmp_path, data))
    assert tokenizer.added_tokens == {"Zyx": theirs(data).token_to_id("Zyx")}
    assert "added token 258 is the empty text; left out" in caplog.text


# Tokens without a row in the embedding


def test_tokens_without_a_row_are_left_out(tmp_path, caplog):
    tokenizer = read_tokenizer_json(
        folder(tmp_path, document(word("Zyx"), {"content": "<pad>"}), config={"eos_token_id": 259, "bos_token_id": 259})
    )
    assert with_rows(tokenizer, 260, tmp_path) is tokenizer
    fewer = with_rows(tokenizer, 259, tmp_path)
    assert (fewer.special_tokens, fewer.added_tokens, fewer.n_words) == ({}, {"Zyx": 258}, 259)
    assert (fewer.bos_id, fewer.eos_id, fewer.stop_tokens) == (None, None, [])
    assert "the embedding has 259 rows, none for token 259 '<pad>'; left out" in caplog.text
    with pytest.raises(FileError, match="they belong to different models"):
        with_rows(tokenizer, 257, tmp_path)


def test_a_chat_whose_frame_has_no_rows_is_no_chat(tmp_path):
    tokenizer = with_rows(tiny.tokenizer("chatml"), 257, tmp_path)
    assert (tokenizer.chat_format, tokenizer.special_tokens, tokenizer.stop_tokens) == (None, {"<|im_start|>": 256}, [])
