"""GGUF's vocabularies against llama.cpp: how text is split, which tokens are words, what a broken entry does."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama3_scratch.checkpoint.gguf_header import read_header
from llama3_scratch.checkpoint.gguf_vocab import read_vocabulary, vocabulary
from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.text.byte_level import to_alphabet
from llama3_scratch.text.pre_tokenizers import RULES, SMOLLM_PATTERN, covering
from llama3_scratch.text.tokenizer import PATTERN, Tokenizer
from llama3_scratch.text.tokenizer_file import read_tokenizer, write_tokenizer
from tests import tiny
from tests.llama_cpp_tokens import llama_cpp_tokens, write_vocabulary

BYTES = [to_alphabet(bytes([byte])) for byte in range(256)]
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
LETTERS = [
    *"abstlLDrevmZ019' \n\r\t!.,/_#$+<^`|~-(\"",
    "é",
    "É",
    "ß",
    "中",
    "ア",
    "한",
    "ก",
    "٣",
    "²",
    "Ⅻ",
    "\u0301",
    "\u00a0",
]
LETTERS += ["\u3000", "\u2028", "…", "。", "！", "’", "€", "😀", "ᾳ", "ʔ", "ǅ", "\x1c", "\x00"]


def read(path: Path) -> Tokenizer | None:
    values = read_header(path).values
    return read_vocabulary(values, path, len(values["tokenizer.ggml.tokens"]))


def pairs() -> tuple[list[str], list[str]]:
    """(words, merges) that make a token of every character and of every two, so that pieces show."""
    words, merges = list(BYTES), []

    def merge(left: str, right: str) -> str:
        if left + right not in seen:
            seen.add(left + right)
            words.append(left + right)
            merges.append(f"{left} {right}")
        return left + right

    seen = set(words)
    letters = []
    for letter in LETTERS:
        first, *others = map(to_alphabet, (bytes([byte]) for byte in letter.encode()))
        for other in others:
            first = merge(first, other)
        letters.append(first)
    for left in letters:
        for right in letters:
            merge(left, right)
    return words, merges


FIXED = ["", "1234567", "  a   1  \n\n b", "I'LL don't", "Abc dEF", " 12 345", "a.\n", "x!y", "日本", "\t\n a\r\n\r\n "]


def nasty(count: int) -> list[str]:
    rng = random.Random(7)
    return FIXED + ["".join(rng.choice(LETTERS) for _ in range(rng.randrange(1, 16))) for _ in range(count)]


FIRST = list({rule: name for name, rule in reversed(RULES.items())}.values())  # a name for each rule


@pytest.mark.parametrize(
    ("names", "count"),
    [(FIRST, 120), pytest.param([*RULES, None], 400, marks=pytest.mark.slow)],
    ids=["rules", "names"],
)
def test_every_name_splits_text_as_llama_cpp_does(names, count, tmp_path):
    words, merges = pairs()
    texts, kinds = nasty(count), [NORMAL] * len(words)
    files = [
        (write_vocabulary(tmp_path / f"{name}.gguf", words, kinds, merges, pre=name, add_bos_token=False), texts)
        for name in names
    ]
    answers = llama_cpp_tokens([(path, [(text, False) for text in texts]) for path, texts in files])
    for (path, texts), ids in zip(files, answers, strict=True):
        tokenizer = read(path)
        for text, each in zip(texts, ids, strict=True):
            assert tokenizer.encode(text, bos=False, eos=False) == each, (path.name, text)


def small(
    path: Path, *added: tuple[str, int], merges: tuple[str, ...] = ("a b", "1 2", "3 4", "12 34"), **values: Any
) -> Path:
    """A file of bytes, merged tokens, `added` tokens of a kind, and </s>, which ends a text."""
    words = [*BYTES, *(merge.replace(" ", "") for merge in merges), *(word for word, _ in added), "</s>"]
    kinds = [NORMAL] * (256 + len(merges)) + [kind for _, kind in added] + [CONTROL]
    return write_vocabulary(
        path, words, kinds, list(merges), **{"eos_token_id": len(words) - 1, "pre": "gpt-2", **values}
    )


@pytest.mark.parametrize(
    ("pre", "says"),
    [
        (None, "tokenizer.ggml.pre is missing; text is split as llama.cpp does then ('default')"),
        ("", "tokenizer.ggml.pre is missing"),
        ("default", ""),
    ],
)
def test_a_file_that_does_not_say_how_text_is_split(pre, says, tmp_path, caplog):
    """llama.cpp's default takes digits by threes, GPT-2 all of them."""
    tokenizer = read(small(tmp_path / "m.gguf", pre=pre))
    assert [tokenizer.decode([id]) for id in tokenizer.encode("1234", bos=False, eos=False)] == ["12", "3", "4"]
    assert not tokenizer.add_bos
    assert says in caplog.text
    assert bool(caplog.text) == bool(says)


