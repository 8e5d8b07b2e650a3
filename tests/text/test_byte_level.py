"""Hugging Face's and GGUF's byte-level BPE in, Hugging Face's out, and the same ids from all of them."""

from __future__ import annotations

import contextlib
import copy
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.text.byte_level import BYTE_OF, byte_level_tokenizer, to_alphabet
from llama3_scratch.text.chat_format import chat_settings
from llama3_scratch.text.dialog import encode_dialog
from llama3_scratch.text.hf_tokenizer import read_tokenizer_json, write_tokenizer_json
from llama3_scratch.text.pre_tokenizers import GPT2_PATTERN, QWEN2_PATTERN, SMOLLM_PATTERN
from llama3_scratch.text.tokenizer import PATTERN, Tokenizer
from llama3_scratch.text.tokenizer_file import read_tokenizer, write_tokenizer
from tests import tiny
from tests.reference import llama3, smollm2, smollm2_vocabulary, texts

# A vocabulary of two merges, Llama-like: its tokenizer.json as a trainer would write it.
BYTES = {to_alphabet(bytes([byte])): byte for byte in range(256)}
VOCABULARY = {**BYTES, "ab": 256, "Ġab": 257}
MERGES = [("a", "b"), ("Ġ", "ab")]
SPECIAL = {"<|begin_of_text|>": 258, "<|end_of_text|>": 259, "<|start_header_id|>": 260, "<|eot_id|>": 261}


def document(**changes: Any) -> dict[str, Any]:
    """A tokenizer.json; `changes` replaces its parts, and with `model__key` those of its model."""
    data: dict[str, Any] = {
        "added_tokens": [{"id": id, "content": name, "special": True} for name, id in SPECIAL.items()],
        "normalizer": None,
        "pre_tokenizer": split(PATTERN),
        "post_processor": {"type": "ByteLevel", "add_prefix_space": True},
        "model": {"type": "BPE", "vocab": VOCABULARY, "merges": [" ".join(pair) for pair in MERGES]},
    }
    for key, value in changes.items():
        part, _, inner = key.partition("__")
        if inner:
            data[part] = {**data[part], inner: value}
        else:
            data[part] = value
    return data


def split(pattern: str, **changes: Any) -> dict[str, Any]:
    step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False, **changes}
    return {"type": "Sequence", "pretokenizers": [step, byte_level(use_regex=False)]}


def byte_level(**changes: Any) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True, **changes}


def folder(path: Path, data: Any = None, **beside: Any) -> Path:
    """A Hugging Face folder of tokenizer.json and other JSON files."""
    for name, content in {"tokenizer": document() if data is None else data, **beside}.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


def public(tokenizer: Tokenizer) -> dict[str, Any]:
    return {key: value for key, value in vars(tokenizer).items() if not key.startswith("_")}


def differing(encode: Callable[[list[str]], list[list[int]]], tokenizer: Tokenizer, samples: list[str]) -> list[str]:
    """The samples that `encode` turns into other ids, of those that the tokenizer's bytes can spell."""
    ids = {}
    for text in samples:
        with contextlib.suppress(UsageError):
            ids[text] = tokenizer.encode(text, bos=tokenizer.add_bos, eos=False)
    assert len(ids) > len(set(samples)) / 2
    return [text for text, theirs in zip(ids, encode(list(ids)), strict=True) if theirs != ids[text]]


def test_gpt2s_alphabet():
    transformers_gpt2 = pytest.importorskip("transformers.convert_slow_tokenizer")
    assert {byte: character for character, byte in BYTE_OF.items()} == transformers_gpt2.bytes_to_unicode()


# SmolLM2


