"""Which model, which cache, which draft tokens, which chat format, how tokens are sampled: small frozen values.

A command line, a notebook, a test and a server build them alike, and each is checked as it is made: UsageError names
the field. Model, cache and drafts are a process's, prompt and sampling a request's. `loading` opens the model and
`factories` makes the rest. No torch here.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llama3_scratch.checkpoint.conversion import QUANTIZED
from llama3_scratch.errors import UsageError
from llama3_scratch.system.fields import Checked, number, one_of, switch, text, whole

DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")
CHAT_FORMATS = ("llama3", "chatml", "template")  # those of `text.tokenizer`, told without its imports; a test compares
KV_BITS = (16, 8, 4)  # those of `caches.quantized`, likewise

MAX_TOKENS = 512  # of an answer, unless told otherwise; where the context is shorter it ends there without a warning
BATCH_SIZE = 16  # prompts answered at once, unless told otherwise
SINKS = 4  # tokens of the beginning that a sliding cache keeps, unless told otherwise (arXiv:2309.17453)
REPEAT_LAST_N = 64  # tokens that a repeat penalty looks back at, unless told otherwise: llama.cpp's
MAX_DRAFT_TOKENS = 15  # that a pass can check


@dataclass(frozen=True)
class ModelChoice(Checked):
    """Which model, where it runs, and how its files are read."""

    model: str | Path | None = None  # a path or a name; None: the default model, fetched at first use
    device: str = text("cpu")
    dtype: str = one_of("auto", DTYPES)  # of activations and cache; auto: float32 on a CPU, else the weights' own
    quantize: str | None = one_of(None, QUANTIZED)  # the form that float weights are rounded to
    adapters: tuple[Path, ...] = ()  # folders of LoRA or DoRA adapters as PEFT writes them
    rope_scale_factor: float | None = number(None, above=0)  # for Meta's folders, in the place of Llama 3.1's
    allow_extra: bool = switch()  # ignore tensors that aren't part of a Llama
    chat_format: str | None = one_of(None, CHAT_FORMATS)  # whatever the files say

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.model, (str, Path, type(None))):
            raise UsageError(f"`model`: expected a path or a name, got {self.model!r:.99}")
        object.__setattr__(self, "adapters", _several("adapters", self.adapters, Path, (str, Path), "a folder"))

    @property
    def name(self) -> str:
        """What a table calls the model: its path or name, its form and its adapters."""
        form = f" in {self.quantize}" if self.quantize else ""
        return f"{self.model}{form}{' with ' * bool(self.adapters)}{', '.join(map(str, self.adapters))}"


@dataclass(frozen=True)
class CacheChoice(Checked):
    """How many tokens the KV cache holds, and in which form."""

    max_seq_len: int | None = whole(None, minimum=2)  # the context in use; None: the model's own
    kv_bits: int | None = one_of(None, KV_BITS)  # of a number of keys and values; None: the activations' dtype
    kv_k_bits: int | None = one_of(None, KV_BITS)  # of keys, in the place of kv_bits
    kv_v_bits: int | None = one_of(None, KV_BITS)  # of values, likewise
    kv_group_size: int | None = whole(None, minimum=1)  # of 8 or 4 bits: numbers that share a scale
    sliding: int | None = whole(None, minimum=1)  # go on where the context is full, with its beginning and the last N
    sinks: int | None = whole(None, minimum=0)  # of a sliding cache: tokens of the beginning that stay; None: SINKS

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sinks is not None and not self.sliding:
            raise UsageError("`sinks` goes with `sliding`")
        if self.kv_group_size is not None and not {4, 8} & set(self.bits):
            raise UsageError(f"`kv_group_size` {self.kv_group_size}: goes with `kv_bits` 8 or 4, which have scales")

    @property
    def bits(self) -> tuple[int | None, int | None]:
        """Of keys and of values; None: the activations' dtype."""
        return self.kv_k_bits or self.kv_bits, self.kv_v_bits or self.kv_bits


