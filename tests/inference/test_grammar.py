"""Answers by a grammar: whatever is drawn fits, and what can't be followed is refused before anything is generated."""

from __future__ import annotations

import json

import pytest
import torch

from llama3_scratch.errors import UsageError
from llama3_scratch.inference.grammar import GrammarError, Grammars
from llama3_scratch.inference.sample import sampler
from llama3_scratch.text.tool_calls import parse_tool_calls
from tests import tiny

pytest.importorskip("llguidance")
V = 264  # more rows than the tokenizer has words: a padded vocabulary


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer("chatml")


@pytest.fixture(scope="module")
def grammars(tokenizer):
    return Grammars(tokenizer, V)


def drawn(grammar, tokenizer, seed: int, most: int = 400) -> str | None:
    """What random logits say under a grammar; None where it isn't done after so many tokens."""
    generator = torch.Generator().manual_seed(seed)
    sample, said = grammar.constrain(sampler(temperature=1.0, top_p=0.99, seed=seed)), []
    for _ in range(most):
        logits_V = torch.randn(V, generator=generator) * 2
        logits_V[list(tokenizer.stop_tokens)] += 3
        said.append(sample(logits_V, said))
        if said[-1] in tokenizer.stop_tokens:
            return tokenizer.decode(said[:-1])
    return None


def follows(grammar, tokenizer, text: str) -> bool:
    """Whether the grammar takes this very text."""
    ids = [*tokenizer.encode(text, bos=False, eos=False), tokenizer.stop_tokens[0]]
    sample = grammar.constrain(lambda logits_V, seen: ids[len(seen)])
    try:
        return [sample(torch.zeros(V), ids[:place]) for place in range(len(ids))] == ids
    except GrammarError:
        return False


STRING = {"type": "string", "maxLength": 5}
SCHEMAS = {
    "an object": {"type": "object", "properties": {"a": STRING, "b": {"type": "integer"}}, "required": ["a", "b"]},
    "an array": {"type": "array", "items": {"enum": ["x", "y"]}, "minItems": 1, "maxItems": 3},
    "a number": {"type": "number", "minimum": 1, "maximum": 5},
    "one of": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
    "within itself": {
        "$defs": {"tree": {"type": "object", "properties": {"kids": {"type": "array", "items": {"$ref": "#/$defs/tree"},
                                                                    "maxItems": 1}}, "additionalProperties": False}},
        "$ref": "#/$defs/tree",
    },
    "a pattern": {"type": "string", "pattern": "^[a-c]{2}$"},
    "Chinese": {"const": "你好"},
}  # fmt: skip
FITS = {
    "an object": lambda x: {*x} >= {"a", "b"} and isinstance(x["a"], str) and isinstance(x["b"], int),
    "an array": lambda x: 1 <= len(x) <= 3 and {*x} <= {"x", "y"},
    "a number": lambda x: 1 <= x <= 5,
    "one of": lambda x: x in (True, False, None),
    "within itself": lambda x: {*x} <= {"kids"},
    "a pattern": lambda x: len(x) == 2 and {*x} <= {*"abc"},
    "Chinese": lambda x: x == "你好",
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_whatever_is_drawn_fits_the_schema(grammars, tokenizer, name):
    grammar = grammars.json(SCHEMAS[name])
    said = [text for seed in range(8) if (text := drawn(grammar, tokenizer, seed)) is not None]
    assert said and all(FITS[name](json.loads(text)) for text in said)


def test_any_object(grammars, tokenizer):
    said = [text for seed in range(12) if (text := drawn(grammars.json(), tokenizer, seed)) is not None]
    assert said and all(isinstance(json.loads(text), dict) for text in said)


REFUSED = {
    "another place": ({"$ref": "https://example.com/schema"}, "refers to 'https://example.com/schema'"),
    "deep": ({"not": None}, "can't be followed"),
    "itself": ({"$ref": "#"}, "can't be followed"),
    "no type": ({"type": "nonsense"}, "can't be followed: Invalid type: nonsense"),
    "nothing": ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "can't be followed"),
    "large": ({"enum": ["x" * 70_000]}, "the schema has 70014 bytes, at most 65536"),
}


@pytest.mark.parametrize("schema, said", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_followed_is_refused_in_one_line(grammars, schema, said):
    with pytest.raises(UsageError) as caught:
        grammars.json(schema)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_schema_that_is_too_deep_is_refused(grammars):
    schema = {"type": "string"}
    for _ in range(70):
        schema = {"type": "array", "items": schema}
    with pytest.raises(UsageError, match="more than 64 deep"):
        grammars.json(schema)


TOOLS = [
    {"function": {"name": "weather", "parameters": SCHEMAS["an object"]}},
    {"function": {"name": "time"}},
]


@pytest.mark.parametrize("several", [False, True])
def test_calls_are_calls_of_the_tools(grammars, tokenizer, several):
    grammar = grammars.calls(TOOLS, several=several)
    said = [text for seed in range(20) if (text := drawn(grammar, tokenizer, seed)) is not None]
    calls = [parse_tool_calls(text) for text in said]
    assert said and all(calls) and {call["name"] for found in calls for call in found} <= {"weather", "time"}
    both = 'weather", "parameters": {"a": "", "b": 1}}; {"name": "time", "parameters": {}}'
    assert follows(grammar, tokenizer, '{"name": "' + both) == several


def test_each_answer_begins_anew(grammars, tokenizer):
    grammar = grammars.json(SCHEMAS["an array"])
    assert drawn(grammar, tokenizer, 1) == drawn(grammar, tokenizer, 1)


def test_where_nothing_may_come_the_answer_fails(grammars):
    sample = grammars.regex("a").constrain(lambda logits_V, seen: 98)  # a sampler that doesn't care
    with pytest.raises(GrammarError, match="no token is left that it allows"):
        sample(torch.zeros(V), [])


def test_without_llguidance_the_extra_is_named(tokenizer, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(UsageError, match=r"pip install 'llama3_scratch\[serve\]'"):
        Grammars(tokenizer, V)
