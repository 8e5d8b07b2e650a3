"""tokenizer.model in and out, and ids equal to Meta's."""

from __future__ import annotations

import base64
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.inference.choices import PromptChoice
from llama3_scratch.inference.prompt_encoding import encode_prompt
from llama3_scratch.text import tokenizer as module
from llama3_scratch.text.tokenizer import PATTERN, Tokenizer
from llama3_scratch.text.tokenizer_file import META, read_tokenizer, write_tokenizer
from tests import tiny
from tests.reference import llama3, meta, texts

EXTRA = {
    **META,
    "n_ranks": 300,
    "special_tokens": {"<|a|>": 300, "<|b|>": 301},
    "bos_id": 300,
    "eos_id": 301,
    "stop_tokens": [301],
    "chat_format": None,
}
TOKENS = [bytes([byte]) for byte in range(256)] + [bytes([97 + i, 98]) for i in range(44)]


def lines(tokens: list[bytes]) -> list[bytes]:
    return [b"%s %d" % (base64.b64encode(token), rank) for rank, token in enumerate(tokens)]


def small(
    folder: Path, changed: dict[int, bytes] | None = None, *, extra: dict | None = None, end: bytes = b"\n"
) -> Path:
    """A tokenizer.model of 300 ranks with its sidecar; `changed` puts other lines (numbered from 1) in place."""
    rows = lines(TOKENS)
    for number, line in (changed or {}).items():
        rows[number - 1] = line
    (folder / "tokenizer.model").write_bytes(b"\n".join(rows) + end)
    (folder / "tokenizer_extra.json").write_text(json.dumps(EXTRA if extra is None else extra))
    return folder / "tokenizer.model"


@pytest.fixture(scope="module")
def meta_lines() -> list[bytes]:
    """128,000 made-up ranks in Meta's layout."""
    pairs = [bytes([a, b]) for a in range(256) for b in range(256)]
    triples = [bytes([a, b, c]) for a in range(256) for b in range(256) for c in (65,)]
    more = [pair + b"BC" for pair in pairs]
    return lines([*(bytes([byte]) for byte in range(256)), *pairs, *triples, *more][:128_000])


CUT = "the file ends within this line, so it is truncated"
GAP = "expected 300 ranks from 0 on without a gap"
SENTENCEPIECE = b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02" + b"\n\x0c" * 99
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 2183982\n"
# Files that aren't a tokenizer: row, what is done to a good file, what the message must say.
FAULTS = [
    ("F091-empty", lambda f: f.write_bytes(b""), "empty file, expected a tokenizer"),
    (
        "F092-no-rank",
        lambda f: f.write_bytes(f.read_bytes()[:-4]),
        "line 300: expected 2 columns, base64 and rank, got 1; " + CUT,
    ),
    (
        "F092-half-rank",
        lambda f: f.write_bytes(f.read_bytes()[:-2]),
        "line 300: rank 29 stands on line 30 too, expected once; " + CUT,
    ),
    ("F094-base64", {7: b"!!!! 6"}, "line 7: expected a token in base64, got '!!!!'"),
    ("F094-stray-character", {7: b"B!g== 6"}, "line 7: expected a token in base64, got 'B!g=='"),
    ("F094-empty-token", {7: b"==== 6"}, "line 7: expected a token in base64"),
    ("F095-text", {9: b"CA== eight"}, "line 9: expected a rank, a whole number of at least 0, got 'eight'"),
    ("F095-negative", {9: b"CA== -8"}, "line 9: expected a rank, a whole number of at least 0, got '-8'"),
    ("F095-underscore", {9: b"CA== 0_8"}, "line 9: expected a rank"),
    ("F095-huge", {9: b"CA== " + b"9" * 5000}, "line 9: expected a rank"),
    ("F096-column", {12: b"Cw== 11 x"}, "line 12: expected 2 columns, base64 and rank, got 3"),
    ("F097-token", {13: base64.b64encode(b"\x03") + b" 12"}, "line 13: token b'\\x03' stands on line 4 too"),
    ("F097-rank", {13: b"DA== 3"}, "line 13: rank 3 stands on line 4 too, expected once"),
    ("F098-gap", {300: b"YWJjZA== 305"}, f"{GAP}, got 300 from 0 to 305, where 299 is missing"),
    ("F098-start", {1: b"YWJjZA== 303"}, f"{GAP}, got 300 from 1 to 303, where 0 is missing"),
    ("F099-byte", {66: base64.b64encode(b"zzz") + b" 65"}, "256 tokens of a single byte, got 255; missing 0x41"),
    ("F100-sentencepiece", lambda f: f.write_bytes(SENTENCEPIECE), "this is SentencePiece, Llama 2's tokenizer"),
    ("F101-html", lambda f: f.write_bytes(b"<!DOCTYPE html><html>403"), "looks like a web page"),
    ("F101-lfs", lambda f: f.write_bytes(LFS), "git-lfs pointer to 2183982 bytes"),
]