def test_smollm2s_ids_equal_hugging_faces():
    tokenizers = pytest.importorskip("tokenizers")
    tokens, merges, special, _ = smollm2_vocabulary()
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=tokens, merges=merges))
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [tokenizers.pre_tokenizers.Digits(True), tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    lines = tiny.data("wikitext2.txt").read_text().splitlines()[:3000]
    samples = [*lines, *texts(5000)]
    assert differing(lambda these: [each.ids for each in theirs.encode_batch(these)], smollm2(), samples) == []
    assert len(special) == 17


def test_smollm2_is_ranks_as_they_stand(tmp_path):
    assert (len(smollm2().ranks), min(smollm2().ranks.values()), smollm2().n_words) == (49_135, 17, 49_152)
    write_tokenizer(smollm2(), tmp_path)
    assert public(read_tokenizer(tmp_path)) == public(smollm2())
    with pytest.raises(UsageError, match=r"no token for byte 0x04, at byte 1 of the text \(character 1, '\\x04'\)"):
        smollm2().encode("a\x04", bos=False, eos=False)
    missing = [byte for byte in range(256) if bytes([byte]) not in smollm2().ranks]
    assert missing == [4, 6, 0x13, 0x14, 0x16, 0x1D, 0xC0, 0xC1, 0xF1, 0xF2, *range(0xF5, 0x100)]


# Out to Hugging Face and back


@pytest.mark.parametrize("make", [llama3, smollm2], ids=["llama3", "smollm2"])
def test_transformers_gives_the_same_ids(tmp_path, make):
    transformers = pytest.importorskip("transformers")
    tokenizer = make()
    write_tokenizer_json(tokenizer, tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == tokenizer.n_words
    assert (theirs.bos_token_id, theirs.eos_token_id) == (tokenizer.bos_id, tokenizer.eos_id)
    samples = [*texts(1500), *tiny.data("wikitext2.txt").read_text().splitlines()[:100]]
    samples = [text for text in samples if "<|" not in text]  # transformers turns names of special tokens into them
    assert differing(lambda these: theirs(these)["input_ids"], tokenizer, samples) == []
    ids = theirs.convert_tokens_to_ids(list(tokenizer.special_tokens))
    assert ids == list(tokenizer.special_tokens.values())
    for messages in (
        [{"role": "user", "content": " hi\n"}],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}],
    ):
        rendered = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert rendered == encode_dialog(messages, tokenizer)
    assert theirs.decode(tokenizer.encode("a , b 's", bos=False, eos=False)) == "a , b 's"

    if make is llama3:
        written = json.loads((tmp_path / "tokenizer.json").read_text())
        assert len(written["model"]["merges"]) == 280_147  # as many as in the one that Meta publishes
    stops = {"eos_token_id": tokenizer.stop_tokens}
    (tmp_path / "generation_config.json").write_text(json.dumps(stops))
    assert public(read_tokenizer_json(tmp_path)) == public(tokenizer)


@pytest.mark.parametrize("pattern", [GPT2_PATTERN, SMOLLM_PATTERN, PATTERN, QWEN2_PATTERN, r"\s+|\S+"])
def test_every_pattern_comes_back(tmp_path, pattern):
    tokenizer = tiny.tokenizer("chatml")
    tokenizer.pattern, tokenizer.system_prompt = pattern, 'Say "hi".\nBe brief.'
    write_tokenizer_json(tokenizer, tmp_path)
    read = read_tokenizer_json(tmp_path)
    if "|" in pattern[4:]:
        assert public(read) == public(tokenizer)
    else:
        assert read.encode("a b  c", bos=False, eos=False) == tokenizer.encode("a b  c", bos=False, eos=False)


def test_a_base_model_has_no_template(tmp_path):
    write_tokenizer_json(tiny.tokenizer(None), tmp_path)
    assert "chat_template" not in json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert read_tokenizer_json(tmp_path).chat_format is None


# In from Hugging Face


def test_f105_tokenizer_json_alone(tmp_path):
    tokenizer = read_tokenizer_json(folder(tmp_path))
    assert tokenizer.encode("ab ab", bos=False, eos=False) == [256, 257]
    assert tokenizer.special_tokens == SPECIAL
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.stop_tokens) == (None, None, [])
    assert (tokenizer.chat_format, tokenizer.add_bos) == (None, False)


