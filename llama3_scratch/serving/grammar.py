"""Answers that have to be JSON by a schema, or calls of given tools: masks over the vocabulary by llguidance.

A schema comes from a stranger. It's bounded before it is compiled, compiled beside the event loop with limits of its
own, and a mask is computed before anything is answered: some errors show only then. Whatever goes wrong later ends the
answer; there is no answer without its mask.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import llguidance
import numpy as np
import torch
from torch import Tensor

from llama3_scratch.errors import Llama3Error
from llama3_scratch.inference.sample import Filter
from llama3_scratch.serving.errors import ApiError
from llama3_scratch.text.detokenizer import piece
from llama3_scratch.text.tokenizer import Tokenizer
from llama3_scratch.text.tool_prompts import Tool

MAX_SCHEMA_BYTES = 64_000
# As json.dumps writes it: a model that may put white space anywhere can go on with that for ever.
_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class GrammarError(Llama3Error):
    """The grammar of an answer can't be followed any further."""


class Grammars:
    """The grammars of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._words: llguidance.LLTokenizer | None = None
        self._lock = threading.Lock()

    def of(
        self,
        schema: Mapping[str, Any] | bool | None,
        tools: Sequence[Tool] = (),
        *,
        forced: bool = False,
        several_calls: bool = True,
    ) -> llguidance.LLMatcher | None:
        """What an answer has to be: JSON by a schema (True: any object), or calls of the tools where it's `forced` to
        be or has a schema besides; None: anything.

        Raises ApiError 400 for a schema that can't be used. Takes up to a quarter of a second.
        """
        if schema is None and not forced:
            return None
        ways, rules, param = [], list[str](), "tools" if forced else "response_format"
        if schema is not None and not forced:
            wanted = {"type": "object"} if isinstance(schema, bool) else schema
            _check(wanted, "response_format")
            ways.append("answer")
            rules.append(f"answer: %json {_laid_out(wanted)}")
        if tools:
            ways.append("calls")
            rules += self._calls(tools, several_calls)
        return self._compiled("\n".join([f"start: {' | '.join(ways)}", *rules, ""]), param)

    def _calls(self, tools: Sequence[Tool], several: bool) -> list[str]:
        """In the form in which the chat format has calls: Hermes' for ChatML, else Llama's."""
        tagged = self._tokenizer.chat_format == "chatml"
        key = "arguments" if tagged else "parameters"
        begin, end, between = ("<tool_call>\n", "\n</tool_call>", "\n") if tagged else ("", "", "; ")
        rules = [f"calls: call ({json.dumps(between)} call)*" if several else "calls: call"]
        rules.append(f"call: {' | '.join(f'call_{number}' for number in range(len(tools)))}")
        for number, tool in enumerate(tools):
            function = tool["function"]
            parameters = function.get("parameters") or {"properties": {}}
            _check(parameters, "tools")
            head = f'{begin}{{"name": {json.dumps(function["name"])}, "{key}": '
            rules.append(f"call_{number}: {json.dumps(head)} arguments_{number} {json.dumps('}' + end)}")
            rules.append(f"arguments_{number}: %json {_laid_out({'type': 'object', **parameters})}")
        return rules

    def _compiled(self, lark: str, param: str) -> llguidance.LLMatcher:
        limits = llguidance.LLParserLimits(
            initial_lexer_fuel=500_000,
            step_lexer_fuel=100_000,
            step_max_items=25_000,
            max_lexer_states=50_000,
            max_grammar_size=100_000,
            verbose_errors=False,
        )
        matcher = llguidance.LLMatcher(
            self._tokens(), llguidance.LLMatcher.grammar_from_lark(lark), log_level=0, limits=limits
        )
        if not matcher.is_error():
            matcher.compute_bitmask()
        if matcher.is_error():
            why = " ".join(matcher.get_error().split("\n")[0].split())[:200]
            raise ApiError(400, f"{param}: this schema can't be followed: {why}", param=param)
        return matcher

    def _tokens(self) -> llguidance.LLTokenizer:
        with self._lock:  # it's made once, by whoever asks first, and takes a moment
            if self._words is None:
                self._words = llguidance.LLTokenizer(
                    llguidance.TokenizerWrapper(_Vocabulary(self._tokenizer, self._vocab_size)),
                    n_vocab=self._vocab_size,
                    eos_token=list(self._tokenizer.stop_tokens),
                )
            return self._words


class _Vocabulary:
    """The tokenizer as llguidance takes one."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = tokenizer.stop_tokens[0]
        self.bos_token_id = tokenizer.bos_id
        self.tokens = [piece(id, tokenizer) for id in range(vocab_size)]
        self.special_token_ids = sorted(id for id in tokenizer.special_tokens.values() if id < vocab_size)

    def __call__(self, text: bytes | str) -> list[int]:
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")
        return self._tokenizer.encode(text, bos=False, eos=False)


def follow(matcher: llguidance.LLMatcher, prompt_tokens: int) -> Filter:
    """Only what the grammar allows next; for one answer, behind a prompt of so many tokens."""
    matcher = matcher.deep_copy()
    taken = prompt_tokens

    def filter(logits_V: Tensor, seen: Sequence[int]) -> Tensor:
        nonlocal taken
        matcher.consume_tokens(list(seen[taken:]))
        taken = len(seen)
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        if matcher.is_error():
            raise GrammarError("the schema became too complex to be followed")
        allowed_V = torch.from_numpy(np.unpackbits(bits, count=len(logits_V), bitorder="little")).bool()
        return logits_V.masked_fill(~allowed_V.to(logits_V.device), torch.finfo(logits_V.dtype).min)

    return filter


def _check(schema: Mapping[str, Any], param: str) -> None:
    """Raise ApiError for a schema that is too large or wants something fetched."""
    if len(json.dumps(schema)) > MAX_SCHEMA_BYTES:
        raise ApiError(400, f"{param}: a schema has more than {MAX_SCHEMA_BYTES} bytes", param=param)
    for inner in _objects(schema):
        target = inner.get("$ref")
        if isinstance(target, str) and not target.startswith("#"):
            raise ApiError(400, f"{param}: a $ref leads out of the schema, and nothing is fetched", param=param)


def _objects(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every object within a value that JSON made."""
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            yield one
            left += one.values()
        elif isinstance(one, list):
            left += one


def _laid_out(schema: Mapping[str, Any]) -> str:
    return json.dumps({**schema, "x-guidance": _LAYOUT})