@pytest.mark.parametrize(("change", "says"), [pytest.param(*row[1:], id=row[0]) for row in FAULTS])
def test_a_damaged_file_is_refused(tmp_path, change, says):
    path = small(tmp_path, change if isinstance(change, dict) else None)
    if callable(change):
        change(path)
    with pytest.raises(FileError) as caught:
        read_tokenizer(path)
    assert str(path) in str(caught.value)
    assert says in str(caught.value)


def test_f090_missing(tmp_path):
    with pytest.raises(FileError, match=r"tokenizer\.model: a tokenizer .* not found"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize("place", ["model/original", "."])
def test_f090_missing_but_nearby(tmp_path, place):
    find_tokenizer = pytest.importorskip("llama3_scratch.checkpoint.load").find_tokenizer
    (tmp_path / "model" / "original").mkdir(parents=True)
    small(tmp_path / place)
    assert find_tokenizer(tmp_path / "model").n_words == 302


@pytest.mark.parametrize(
    ("count", "says"),
    [
        (61_597, "expected 128000 ranks from 0 on without a gap, got 61597 from 0 to 61596; download it again"),
        (127_999, "got 127999 from 0 to 127998"),
    ],
)
def test_f093_truncated_at_a_line_end(tmp_path, meta_lines, count, says):
    (tmp_path / "tokenizer.model").write_bytes(b"\n".join(meta_lines[:count]) + b"\n")
    with pytest.raises(FileError) as caught:
        read_tokenizer(tmp_path)
    assert says in str(caught.value)


def test_f098_a_line_lost_within(tmp_path, meta_lines):
    (tmp_path / "tokenizer.model").write_bytes(b"\n".join(meta_lines[:777] + meta_lines[778:]))
    with pytest.raises(FileError, match="got 127999 from 0 to 127999, where 777 is missing"):
        read_tokenizer(tmp_path)


def test_f102_crlf_and_blank_lines(tmp_path):
    path = small(tmp_path)
    plain = read_tokenizer(path).ranks
    path.write_bytes(b"\r\n\r\n" + path.read_bytes().replace(b"\n", b"\r\n") + b"  \r\n")
    assert read_tokenizer(path).ranks == plain


def test_f103_a_file_replaced_at_the_same_path_is_read_again(tmp_path):
    path = small(tmp_path)
    assert read_tokenizer(path).encode("ab", bos=False, eos=False) == [256]
    small(tmp_path, {257: b"enp6eg== 256"})
    assert read_tokenizer(path).encode("ab", bos=False, eos=False) == [97, 98]


def test_f104_llama_4(tmp_path, meta_lines):
    more = [b"%s %d" % (base64.b64encode(b"QQ%d" % i), 128_000 + i) for i in range(72_000)]
    (tmp_path / "tokenizer.model").write_bytes(b"\n".join(meta_lines + more))
    with pytest.raises(FileError, match="Llama 4's tokenizer"):
        read_tokenizer(tmp_path)


def test_meta_layout_needs_no_sidecar(tmp_path, meta_lines):
    (tmp_path / "tokenizer.model").write_bytes(b"\n".join(meta_lines) + b"\n")
    tokenizer = read_tokenizer(tmp_path)
    assert tokenizer.n_words == 128_256
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.stop_tokens) == (
        128_000,
        128_001,
        [128_001, 128_008, 128_009],
    )
    assert tokenizer.special_tokens["<|reserved_special_token_245|>"] == 128_255
    out = tmp_path / "out"
    out.mkdir()
    (out / "tokenizer_extra.json").write_text("left over from another model")
    write_tokenizer(tokenizer, out)
    assert [file.name for file in out.iterdir()] == ["tokenizer.model"]
    assert (out / "tokenizer.model").read_bytes() == (tmp_path / "tokenizer.model").read_bytes()
    tokenizer.set_chat_format(None)  # a base model's: no longer what Meta's file alone means
    write_tokenizer(tokenizer, out)
    assert read_tokenizer(out).chat_format is None