@pytest.mark.parametrize("pre", [None, "default"])
def test_llama_3s_vocabulary_without_a_name(pre, tmp_path, caplog):
    rows = 128_256
    words = BYTES + [f"[{i}]" for i in range(256, 128_000)] + ["<|begin_of_text|>", "<|end_of_text|>"]
    words += [f"<|reserved_special_token_{i}|>" for i in range(rows - len(words))]
    values: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.token_type": np.array([NORMAL] * 256 + [UNUSED] * 127_744 + [CONTROL] * 256, np.int32),
        "tokenizer.ggml.bos_token_id": 128_000,
        "tokenizer.ggml.eos_token_id": 128_001,
        **({"tokenizer.ggml.pre": pre} if pre else {}),
    }
    tokenizer = read_vocabulary(values, tmp_path, rows)
    assert (tokenizer.pattern, tokenizer.splits, tokenizer.add_bos) == (PATTERN, [], True)
    assert "the vocabulary is Llama 3's, so text is split and begun as Llama 3's" in caplog.text
    values["tokenizer.ggml.add_bos_token"] = False
    assert not read_vocabulary(values, tmp_path, rows).add_bos


def test_which_names_begin_with_bos_and_ignore_merges(tmp_path):
    begins = {name for name in RULES if RULES[name].add_bos}
    assert begins == {
        *["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken"]
    }
    assert {name for name in RULES if RULES[name].ignore_merges} == begins | {"minicpm5"}
    for name in ("llama-v3", "smaug-bpe"):
        tokenizer = read(small(tmp_path / f"{name}.gguf", ("<s>", CONTROL), pre=name, bos_token_id=260))
        assert tokenizer.add_bos == (name == "llama-v3")


ADDED = [
    ("Zyx", USER_DEFINED),
    ("Zyxel", USER_DEFINED),
    ("elbow", USER_DEFINED),
    ("<|im_start|>", CONTROL),
    ("im_start", USER_DEFINED),
    (" two words", USER_DEFINED),
    ("naïve 日本", USER_DEFINED),
    ("ab1", USER_DEFINED),
    ("<unk>", UNKNOWN),
    ("[FREE]", UNUSED),
    ("<0x0A>", BYTE),
    ("  ", USER_DEFINED),
    ("    ", USER_DEFINED),
    ("<tool_call>", USER_DEFINED),
    ("<|end_of_text|>", USER_DEFINED),  # "control-looking": a control token whatever the file says
]


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe"])
def test_words_and_kinds_are_llama_cpps(pre, tmp_path):
    path = small(tmp_path / "m.gguf", *ADDED, pre=pre, add_bos_token=False)
    tokenizer = read(path)
    assert list(tokenizer.added_tokens) == [word for word, kind in ADDED if kind == USER_DEFINED][:-1]
    assert list(tokenizer.special_tokens) == ["<|im_start|>", "<unk>", "<|end_of_text|>", "</s>"]
    rng = random.Random(3)
    parts = [*(word for word, _ in ADDED), "</s>", "a", "b", " ", "1", "el", "im", "日", "\n", "Zy"]
    texts = ["", "Zyxelbow", "Zyxelelbow", "xZyxelx", "<|im_start|>im_start", "ab1 ab12", "     a", "[FREE]<0x0A><unk>"]
    texts += ["".join(rng.choice(parts) for _ in range(rng.randrange(1, 8))) for _ in range(300)]
    asked = [(text, special) for text in texts for special in (False, True)]
    for (text, special), ids in zip(asked, llama_cpp_tokens([(path, asked)])[0], strict=True):
        allowed = "all" if special else ()
        assert tokenizer.encode(text, bos=False, eos=False, allowed_special=allowed) == ids, (text, special)
    ids = tokenizer.encode("Zyxelbow", bos=False, eos=False)
    assert tokenizer.decode(ids) == "Zyxelbow"
    assert ids[-1] != tokenizer.added_tokens["elbow"]  # of two that are as long the first in the vocabulary