@pytest.mark.parametrize("missing", [None, "tokenizer_config"])
def test_the_files_beside_it_say_the_rest(tmp_path, missing):
    single = [{"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    processor = {"type": "Sequence", "processors": [byte_level(), {"type": "TemplateProcessing", "single": single}]}
    names = {"bos_token": {"content": "<|begin_of_text|>", "lstrip": False}, "eos_token": "<|eot_id|>"}
    beside = {
        "tokenizer_config": {**names, "chat_template": [{"name": "default", "template": "<|start_header_id|>…"}]},
        "special_tokens_map": names,
        "generation_config": {"eos_token_id": [259]},
        "config": {"bos_token_id": 1, "eos_token_id": 2},
    }
    beside.pop(missing, None)
    tokenizer = read_tokenizer_json(folder(tmp_path, document(post_processor=processor), **beside))
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.add_bos) == (258, 261, True)
    if missing:  # no template: a base model
        assert (tokenizer.chat_format, tokenizer.stop_tokens) == (None, [259])
    else:  # a chat stops at the end of its turn, whatever generation_config.json forgot
        assert (tokenizer.chat_format, tokenizer.stop_tokens) == ("template", [259, 261])


@pytest.mark.parametrize("name", ["chat_template.jinja", "chat_template.json"])
def test_a_template_in_a_file_of_its_own(tmp_path, name):
    folder(tmp_path, config={"eos_token_id": 259})
    source = json.dumps({"chat_template": "<|start_header_id|>"})
    (tmp_path / name).write_text(source)
    template = read_tokenizer_json(tmp_path).chat_template
    assert template.source == (source if name.endswith(".jinja") else "<|start_header_id|>")


def test_a_template_of_bytes_that_are_no_text(tmp_path):
    folder(tmp_path, config={"eos_token_id": 259})
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff<|start_header_id|>")
    with pytest.raises(FileError, match=r"chat_template\.jinja: byte 0 isn't UTF-8, expected a chat template"):
        read_tokenizer_json(tmp_path)


def test_ids_of_the_configuration_where_no_name_is_given(tmp_path):
    tokenizer = read_tokenizer_json(folder(tmp_path, config={"bos_token_id": 258, "eos_token_id": 261}))
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.stop_tokens) == (258, 261, [261, 259])
    assert tokenizer.chat_format == "llama3"  # it stops where a turn ends, so at the end of a text too


CHATML = {"<|im_start|>": 1, "<|im_end|>": 2}


@pytest.mark.parametrize(
    ("template", "special", "stops", "expected"),
    [
        (None, CHATML, [0], (None, None)),
        (None, CHATML, [2], ("chatml", None)),
        ("{{ '<|im_start|>' + role }}", CHATML, [], ("chatml", None)),
        ("{{ '<|im_start|>system\n' + text + '<|im_end|>' }}", CHATML, [], ("chatml", None)),
        ("{{ '<|im_start|>system\nYou are SmolLM.<|im_end|>\n' }}", CHATML, [], ("chatml", "You are SmolLM.")),
        (r"{{ '<|im_start|>system\nIt\'s me.<|im_end|>\n' }}", CHATML, [], ("chatml", "It's me.")),
        ("[INST]", CHATML, [2], (None, None)),
        ("<|im_start|>", SPECIAL, [261], (None, None)),
        ("<|start_header_id|>", SPECIAL, [], ("llama3", None)),
    ],
)
def test_what_a_template_means(template, special, stops, expected):
    assert chat_settings(template, special, stops) == expected


