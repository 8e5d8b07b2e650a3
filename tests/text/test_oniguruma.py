"""Split patterns that two engines read differently: ours against `tokenizers`, which runs Oniguruma."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import regex
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.text.hf_tokenizer import read_tokenizer_json, write_tokenizer_json
from llama3_scratch.text.oniguruma import translate
from llama3_scratch.text.pre_tokenizers import GPT2_PATTERN, QWEN2_PATTERN, covering
from llama3_scratch.text.tokenizer import PATTERN
from tests import tiny
from tests.reference import texts
from tests.tokenizer_json import BYTE_LEVEL, document, folder, theirs

tokenizers = pytest.importorskip("tokenizers")
from tokenizers import pre_tokenizers as pre  # noqa: E402

# Patterns of published tokenizers.
FOUND = {
    "llama3": PATTERN,
    "gpt2": GPT2_PATTERN,
    "qwen2": QWEN2_PATTERN,
    "cl100k": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    ),
    "cl100k-possessive": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]"
        r"|\s+(?!\S)|\s"
    ),
    "o200k": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "tekken": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "deepseek-v3": (
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "bloom": r" ?[^(\s|[.,!?…。，、।۔،])]+",
    "kimi": (
        r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "tiny-aya": r"\d{1,3}(?=(?:\d{3})*\b)",
    "seed-coder": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    ),
    "exaone-moe": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
    ),
    "jais2": r"\p{N}{1,3}|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}|\S+?",
}
# One construct each that engines read differently, or that has to be spelt differently.
CONSTRUCTS = [
    r"\p{N}{1,3}+",
    r"\p{N}{2}?x|\p{N}",
    r"x{,2}y",
    r"x{2,}?y|x{1,2}?",
    r"(?:ab){1,2}*c",
    r"[[:digit:]]+|[[:alpha:]]|[[:punct:]]+",
    r"[[:upper:]]|[[:lower:]]+|[[:space:]]|[[:^alnum:]]",
    r"[[:word:]]+|[[:xdigit:]]|[[:cntrl:]]|[[:blank:]]|[[:ascii:]]",
    r"[[:^alpha:]a]+",
    r"\d+|\D",
    r"\w+|\W",
    r"[\w]+|[^\w\s]+",
    r"[\W]+|[\S\d]",
    r"[^\s\W]+",
    r"[\S&&\W]+",
    r"[a-z&&[^aeiou]]+",
    r"[^a-z&&[^aeiou]]+",
    r"[a[bc]d]+|[x[^\x00-\x7F]]+",
    r"\s+|\S",
    r"\h+|\H",
    r"\b\w|\B\w+",
    r"[^\n]\b",
    r"^a|^\n|b$|.",
    r"\n^|\s+$|.",
    r"\Ax|.\z|.\Z",
    r"\R|.",
    r"(?i)k+|s|'S",
    r"(?i:[sk]x|’?)x|(?-i:S)",
    r"(?<word>ab|c)++d|(?>a|ab)c",
    r"(?<=a)b+|(?<!a)c|b(?=c)|(?<=ab|cd)e",
    r"a(?#comment)b",
    r"[\]\-a^]+|\x41|\u0042|\x{43}|\t|[\x{44}-F&]",
    r"{a}|a{|x{a",
    r"\p{^L}\P{Lu}|\p{han}+|\p{White Space}",
    r"a*?b|a+?|a??c",
]
LETTERS = "abcdeikstxyzKS'ſKé0123456789  \n\n\r\t²½ⅫⓐÀß–…。٣日-]^{}&ABCDEF_\u200d\u0301\u2028\x85\U00010400"


def known(text: str) -> str:
    """`text` without characters that a Unicode newer than some engine's may have made letters."""
    return "".join(character for character in text if unicodedata.category(character) != "Cn")


SAMPLES = [known(text) for text in texts(400)]


def split(pattern: str, text: str) -> list[str]:
    return [piece for piece, _ in pre.Split(tokenizers.Regex(pattern), "isolated").pre_tokenize_str(text)]


def reader(pattern: str) -> Any:
    """What a translated pattern cuts a text into, in both engines that run it."""
    (spelt, _), single = translate(pattern), {bytes([byte]): byte for byte in range(256)}
    encoding = tiktoken.Encoding("x", pat_str=spelt, mergeable_ranks=single, special_tokens={})
    whole = tiktoken.Encoding("x", pat_str=covering(spelt), mergeable_ranks=single, special_tokens={})
    cut = regex.compile(covering(spelt))

    def pieces(text: str) -> list[str]:
        matches = "".join(match[0] for match in regex.finditer(spelt, text))
        assert bytes(encoding.encode_ordinary(text)).decode() == matches
        assert bytes(whole.encode_ordinary(text)).decode() == text
        return [match[0] for match in cut.finditer(text)]

    return pieces


