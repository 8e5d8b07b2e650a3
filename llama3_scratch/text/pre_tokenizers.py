"""How a text is cut into pieces before merging: Hugging Face's `pre_tokenizer`, and GGUF's names for such rules.

A rule is a pattern, and patterns that cut the text before that one does, each within the pieces of the one before.
GGUF names its rules in `tokenizer.ggml.pre`; what a name means is what llama.cpp does (llama-vocab.cpp), but that it
doesn't take ſ for an s in 's, as Llama 3's and Qwen's own patterns do.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.text.oniguruma import translate
from llama3_scratch.text.tokenizer import PATTERN, Tokenizer

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# GPT-2's after every digit was set apart: a run of spaces before a digit then ends its text and stays whole.
SMOLLM_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+"
QWEN2_PATTERN = PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")


class Rule(NamedTuple):
    """`splits` and `pattern` of a tokenizer; whether llama.cpp ignores merges for whole words and begins with BOS."""

    pattern: str
    splits: tuple[str, ...] = ()
    ignore_merges: bool = False
    add_bos: bool = False


def covering(pattern: str) -> str:
    """`pattern`, and as pieces what lies between its matches, which tiktoken would drop."""
    covered = re.fullmatch(r"(.*)\|\(\?:\(\?!\1\)\[\\s\\S\]\)\+", pattern, re.DOTALL)
    return pattern if covered or pattern in _COVERING else rf"{pattern}|(?:(?!{pattern})[\s\S])+"


_WHOLE = r"[\s\S]+"
_COVERING = {PATTERN, GPT2_PATTERN, SMOLLM_PATTERN, QWEN2_PATTERN, _WHOLE}
_ENDINGS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
# llama.cpp takes a space that isn't ASCII for a vertical tab, so that it's in none of these ranges.
_CHINESE = r"(?:(?!\s)[一-龥\u0800-一가-\ud7ff])+"
# llama.cpp knows no upper and lower case beyond ASCII's.
_UPPER, _LOWER = r"(?:(?=\p{L})[^a-z])", r"(?:(?=\p{L})[^A-Z])"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{{0}}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{{0}}|\p{{N}}{{1}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_DEEPSEEK_V3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]\^_`{|}\~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
)
_BLOOM = covering(r" ?[^(\s|.,!?…。，、।۔،)]+")
# Letters with a case, as DeepSeek's first tokenizer lists them.
_CASED_LETTERS = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝ"
    "Ὗ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗ"
    "Ａ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
_ALIKE: dict[Rule, str] = {
    Rule(
        PATTERN, ignore_merges=True, add_bos=True
    ): "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2",
    Rule(PATTERN): "smaug-bpe dbrx glm4 chatglm-bpe",
    Rule(GPT2_PATTERN): "gpt-2 olmo mpt phi-2 jais trillion gigachat a.x-4.0 mellum exaone4 granite-docling",
    Rule(SMOLLM_PATTERN): "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
    Rule(QWEN2_PATTERN): "qwen2 deepseek-r1-qwen stablelm2 hunyuan megrez kormo f2llmv2 solar-open grok-2",
    Rule(covering("[0-9]{3}"), (r"[\p{P}$+<=>\^\~|]+", GPT2_PATTERN, r"\p{N}+")): "default",
    Rule(covering("[0-9]{3}"), (r"[\p{P}$+<=>\^\~|`]+", GPT2_PATTERN)): "falcon",
    Rule(
        covering(r"\p{N}+"),
        (
            r"[\r\n]",
            rf"\s?[{_CASED_LETTERS}]+",
            r"\s?(?:(?!\s)[!-/:-\~！-／：-～‘-‟　-。])+",
            r"\s+(?![\s\S])",
            _CHINESE,
        ),
    ): "deepseek-llm",
    Rule(covering(r"\p{N}"), (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CHINESE)): "deepseek-coder",
    Rule(
        covering(_DEEPSEEK_V3), (r"\p{N}{1,3}", "[一-龥\u3040-\u309f\u30a0-ヿ]+")
    ): "deepseek-v3 hunyuan-dense joyai-llm",
    Rule(_BLOOM): "bloom poro-chat gpt3-finnish",
    Rule(covering(r"\p{N}"), (_BLOOM,)): "viking",
    Rule(covering(_CASED.replace("{0}", "").replace("{1}", "")), ignore_merges=True, add_bos=True): "tekken",
    Rule(
        covering(_CASED.replace("{0}", f"{_ENDINGS}?").replace("{1}", "{1,3}"))
    ): "gpt-4o llama4 kanana2 talkie minimax-m2",
    Rule(covering(PATTERN.replace(r"\p{N}{1,3}", r"\p{N}+")), (r"\p{N}{1,3}",), ignore_merges=True): "minicpm5",
    Rule(
        covering(rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}")
    ): "seed-coder",
    Rule(covering(QWEN2_PATTERN.replace(r"\s*[\r\n]+", r"\s*[\r\n]"))): "bailingmoe bailingmoe2 llada-moe",
    Rule(covering(QWEN2_PATTERN[QWEN2_PATTERN.index(r"[^\r\n") :])): "ufakzeka",
}
# By `tokenizer.ggml.pre`; of several names for a rule a file that is written gets the first.
RULES = {name: rule for rule, names in _ALIKE.items() for name in names.split()}


def rule_name(tokenizer: Tokenizer) -> str:
    """GGUF's name for a tokenizer's rule, UsageError where llama.cpp has none."""
    for name, rule in RULES.items():
        if (rule.pattern, list(rule.splits)) == (tokenizer.pattern, tokenizer.splits):
            return name
    shown = ", then ".join(map(repr, [*tokenizer.splits, tokenizer.pattern]))
    raise UsageError(f"llama.cpp splits text as one of {', '.join(RULES)}, not by {shown}")


def read_rule(pre: Any, path: Path) -> Rule:
    """The rule of a `pre_tokenizer`; FileError, naming the part, where there is none that cuts alike."""
    *steps, last = _flat(pre) or [None]
    match last:
        case {"type": "ByteLevel", "add_prefix_space": True}:
            _refuse(path, "pre_tokenizer ByteLevel with add_prefix_space", "ByteLevel without")
        case {"type": "ByteLevel", **rest}:
            cuts = [_cut(step, pre, path) for step in steps]
            patterns = [cut for cut in cuts if isinstance(cut, str)]
            patterns += [GPT2_PATTERN] if rest.get("use_regex", True) else []
        case _:
            _refuse(path, f"pre_tokenizer {kind(pre)}", "one that ends with ByteLevel")
    match cuts:
        case [(pattern,)] if not patterns:
            return Rule(pattern)  # what lies between its matches is dropped
    if any(isinstance(cut, tuple) for cut in cuts):
        _refuse(path, "pre_tokenizer Split that removes text beside another one", "one that isolates")
    match patterns:
        case []:
            return Rule(_WHOLE)  # all of the text is one piece
        case [r"\p{N}", pattern] if pattern == GPT2_PATTERN:
            return Rule(SMOLLM_PATTERN)
    *splits, pattern = patterns
    return Rule(covering(pattern), tuple(splits))


def _flat(pre: Any) -> list[Any]:
    """The steps of a pre_tokenizer, those of a Sequence one by one."""
    match pre:
        case {"type": "Sequence", "pretokenizers": [*steps]}:
            return [inner for step in steps for inner in _flat(step)]
    return [pre]


def _cut(step: Any, pre: Any, path: Path) -> str | tuple[str]:
    """The pattern whose matches a step sets apart; in a tuple if it removes what lies between them."""
    match step:
        case {"type": "Digits", **rest}:
            return r"\p{N}" if rest.get("individual_digits") else r"\p{N}+"
        case {"type": "Punctuation", **rest} if rest.get("behavior", "Isolated") == "Isolated":
            return r"[!-/:-@\[-`{-\~\p{P}]"
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated" | "Removed" as behavior}:
            pattern = _translated(pattern, path)
        case {"type": "Split", "pattern": {"String": str(words)}, "behavior": "Isolated" | "Removed" as behavior} if (
            words
        ):
            pattern = _translated(re.sub(r"[^\w\s]", r"\\\g<0>", words, flags=re.ASCII), path)
        case _:
            _refuse(
                path,
                f"pre_tokenizer {kind(pre)}" + (f" with behavior {step['behavior']}" if _has_behavior(step) else ""),
                "Split by a regex that isolates, Digits or Punctuation, and ByteLevel at the end",
            )
    if behavior == "Isolated":
        return pattern
    if step.get("invert") is True:
        return (pattern,)
    _refuse(path, "pre_tokenizer Split with behavior Removed", "one that keeps the text")


def _has_behavior(step: Any) -> bool:
    return isinstance(step, dict) and isinstance(step.get("behavior"), str)


def _translated(pattern: str, path: Path) -> str:
    if pattern in _COVERING:
        return pattern
    try:
        return translate(pattern)[0]
    except ValueError as error:
        raise FileError(
            f"{path}: the split pattern {pattern!r} has {error}, which can't be carried over; "
            "use a tokenizer.json whose pattern has none"
        ) from error


def rule_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """The `pre_tokenizer` of a tokenizer's rule; UsageError where `tokenizers` would read a pattern otherwise."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    patterns = [*tokenizer.splits, tokenizer.pattern]
    first: list[dict[str, Any]] = []
    if tokenizer.pattern == SMOLLM_PATTERN:
        patterns[-1:] = [r"\p{N}", GPT2_PATTERN]
    if patterns[-1] == GPT2_PATTERN:
        patterns, byte_level = patterns[:-1], {**byte_level, "use_regex": True}
    for pattern in patterns:
        if pattern == r"\p{N}":
            first.append({"type": "Digits", "individual_digits": True})
            continue
        _check_alike(pattern)
        first.append({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False})
    return {"type": "Sequence", "pretokenizers": [*first, byte_level]}


def _check_alike(pattern: str) -> None:
    try:
        differing = [] if pattern in _COVERING else translate(pattern)[1]
    except ValueError as error:
        differing = [str(error)]
    if differing:
        raise UsageError(
            f"the split pattern {pattern!r} has {differing[0]}, which Hugging Face's tokenizers would read otherwise"
        )


def kind(part: Any) -> str:
    """A component's type, with those that a Sequence is made of."""
    if not isinstance(part, dict):
        return repr(part)
    inner = next((value for value in part.values() if isinstance(value, list)), None)
    name = str(part.get("type"))
    return f"{name}[{', '.join(map(kind, inner))}]" if name == "Sequence" and inner else name


def _refuse(path: Path, got: str, wanted: str) -> NoReturn:
    raise FileError(f"{path}: {got} can't be carried over, expected {wanted}; only byte-level BPE can be read")