def test_a_chat_format_stops_at_whatever_ends_a_turn():
    """However it was chosen: a file without a template, given --chat-format, would never stop else."""
    special = {"<|im_start|>": 256, "<|im_end|>": 257, "</s>": 258}
    tokenizer = Tokenizer(
        {bytes([byte]): byte for byte in range(256)},
        pattern=PATTERN,
        special_tokens=special,
        bos_id=None,
        eos_id=258,
        stop_tokens=[258],
        chat_format=None,
        add_bos=False,
    )
    assert tokenizer.stop_tokens == [258]
    tokenizer.set_chat_format("chatml")
    assert (tokenizer.chat_format, tokenizer.stop_tokens) == ("chatml", [258, 257])
    with pytest.raises(UsageError, match="must be one of llama3, chatml, template or none, got 'alpaca'"):
        tokenizer.set_chat_format("alpaca")


def test_an_empty_special_token_is_refused():
    """Searching a text for it would never end."""
    with pytest.raises(UsageError, match="special token 256 is the empty text"):
        Tokenizer(
            {bytes([byte]): byte for byte in range(256)},
            pattern=PATTERN,
            special_tokens={"": 256},
            bos_id=None,
            eos_id=None,
            stop_tokens=[],
            chat_format=None,
            add_bos=False,
        )


def test_a_sidecar_is_read_back_as_it_was_written(tmp_path):
    ranks = {token: 17 + i for i, token in enumerate(TOKENS) if token != b"\x04"}
    ranks[b"abc"] = 21  # where the missing byte's rank would be
    written = Tokenizer(
        ranks,
        pattern=r"\s+|\S+",
        special_tokens={f"<é{i}>": i for i in range(17)},
        bos_id=1,
        eos_id=None,
        stop_tokens=[2, 0],
        chat_format="chatml",
        add_bos=False,
        system_prompt='Be "brief".\n',
    )
    write_tokenizer(written, tmp_path)
    read = read_tokenizer(tmp_path)
    public = {key: value for key, value in vars(written).items() if not key.startswith("_")}
    assert public == {key: value for key, value in vars(read).items() if not key.startswith("_")}
    assert read.n_words == 317
    assert json.loads((tmp_path / "tokenizer_extra.json").read_text())["n_single_bytes"] == 255


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("pattern", None, "pattern must be a string, got None"),
        ("pattern", "(", "the split pattern '(' isn't a regular expression"),
        ("pattern", "", "pattern '' loses some of a text, expected one that matches all of it"),
        ("pattern", r"\p{L}+|\s+", "loses some of a text"),
        ("pattern", r"[\s\S]*", "loses some of a text"),
        ("n_ranks", "300", "n_ranks must be a whole number of at least 0, got '300'"),
        ("n_ranks", 299, "expected 299 ranks from 0 on"),
        ("first_rank", True, "first_rank must be a whole number"),
        ("n_single_bytes", 235, "expected 235 tokens of a single byte, got 256"),
        ("special_tokens", [1], "special_tokens must be names with their ids"),
        ("special_tokens", {"<|a|>": 300, "<|b|>": 300}, "have the same id 300"),
        ("special_tokens", {"<|a|>": 300, "<|b|>": 7}, "'<|b|>' has id 7, which is also the rank"),
        ("stop_tokens", [999], "999 is no token of this vocabulary"),
        ("bos_id", None, "add_bos is set, but there is no bos_id"),
        ("add_bos", 1, "add_bos must be true or false, got 1"),
        ("chat_format", "alpaca", "chat_format must be one of llama3, chatml, template or none, got 'alpaca'"),
        ("colour", "red", "colour is unknown"),
    ],
)
def test_a_sidecar_that_makes_no_sense_is_refused(tmp_path, key, value, says):
    path = small(tmp_path, extra={**EXTRA, key: value})
    with pytest.raises(FileError) as caught:
        read_tokenizer(path)
    assert says in str(caught.value)