@pytest.mark.parametrize("pattern", [*CONSTRUCTS, *FOUND.values()], ids=[*CONSTRUCTS, *FOUND])
def test_text_is_cut_as_tokenizers_cuts_it(pattern):
    pieces = reader(pattern)
    for text in SAMPLES:
        assert pieces(text) == split(pattern, text), text

    @settings(deadline=None, max_examples=100, database=None)
    @given(st.text(LETTERS, max_size=14))
    def same(text):
        assert pieces(text) == split(pattern, text)

    same()


@pytest.mark.parametrize("pattern", [*CONSTRUCTS, *FOUND.values()], ids=[*CONSTRUCTS, *FOUND])
def test_a_translation_stays_as_it_is(pattern):
    """Nothing in it is read differently, so it can be written for `tokenizers` again."""
    spelt, _ = translate(pattern)
    assert translate(spelt) == (spelt, [])
    assert covering(covering(spelt)) == covering(spelt)


def test_what_differs_is_named():
    assert translate(PATTERN)[1] == []
    assert translate(r"\p{N}{1,3}+|[[:digit:]]\w|^a$|\b.")[1] == ["{1,3}+", "[:digit:]", r"\w", "^", "$", r"\b"]


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("(", "a ( without )"),
        (")", "an unmatched )"),
        ("[a", "a [ without ]"),
        ("[]a]", "[] with nothing in it"),
        ("[a&&]", "&& with nothing beside it"),
        ("[b-a]", "the range b-a"),
        (r"[\d-z]", r"a - after \p{Nd} in brackets"),
        ("[a-c-e]", "a - after a-c in brackets"),
        ("[[:nope:]]", "the bracket [:nope:]"),
        ("[[:graph:]]", "the bracket [:graph:]"),
        ("a|*b", "* with nothing before it"),
        ("a++*", "two quantifiers in a row, the second *"),
        ("a{2,1}", "the interval {2,1}"),
        ("a{5000}", "the interval {5000}"),
        ("(?:a*)+", "+ after what can match the empty text"),
        ("a*", "it can match the empty text"),
        (r"(?=a)", "it can match the empty text"),
        (r"(a)\1", r"the escape \1"),
        (r"\k<a>", r"the escape \k"),
        (r"\X", r"the escape \X"),
        (r"\N", r"the escape \N"),
        (r"\xE9", r"the escape \xE9"),
        (r"\uD800", r"the escape \uD800"),
        ("a\\", "the escape \\"),
        (r"\p{Klingon}", r"the property \p{Klingon}"),
        (r"\pL", r"the property \pL"),
        ("a(?i)b", "(?i) in the middle"),
        ("(?s:.)", "the group (?s:"),
        ("(?m:.)", "the group (?m:"),
        ("(?~a)", "the group (?~a"),
        ("(?<=a+)b", "a lookbehind without a fixed length"),
        ("(?i:ss)", "(?i: with ss, which is one character's case folding"),
        ("(?i:É)", "(?i: with 'É', which isn't an ASCII letter"),
        ("(?i:[a-z])", "(?i: with the range a-z"),
        (r"(?i:[^a])", "(?i: with [^a"),
        (r"(?i:[\p{Lu}])", r"(?i: with \p{Lu}"),
        (r"(?i:\p{Lu})", r"(?i: with \p{Lu}"),
        ("(?i:[[:upper:]])", "(?i: with [:upper:]"),
    ],
)
def test_what_cannot_be_carried_over_is_refused_by_name(pattern, says, tmp_path):
    with pytest.raises(ValueError) as caught:
        translate(pattern)
    assert says in str(caught.value)
    data = document()
    data["pre_tokenizer"]["pretokenizers"][0] = isolated(pattern)
    with pytest.raises(FileError, match=r"tokenizer\.json: the split pattern .* can't be carried over"):
        read_tokenizer_json(folder(tmp_path, data))


def isolated(pattern: str, **changes: Any) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False, **changes}


# Several cuts one after the other

