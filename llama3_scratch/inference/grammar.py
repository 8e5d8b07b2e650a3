"""Answers in a form that was asked for: JSON by a schema, calls of given tools. A grammar says before each token which
may come; what it forbids isn't drawn.

The grammars are llguidance's (the extra `serve`). Whatever is wrong with one is told before anything is generated.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llama3_scratch.errors import Llama3Error, UsageError
from llama3_scratch.inference.sample import Sampler
from llama3_scratch.text.detokenizer import piece
from llama3_scratch.text.tokenizer import Tokenizer

MAX_SCHEMA_BYTES = 64 * 1024
MAX_DEPTH = 64
# Of what a grammar may cost; a tenth or so of llguidance's own limits, which ordinary schemas don't come near.
LIMITS: dict[str, Any] = {
    "max_items_in_row": 500,
    "initial_lexer_fuel": 500_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 20_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 100_000,
    "verbose_errors": False,  # a schema may be a secret
}
# As json.dumps writes: where white space may come anywhere, a model can go on with it for ever.
_LAYOUT: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# What is forbidden gets this: far below any logit, and yet a number that the sampler can compute with.
_FORBIDDEN = -30_000.0


class GrammarError(Llama3Error):
    """An answer can't go on as its grammar says."""


class Grammars:
    """Grammars over one tokenizer's tokens; making it takes a moment, and once is enough."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        """`vocab_size`: the logits that there are. Raises UsageError without llguidance."""
        try:
            import llguidance
        except ImportError as error:
            raise UsageError("grammars are llguidance's: pip install 'llama3_scratch[serve]'") from error
        self._library, self.vocab_size = llguidance, vocab_size
        self._tokens = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(_Tokens(tokenizer, vocab_size)),
            n_vocab=vocab_size,
            eos_token=list(tokenizer.stop_tokens),
        )

    def json(self, schema: Mapping[str, Any] | bool = True) -> Grammar:
        """JSON by a schema; True: any object. Raises UsageError for a schema that can't be followed."""
        if isinstance(schema, bool):
            schema = {"type": "object"}
        try:
            grammar = self._library.LLMatcher.grammar_from_json_schema(_text(schema), overrides=_LAYOUT)
        except ValueError as error:
            raise UsageError(f"the schema can't be followed: {_first_line(error)}") from error
        return self._made(grammar)

    def calls(self, tools: Sequence[Mapping[str, Any]], *, several: bool = False) -> Grammar:
        """A call of one of these tools, as Llama writes it: {"name": …, "parameters": {…}}.

        `tools` are OpenAI's: {"function": {"name", "parameters"}}. `several`: one call or more, "; " between them.
        """
        rules = ['start: call ("; " call)*' if several else "start: call"]
        rules.append(f"call: {' | '.join(f'call_{place}' for place in range(len(tools)))}")
        for place, tool in enumerate(tools):
            function = tool["function"]
            schema = {"type": "object", **(function.get("parameters") or {}), "x-guidance": _LAYOUT}
            head = f'{{"name": {json.dumps(function["name"])}, "parameters": '
            rules.append(f'call_{place}: {json.dumps(head)} parameters_{place} "}}"')
            # A schema of its own, in which #/$defs/… leads to its own definitions.
            rules.append(f"parameters_{place}: %json {_text(schema)}")
        return self._made(self._library.LLMatcher.grammar_from_lark("\n".join([*rules, ""])))

    def regex(self, pattern: str) -> Grammar:
        """A text that the pattern matches whole."""
        return self._made(self._library.LLMatcher.grammar_from_regex(pattern))

    def _made(self, grammar: str) -> Grammar:
        matcher = self._library.LLMatcher(
            self._tokens, grammar, log_level=0, limits=self._library.LLParserLimits(**LIMITS)
        )
        made = Grammar(matcher, self.vocab_size)
        made.check()
        return made


class Grammar:
    """A grammar that is sound: its first mask was computed."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher, self._vocab_size = matcher, vocab_size

    def check(self) -> None:
        """Raise UsageError for a grammar that is none; some show that only with the first mask."""
        first = self._matcher.deep_copy()
        mask = None if first.is_error() else first.compute_bitmask()
        if first.is_error() or mask is None or not any(mask):
            raise UsageError(f"the schema can't be followed: {_first_line(first.get_error() or 'nothing fits it')}")

    def constrain(self, sampler: Sampler) -> Sampler:
        """The sampler among the tokens that may come next; a new answer each time this is called.

        It raises GrammarError where none may, or where the grammar got too costly.
        """
        matcher = self._matcher.deep_copy()

        def sample(logits_V: Tensor, seen: Sequence[int]) -> int:
            packed = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
            if matcher.is_error():
                raise GrammarError(f"the answer can't go on by its grammar: {_first_line(matcher.get_error())}")
            allowed = np.unpackbits(packed, bitorder="little", count=self._vocab_size).view(bool)
            allowed_V = torch.from_numpy(allowed).to(logits_V.device)
            token = sampler(torch.where(allowed_V, logits_V, _FORBIDDEN), seen)
            if not allowed[token] or not matcher.consume_token(token):
                raise GrammarError("the answer can't go on by its grammar: no token is left that it allows")
            return token

        return sample


class _Tokens:
    """A tokenizer as llguidance wants it."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        special = {id for id in tokenizer.special_tokens.values() if id < vocab_size}
        names = {id: name.encode() for name, id in tokenizer.special_tokens.items()}
        self.eos_token_id = tokenizer.stop_tokens[0]
        self.bos_token_id = tokenizer.bos_id
        self.special_token_ids = sorted(special)
        self.tokens = [names[id] if id in special else piece(id, tokenizer) for id in range(vocab_size)]

    def __call__(self, text: bytes | str) -> list[int]:
        whole = text.decode("utf-8", "ignore") if isinstance(text, bytes) else text
        return self._tokenizer.encode(whole, bos=False, eos=False)


def _text(schema: Mapping[str, Any]) -> str:
    """The schema as JSON. Raises UsageError for one that is too large or too deep, or would fetch another."""
    _check(schema)
    text = json.dumps(schema)
    if len(text) > MAX_SCHEMA_BYTES:
        raise UsageError(f"the schema has {len(text)} bytes, at most {MAX_SCHEMA_BYTES} are taken")
    return text


def _check(schema: Any, depth: int = 0) -> None:
    """Raise UsageError for a schema that is too deep or would fetch another."""
    if depth > MAX_DEPTH:
        raise UsageError(f"the schema is more than {MAX_DEPTH} deep")
    if isinstance(schema, Mapping):
        for name, value in schema.items():
            if name in ("$ref", "$dynamicRef") and isinstance(value, str) and not value.startswith("#"):
                raise UsageError(f"the schema refers to {value!r:.99}; only references within it (#…) are followed")
            _check(value, depth + 1)
    elif isinstance(schema, list):
        for value in schema:
            _check(value, depth + 1)


def _first_line(error: object) -> str:
    return (str(error).strip().splitlines() or ["unknown"])[0][:300]