def test_the_longest_word_goes_first_wherever_it_stands(tmp_path):
    """Hugging Face's tokenizers would take ab, which begins further left."""
    path = small(tmp_path / "m.gguf", ("ab", USER_DEFINED), ("bcd", USER_DEFINED), merges=("1 2",))
    tokenizer = read(path)
    ids = tokenizer.encode("abcd", bos=False, eos=False)
    assert ids == [97, 258] == llama_cpp_tokens([(path, [("abcd", False)])])[0][0]
    write_tokenizer(tokenizer, tmp_path)
    assert read_tokenizer(tmp_path).encode("abcd", bos=False, eos=False) == [97, 258]


def test_merging_makes_tokens_of_any_kind(tmp_path):
    """As in llama.cpp; a placeholder that nothing makes stands only for its row."""
    words = [*BYTES, "ab", "abc", "cd", "[PAD]", "</s>"]
    kinds = [NORMAL] * 256 + [UNUSED, USER_DEFINED, UNUSED, UNUSED, CONTROL]
    path = write_vocabulary(tmp_path / "m.gguf", words, kinds, ["a b", "ab c", "c d"], pre="gpt-2", eos_token_id=260)
    tokenizer = read(path)
    assert tokenizer.added_tokens == {"abc": 257}
    texts = ["ab", "abcd", "abd cd", "[PAD]", "a", "b abc"]
    theirs = llama_cpp_tokens([(path, [(text, False) for text in texts])])[0]
    assert [tokenizer.encode(text, bos=False, eos=False) for text in texts] == theirs
    assert 259 not in tokenizer.ranks.values()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"bos_token_id": 4_294_967_295}, "tokenizer.ggml.bos_token_id is 4294967295, which is no token; left out"),
        ({"eot_token_id": 99_999}, "tokenizer.ggml.eot_token_id is 99999, which is no token; left out"),
        ({"pre": "llama-bpe"}, "tokenizer.ggml.bos_token_id names none"),
        ({"add_bos_token": True}, "tokenizer.ggml.bos_token_id names none"),
    ],
    ids=str,
)
def test_ids_that_are_no_tokens_are_left_out_with_a_warning(values, says, tmp_path, caplog):
    tokenizer = read(small(tmp_path / "m.gguf", **values))
    assert (tokenizer.bos_id, tokenizer.add_bos, tokenizer.stop_tokens) == (None, False, [260])
    assert says in caplog.text


def test_empty_tokens_are_left_out_with_a_warning(tmp_path, caplog):
    tokenizer = read(small(tmp_path / "m.gguf", ("", NORMAL), ("", CONTROL)))
    assert tokenizer.n_words == 263
    assert "token 260 of tokenizer.ggml.tokens is empty; left out" in caplog.text


def test_a_token_that_stands_twice_is_refused(tmp_path):
    with pytest.raises(FileError, match="'Zyx' stands twice"):
        read(small(tmp_path / "m.gguf", ("Zyx", USER_DEFINED), ("Zyx", CONTROL)))


def test_the_kind_survives_writing(tmp_path, caplog):
    first = read(small(tmp_path / "m.gguf", *ADDED))
    again = vocabulary(first, 280)
    kinds = dict(zip(again["tokenizer.ggml.tokens"], again["tokenizer.ggml.token_type"], strict=True))
    assert (kinds["Zyx"], kinds["</s>"], kinds["ab"], kinds["[PAD279]"]) == (USER_DEFINED, CONTROL, NORMAL, UNUSED)
    values = again | {"tokenizer.ggml.token_type": np.array(again["tokenizer.ggml.token_type"], np.int32)}
    second = read_vocabulary(values, tmp_path, 280)
    assert second.same_tokens(first)
    assert not caplog.text


def test_what_gguf_cannot_say(tmp_path, caplog):
    tokenizer = tiny.tokenizer()
    tokenizer.token_flags = {"<|im_end|>": {"rstrip": True}}
    vocabulary(tokenizer, 258)
    assert "GGUF can't say that the added token '<|im_end|>' takes the spaces beside it" in caplog.text
    tokenizer.added_tokens = {"é": 258}
    with pytest.raises(UsageError, match="GGUF can't hold both the added token 'é'"):
        vocabulary(tokenizer, 259)
    tokenizer = tiny.tokenizer()
    tokenizer.splits = ["a"]
    with pytest.raises(UsageError, match="not by 'a', then"):
        vocabulary(tokenizer, 258)


def test_a_name_is_found_again():
    tokenizer = tiny.tokenizer()
    for name, rule in RULES.items():
        tokenizer.pattern, tokenizer.splits = rule.pattern, list(rule.splits)
        written = vocabulary(tokenizer, 258)["tokenizer.ggml.pre"]
        assert (RULES[written].pattern, RULES[written].splits) == (rule.pattern, rule.splits), name
    assert covering(SMOLLM_PATTERN) == SMOLLM_PATTERN