CASED = "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯ"
STEPS: dict[str, list[dict[str, Any]]] = {
    "deepseek-llm": [
        isolated("[\r\n]"),
        isolated(rf"\s?[{CASED}]+"),
        isolated(r"\s?[!-/:-~！-／：-～‘-‟　-。]+"),
        isolated(r"\s+$"),
        isolated("[一-龥ࠀ-一가-\ud7ff]+"),
        {"type": "Digits", "individual_digits": True},
        BYTE_LEVEL,
    ],
    "deepseek-coder": [
        isolated("[\r\n]"),
        isolated(r"\s?\p{L}+"),
        isolated(r"\s?\p{P}+"),
        isolated("[一-龥ࠀ-一가-\ud7ff]+"),
        {"type": "Digits", "individual_digits": True},
        BYTE_LEVEL,
    ],
    "viking": [isolated(FOUND["bloom"]), {"type": "Digits", "individual_digits": True}, BYTE_LEVEL],
    "numbers": [isolated(r"\p{N}{1,3}"), isolated(PATTERN.replace("{1,3}", "+")), BYTE_LEVEL],
    "smollm": [{"type": "Digits", "individual_digits": True}, {**BYTE_LEVEL, "use_regex": True}],
    "digits": [{"type": "Digits", "individual_digits": False}, {**BYTE_LEVEL, "use_regex": True}],
    "punctuation": [{"type": "Punctuation", "behavior": "Isolated"}, {**BYTE_LEVEL, "use_regex": True}],
    "inner": [{"type": "Sequence", "pretokenizers": [isolated(r"\s+")]}, isolated("b", invert=True), BYTE_LEVEL],
    "strings": [isolated("") | {"pattern": {"String": "a."}}, isolated("") | {"pattern": {"String": " b"}}, BYTE_LEVEL],
    "removed": [isolated(r"[ab]+|\d", behavior="Removed", invert=True), BYTE_LEVEL],
    "whole": [BYTE_LEVEL],
}


@pytest.mark.parametrize("name", STEPS)
def test_a_sequence_of_cuts(name, tmp_path):
    data = document(merges=("a b", "Ġ ab", "Ġ Ġ", "1 2", "12 3", "Ċ Ċ", ". .", "b .", "Ġab Ġ"))
    data["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": STEPS[name]}
    ours = read_tokenizer_json(folder(tmp_path, data))
    encode = theirs(data).encode
    rebuilt = None
    if name != "removed":  # written and read again it is the same
        write_tokenizer_json(ours, tmp_path)
        rebuilt = read_tokenizer_json(tmp_path)
        assert (rebuilt.splits, rebuilt.pattern) == (ours.splits, ours.pattern)
        assert (
            theirs(json.loads((tmp_path / "tokenizer.json").read_text())).encode(" ab12..").ids == encode(" ab12..").ids
        )

    @settings(deadline=None, max_examples=150, database=None)
    @given(st.text("ab12345.,  \n\r\t。日본Àʔ²٣", max_size=24))
    def same(text):
        assert ours.encode(text, bos=False, eos=False) == encode(text).ids

    same()
    for text in SAMPLES:
        assert ours.encode(text, bos=False, eos=False) == encode(text).ids


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ([isolated("a", behavior="Removed"), BYTE_LEVEL], "Split with behavior Removed"),
        ([isolated("a", behavior="Removed", invert=True), isolated("b"), BYTE_LEVEL], "Split that removes text beside"),
        ([isolated("a", behavior="MergedWithPrevious"), BYTE_LEVEL], "with behavior MergedWithPrevious can't"),
        ([isolated("a", behavior="Contiguous"), BYTE_LEVEL], "with behavior Contiguous can't"),
        ([{"type": "Punctuation", "behavior": "Contiguous"}, BYTE_LEVEL], "with behavior Contiguous can't"),
        ([{"type": "Whitespace"}, BYTE_LEVEL], "Sequence[Whitespace, ByteLevel] can't"),
        ([BYTE_LEVEL, isolated("a")], "Sequence[ByteLevel, Split] can't be carried over, expected one that ends with"),
        ([{"type": "Metaspace"}], "Sequence[Metaspace] can't"),
        ([isolated("a"), {**BYTE_LEVEL, "add_prefix_space": True}], "ByteLevel with add_prefix_space can't"),
        ([], "can't be carried over"),
    ],
)
def test_other_steps_are_refused_by_name(steps, says, tmp_path):
    data = document()
    data["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    with pytest.raises(FileError) as caught:
        read_tokenizer_json(folder(tmp_path, data))
    assert says in str(caught.value)


@pytest.mark.parametrize("pattern", [r"\p{N}{1,3}+|\S+|\s+", r"\w+|\W+", "(?s:.)"])
def test_a_pattern_that_tokenizers_would_read_otherwise_is_not_written(pattern, tmp_path):
    tokenizer = tiny.tokenizer()
    tokenizer.pattern = pattern
    with pytest.raises(UsageError, match="which Hugging Face's tokenizers would read otherwise"):
        write_tokenizer_json(tokenizer, tmp_path)
    assert not list(Path(tmp_path).iterdir())