@pytest.mark.parametrize(
    ("pre_tokenizer", "pattern"),
    [
        (byte_level(), GPT2_PATTERN),
        ({"type": "Sequence", "pretokenizers": [byte_level()]}, GPT2_PATTERN),
        (
            {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level()]},
            SMOLLM_PATTERN,
        ),
        (split(PATTERN), PATTERN),
    ],
)
def test_how_text_is_split(tmp_path, pre_tokenizer, pattern):
    assert read_tokenizer_json(folder(tmp_path, document(pre_tokenizer=pre_tokenizer))).pattern == pattern


def test_text_between_a_patterns_matches_is_kept(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    data = document(pre_tokenizer=split(r"[a-z]+|\d"))
    tokenizer = read_tokenizer_json(folder(tmp_path, data))
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=VOCABULARY, merges=MERGES))
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[a-z]+|\d"), "isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    for text in ["ab, ab!?12ab", "  ab", "ab\n\n", "…"]:
        ids = tokenizer.encode(text, bos=False, eos=False)
        assert ids == theirs.encode(text).ids
        assert tokenizer.decode(ids) == text


ADD_EOS = {"type": "TemplateProcessing", "single": [{"Sequence": {}}, {"SpecialToken": {"id": "<|end_of_text|>"}}]}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model__type": "Unigram"}, "model Unigram can't be carried over, expected BPE"),
        ({"model__type": "WordPiece"}, "model WordPiece can't"),
        ({"model__byte_fallback": True}, "model.byte_fallback True can't"),
        ({"model__dropout": 0.1}, "model.dropout 0.1 can't"),
        ({"model__end_of_word_suffix": "</w>"}, "model.end_of_word_suffix '</w>' can't"),
        ({"normalizer": {"type": "NFC"}}, "normalizer NFC can't be carried over, expected none"),
        (
            {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend"}, {"type": "Replace"}]}},
            "normalizer Sequence[Prepend, Replace] can't",
        ),
        ({"pre_tokenizer": {"type": "Metaspace"}}, "pre_tokenizer Metaspace can't"),
        ({"pre_tokenizer": None}, "pre_tokenizer None can't"),
        ({"pre_tokenizer": byte_level(add_prefix_space=True)}, "ByteLevel with add_prefix_space can't"),
        ({"pre_tokenizer": split(PATTERN, behavior="Removed")}, "pre_tokenizer Split with behavior Removed can't"),
        ({"pre_tokenizer": split("(")}, "the split pattern '(' has a ( without ), which can't be carried over"),
        ({"post_processor": {"type": "BertProcessing"}}, "post_processor BertProcessing can't"),
        ({"post_processor": ADD_EOS}, "post_processor TemplateProcessing can't"),
        ({"model": None}, "model is missing"),
        ({"model__vocab": ["a"]}, "model.vocab must be tokens with their ids"),
        ({"model__merges": ["a b c"]}, "model.merges[0] must be a pair of tokens, got 'a b c'"),
        ({"model__merges": {}}, "model.merges must be a list"),
        ({"added_tokens": [{"content": "x"}]}, "added_tokens[0] must have a content and an id, got {'content': 'x'}"),
        ({"model__merges": ["Ġ ab", "a b"]}, "merge 1, 'a' 'b', gives token 256 after a merge that gave 257"),
        ({"model__merges": ["a b", "a c"]}, "merge 1, 'a' 'c', needs 'ac', which is no token"),
        ({"model__merges": ["a b"]}, "token 257, 'Ġab', is made by no merge"),
        ({"model__vocab": {**VOCABULARY, "▁the": 300}}, "token 300, '▁the', has '▁', which is outside GPT-2's"),
        ({"model__vocab": {**VOCABULARY, "c": 97}}, "an id stands twice"),
        (
            {"added_tokens": [{"id": 9, "content": "a", "lstrip": 1}]},
            "the flags of added token 'a' must be true or false",
        ),
    ],
)
def test_f105_what_ranks_cannot_carry_is_refused_by_name(tmp_path, changes, says):
    with pytest.raises(FileError) as caught:
        read_tokenizer_json(folder(tmp_path, document(**changes)))
    assert str(tmp_path / "tokenizer.json") in str(caught.value)
    assert says in str(caught.value)