def test_a_sidecar_that_lacks_a_key_is_refused(tmp_path):
    path = small(tmp_path, extra={key: value for key, value in EXTRA.items() if key != "eos_id"})
    with pytest.raises(FileError, match=r"tokenizer_extra\.json: eos_id is missing"):
        read_tokenizer(path)


def test_a_tokenizer_that_could_not_be_read_is_not_written(tmp_path):
    tokenizer = tiny.tokenizer()
    tokenizer.ranks[b"far"] = 5000
    with pytest.raises(FileError, match="258 is missing"):
        write_tokenizer(tokenizer, tmp_path)
    assert not list(tmp_path.iterdir())


def test_reading_needs_no_torch(tmp_path):
    path = small(tmp_path)
    code = f"import llama3_scratch.text.tokenizer_file as t; t.read_tokenizer({str(path)!r})"
    code += "; import sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(module.__file__).parents[2])


# Exact ids


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("This is a test sentence.", [2028, 374, 264, 1296, 11914, 13]),
        ("This is a response.", [2028, 374, 264, 2077, 13]),
        ("hello", [15339]),
        (" hello", [24748]),
        ("system", [9125]),
        ("user", [882]),
        ("assistant", [78191]),
        ("\n\n", [271]),
        ("a\r\n\r\nb", [64, 881, 65]),
        ("\ufeff", [3305]),
        (" Việt", [101798]),
    ],
)
def test_known_ids(text, ids):
    assert llama3().encode(text, bos=False, eos=False) == ids
    assert llama3().decode(ids) == text


def test_bos_eos_and_digits():
    ids = llama3().encode("This is a test sentence.", bos=True, eos=True)
    assert ids == [128000, 2028, 374, 264, 1296, 11914, 13, 128001]
    assert llama3().decode(ids) == "<|begin_of_text|>This is a test sentence.<|end_of_text|>"
    digits = llama3().encode("1234567", bos=False, eos=False)
    assert [llama3().decode([id]) for id in digits] == ["123", "456", "7"]
    question = "the answer to the ultimate question of life, the universe, and everything is "
    walk = [128000, 1820, 4320, 311, 279, 17139, 3488, 315, 2324, 11, 279, 15861, 11, 323, 4395, 374, 220]
    assert llama3().encode(question, bos=True, eos=False) == walk


def test_special_tokens_are_metas():
    assert llama3().special_tokens == meta().tokenizer.special_tokens
    assert llama3().stop_tokens == meta().tokenizer.stop_tokens
    assert llama3().n_words == meta().tokenizer.n_words == 128_256
    assert llama3().special("<|eot_id|>") == 128_009