@dataclass(frozen=True)
class DraftChoice(Checked):
    """Where draft tokens come from, which one pass checks together."""

    speculate: str | None = text()  # "lookup", or a smaller model's path or name; None: no draft tokens
    draft_tokens: int | None = whole(None, minimum=1, maximum=MAX_DRAFT_TOKENS)  # at once, at most; None: 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draft_tokens and not self.speculate:
            raise UsageError("`draft_tokens` goes with `speculate`")


@dataclass(frozen=True)
class PromptChoice(Checked):
    """How a prompt is laid out: in the model's chat format, or as it is."""

    system: str | None = text()  # the system message of a chat
    raw: bool = switch()  # no chat format, whatever the model
    raw_special: bool = switch()  # no chat format, and names of special tokens are those tokens
    date: str | None = text()  # "26 Jul 2024": today for a chat template that asks

    @property
    def without_chat_format(self) -> bool:
        return self.raw or self.raw_special


@dataclass(frozen=True)
class SamplingChoice(Checked):
    """How the next token is chosen, and where an answer ends."""

    temperature: float = number(0.0, minimum=0)  # 0: the likeliest token
    top_p: float = number(1.0, above=0, maximum=1)  # keep the likeliest tokens that hold this much probability
    top_k: int = whole(0, minimum=0)  # keep the likeliest; 0: all
    min_p: float = number(0.0, minimum=0, maximum=1)  # keep tokens at least this share as likely as the likeliest
    repeat_penalty: float = number(1.0, above=0)  # above 1 makes tokens seen lately less likely
    repeat_last_n: int = whole(REPEAT_LAST_N, minimum=-1)  # how many of the last tokens count, 0: none, -1: all
    presence_penalty: float = number(0.0, minimum=-2, maximum=2)  # off the logit of what the answer has said already
    frequency_penalty: float = number(0.0, minimum=-2, maximum=2)  # likewise, for each time that it was said
    logit_bias: tuple[tuple[int, float], ...] = ()  # what is added to the logits of these ids
    seed: int = whole(-1, minimum=-1, maximum=2**64 - 1)  # -1: a random one
    max_tokens: int | None = whole(None, minimum=1)  # None: MAX_TOKENS, or as many as the context has room for
    stop: tuple[str, ...] = ()  # texts before which an answer ends

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "stop", _several("stop", self.stop, str, str, "a text"))
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))
        if "" in self.stop:
            raise UsageError("`stop`: expected some text, got an empty string")

    @property
    def at_most(self) -> int:
        """Tokens that an answer may have."""
        return MAX_TOKENS if self.max_tokens is None else self.max_tokens

    def seeded(self) -> SamplingChoice:
        """The same with a seed, drawn where it is to be a random one."""
        return replace(self, seed=random_seed()) if self.seed == -1 else self


MAX_BIAS = 100  # OpenAI's: that much bans a token, or chooses it


def _biases(given: Any) -> tuple[tuple[int, float], ...]:
    """Pairs of an id and what is added to its logit, from such pairs or a dict."""
    try:
        pairs = tuple((operator.index(id), float(bias)) for id, bias in dict(given).items())
    except (TypeError, ValueError):
        pairs = ((-1, 0.0),)
    if not all(id >= 0 and abs(bias) <= MAX_BIAS for id, bias in pairs):
        raise UsageError(f"`logit_bias`: expected ids with numbers from -{MAX_BIAS} to {MAX_BIAS}, got {given!r:.99}")
    return pairs


def random_seed() -> int:
    return random.SystemRandom().getrandbits(32)


def _several(name: str, given: Any, kind: type, taken: Any, words: str) -> tuple[Any, ...]:
    """One value or several, as a tuple of `kind`."""
    values = (given,) if isinstance(given, taken) else tuple(given) if isinstance(given, Iterable) else (given,)
    if not all(isinstance(value, taken) for value in values):
        raise UsageError(f"`{name}`: expected {words} or several, got {given!r:.99}")
    return tuple(map(kind, values))


CHAT_SAMPLING = SamplingChoice(temperature=0.6, top_p=0.9)  # what `chat` samples with: Meta's own examples do