@pytest.mark.parametrize("token", [5, ["<s>"], {"id": 3}])
def test_a_name_that_is_no_token(token, tmp_path):
    with pytest.raises(FileError, match=re.escape(f"tokenizer_config.json: bos_token is {token!r}, which is no token")):
        read_tokenizer_json(folder(tmp_path, tokenizer_config={"bos_token": token}))


def places(part: Any, path: tuple = ()) -> Iterator[tuple]:
    """The path of every value within a JSON value."""
    yield path
    inner = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
    for key, value in inner:
        yield from places(value, (*path, key))


def test_whatever_stands_in_the_files_ends_in_one_sentence(tmp_path):
    single = [{"SpecialToken": {"id": "<|begin_of_text|>"}}, {"Sequence": {"id": "A"}}]
    processors = [byte_level(), {"type": "TemplateProcessing", "single": single}]
    vocabulary = {"a": 97, "b": 98, "Ġ": 32, "ab": 256, "Ġab": 257} | SPECIAL
    digits = {"type": "Digits", "individual_digits": True}
    steps = [
        split("a+")["pretokenizers"][0],
        digits,
        {"type": "Punctuation", "behavior": "Isolated"},
        byte_level(use_regex=False),
    ]
    data = document(model__vocab=vocabulary, post_processor={"type": "Sequence", "processors": processors})
    data["added_tokens"] += [{"id": 262, "content": "Zyx", "special": False, "lstrip": True, "normalized": True}]
    whole = {
        "tokenizer": data | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}},
        "tokenizer_config": {
            "bos_token": {"content": "<|begin_of_text|>"},
            "chat_template": [{"name": "default"}],
            "additional_special_tokens": ["<x>", {"content": "<y>"}],
        },
        "added_tokens": {"<z>": 262},
        "special_tokens_map": {"eos_token": "<|eot_id|>"},
        "generation_config": {"eos_token_id": [259, 261], "bos_token_id": 258},
    }
    folder(tmp_path, whole["tokenizer"], **{key: whole[key] for key in whole if key != "tokenizer"})
    assert read_tokenizer_json(tmp_path).stop_tokens == [259, 261]
    outcomes = Counter[str]()
    for name, data in whole.items():
        for path in places(data):
            for value in (None, -1, 1.5, "x", [], [[1]], {"a": 1}):
                changed = {"whole": copy.deepcopy(data)}
                place: Any = changed
                for key in ("whole", *path[:-1]) if path else ():
                    place = place[key]
                place[path[-1] if path else "whole"] = value
                (tmp_path / f"{name}.json").write_text(json.dumps(changed["whole"]))
                try:
                    read_tokenizer_json(tmp_path)
                    outcomes["read"] += 1
                except FileError as error:
                    assert str(tmp_path) in str(error)
                    outcomes["refused"] += 1
        (tmp_path / f"{name}.json").write_text(json.dumps(data))
    assert outcomes["refused"] > 200


def test_a_missing_file(tmp_path):
    with pytest.raises(FileError, match=r"tokenizer\.json: a Hugging Face tokenizer not found"):
        read_tokenizer_json(tmp_path)


def test_whole_words_may_lack_a_merge_where_merges_are_ignored():
    vocabulary = {**VOCABULARY, "Ġxyz": 262}
    options: dict[str, Any] = {"pattern": PATTERN, "bos_id": None, "eos_id": None, "stop_tokens": []}
    options |= {"chat_format": None, "add_bos": False, "source": Path("x")}
    tokenizer = byte_level_tokenizer(vocabulary, MERGES, SPECIAL, ignore_merges=True, **options)
    assert tokenizer.encode("a xyz", bos=False, eos=False) == [97, 262]
    with pytest.raises(FileError, match="x: token 262, 'Ġxyz', is made by no merge"):
        byte_level_tokenizer(vocabulary, MERGES, SPECIAL, **options)