def _compare(count: int, seed: int) -> None:
    ours, theirs = llama3(), meta().tokenizer
    rng = random.Random(seed)
    names = list(ours.special_tokens)[:12]
    for text in texts(count, seed):
        kwargs = {"bos": rng.random() < 0.3, "eos": rng.random() < 0.3}
        allowed = rng.choice([(), ("<|eot_id|>",), "all"])
        if allowed:
            text += rng.choice(names) + text[:5]
        expected = theirs.encode(text, **kwargs, allowed_special=allowed if allowed == "all" else set(allowed))
        ids = ours.encode(text, **kwargs, allowed_special=allowed)
        assert ids == expected, text
        assert ours.decode(ids) == theirs.decode(ids), text


def test_ids_equal_metas_on_random_strings():
    _compare(5_000, seed=0)


def test_ids_equal_metas_on_real_text():
    for line in tiny.data("wikitext2.txt").read_text().splitlines()[:1500]:
        assert llama3().encode(line, bos=False, eos=False) == meta().tokenizer.encode(line, bos=False, eos=False)


@pytest.mark.slow
def test_ids_equal_metas_on_many_random_strings():
    _compare(120_000, seed=1)


# Prompts


@given(st.text())
@settings(max_examples=150, deadline=None)
def test_any_text_comes_back(text):
    ids = llama3().encode(text, bos=True, eos=True)
    assert llama3().decode(ids[1:-1]) == text
    assert max(ids[1:-1], default=0) < 128_000  # no text makes a special token


@given(st.text(alphabet="ab é\n'1\U0001f600"))
@settings(max_examples=50, deadline=None)
def test_any_text_comes_back_from_bytes_alone(text):
    assert tiny.tokenizer().decode(tiny.tokenizer().encode(text, bos=False, eos=False)) == text


def test_f106_an_empty_prompt_is_bos_alone():
    assert llama3().encode("", bos=True, eos=False) == [128000]
    assert llama3().encode("", bos=False, eos=False) == []


@pytest.mark.parametrize("text", [" ", "\n", "   \n\n  ", "\t"])
def test_f107_only_spaces(text):
    ids = llama3().encode(text, bos=False, eos=False)
    assert ids == meta().tokenizer.encode(text, bos=False, eos=False)
    assert llama3().decode(ids) == text


def test_f108_a_million_spaces():
    text = " " * 1_000_000
    ids = llama3().encode(text, bos=False, eos=False)
    assert ids == meta().tokenizer.encode(text, bos=False, eos=False)
    assert llama3().decode(ids) == text


def test_f108_a_panic_is_one_sentence(monkeypatch):
    class PanicException(BaseException):
        pass

    tokenizer = tiny.tokenizer()

    def panic(*_args, **_kwargs):
        raise PanicException("no entry found for key")

    monkeypatch.setattr(tiktoken.Encoding, "encode_ordinary", panic)
    with pytest.raises(UsageError, match="tiktoken can't encode this text of 2 characters: no entry"):
        tokenizer.encode("hi", bos=False, eos=False)

    def interrupt(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(tiktoken.Encoding, "encode_ordinary", interrupt)
    with pytest.raises(KeyboardInterrupt):
        tokenizer.encode("hi", bos=False, eos=False)


@pytest.mark.parametrize(
    "text",
    ["ab" * 200_001, "x" * 25_000 + " " * 25_001 + "y" * 50_001, "a" * 24_999 + "  b" + "c" * 30_000 + "\x1c" * 26_000],
    ids=["400002", "edges", "mixed"],
)
def test_f109_long_runs_are_cut_where_meta_cuts_them(text):
    ids = llama3().encode(text, bos=False, eos=False)
    assert ids == meta().tokenizer.encode(text, bos=False, eos=False)
    assert llama3().decode(ids) == text


@given(st.lists(st.tuples(st.sampled_from("a b"), st.integers(1, 9)), max_size=8))
def test_f109_runs_are_cut_as_meta_cuts_them(parts):
    text = "".join(character * count for character, count in parts)
    limit, module.MAX_RUN = module.MAX_RUN, 4
    try:
        ours = [part for part in module.split_runs(text) if part]
    finally:
        module.MAX_RUN = limit
    assert ours == [part for part in meta().tokenizer._split_whitespaces_or_nonwhitespaces(text, 4) if part]


def test_f110_special_names_are_text_unless_allowed():
    text = "<|eot_id|><|begin_of_text|>"
    assert max(llama3().encode(text, bos=False, eos=False)) < 128_000
    assert llama3().encode(text, bos=False, eos=False, allowed_special="all") == [128_009, 128_000]
    only = llama3().encode(text, bos=False, eos=False, allowed_special={"<|eot_id|>"})
    assert only[0] == 128_009
    assert max(only[1:]) < 128_000


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ab\ud800c", "U+D800 at character 2"),
        ("\udc00\ud83d\ude00", "U+DC00 at character 0"),
        ("\ud83d\ude00\ud83d", "U+D83D at character 2"),
    ],
)
def test_f112_a_lone_surrogate_is_refused(text, says):
    with pytest.raises(UsageError, match="lone surrogate") as caught:
        llama3().encode(text, bos=False, eos=False)
    assert says in str(caught.value)


