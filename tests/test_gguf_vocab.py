"""GGUF's vocabularies against llama.cpp: how text is split, which tokens are words, what a broken entry does."""

from __future__ import annotations

import random
from pathlib import Path

from llama3_scratch.checkpoint.byte_level import to_alphabet
from llama3_scratch.checkpoint.gguf import read_header
from llama3_scratch.checkpoint.gguf_vocab import read_vocabulary
from llama3_scratch.checkpoint.pre_tokenizers import RULES
from llama3_scratch.tokenizer import Tokenizer
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


def nasty(count: int) -> list[str]:
    rng = random.Random(7)
    texts = [
        "",
        "1234567",
        "  a   1  \n\n b",
        "I'LL don't",
        "Abc dEF",
        " 12 345",
        "a.\n",
        "x!y",
        "日本",
        "\t\n a\r\n\r\n ",
        "é́ Éa",
    ]
    return texts + ["".join(rng.choice(LETTERS) for _ in range(rng.randrange(1, 16))) for _ in range(count)]


def test_every_name_splits_text_as_llama_cpp_does(tmp_path):
    words, merges = pairs()
    texts = nasty(250)
    files = [
        (
            write_vocabulary(
                tmp_path / f"{name}.gguf", words, [NORMAL] * len(words), merges, pre=name, add_bos_token=False
            ),
            name,
        )
        for name in (*RULES, None)
    ]
    answers = llama_cpp_tokens([(path, [(text, False) for text in texts]) for path, _ in files])
    for (path, name), ids in zip(files, answers, strict=True):
        tokenizer = read(path)
        wrong = [
            (text, [words[id] for id in tokenizer.encode(text, bos=False, eos=False)], [words[id] for id in each])
            for text, each in zip(texts, ids, strict=True)
            if tokenizer.encode(text, bos=False, eos=False) != each
        ]
        assert not wrong, (name, len(wrong), wrong[:3])