def test_f112_a_surrogate_pair_is_its_character():
    assert llama3().encode("\ud83d\ude00", bos=False, eos=False) == llama3().encode("😀", bos=False, eos=False)


@pytest.mark.parametrize("text", ["a\x00b", "\ufeffa", "שלום abc", "👩‍👩‍👧", "e\u0301", "\u202eabc"])
def test_f113_unusual_characters_come_back(text):
    assert llama3().decode(llama3().encode(text, bos=False, eos=False)) == text


def test_f116_a_second_bos_is_kept():
    assert encode_prompt("<|begin_of_text|>hello", llama3(), PromptChoice(raw_special=True)) == [128000, 128000, 15339]


def test_a_byte_without_a_token_is_named(tmp_path):
    path = small(
        tmp_path,
        {5: base64.b64encode(b"four") + b" 4"},
        extra={**EXTRA, "n_single_bytes": 255},
    )
    tokenizer = read_tokenizer(path)
    with pytest.raises(UsageError) as caught:
        tokenizer.encode("é a\x04b", bos=False, eos=False)
    assert "no token for byte 0x04, at byte 4 of the text (character 3, '\\x04')" in str(caught.value)
    assert tokenizer.encode("ab", bos=True, eos=True) == [300, 256, 301]


@pytest.mark.parametrize(
    ("ids", "says"),
    [([0, -1], "-1 at position 1"), ([2**40], f"{2**40} at position 0"), ([1, 2, 128_256], "128256 at position 2")],
)
def test_ids_outside_the_vocabulary_are_named(ids, says):
    with pytest.raises(UsageError) as caught:
        llama3().decode(ids)
    assert f"token id {says} isn't in the vocabulary, expected 0 to 128255" in str(caught.value)


def test_half_a_character_is_bytes_but_not_text():
    first = llama3().encode("🦙", bos=False, eos=False)[:1]
    assert llama3().decode_bytes(first) == "🦙".encode()[: len(llama3().decode_bytes(first))]
    assert llama3().decode(first).startswith("\ufffd")


def test_a_tokenizer_without_bos_says_so():
    tokenizer = Tokenizer(
        {b"a": 0},
        pattern=PATTERN,
        special_tokens={},
        bos_id=None,
        eos_id=None,
        stop_tokens=[],
        chat_format=None,
        add_bos=False,
    )
    with pytest.raises(UsageError, match="no bos_id"):
        tokenizer.encode("a", bos=True, eos=False)
    with pytest.raises(UsageError, match="no eos_id"):
        tokenizer.encode("a", bos=False, eos=True)
    with pytest.raises(UsageError, match=r"no special token <\|eot_id\|>"):
        tokenizer.special("<|eot_id|>")
