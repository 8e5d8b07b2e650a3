"""The flags of the choices, and the choices that flags make: a flag means the same with every verb and script.

A flag's `dest` is the choice's field, its default and bounds are that field's, and where an error names the field in
backquotes, `cli.in_flags` says the flag.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from llama3_scratch.inference.choices import (
    CHAT_FORMATS,
    DTYPES,
    KV_BITS,
    MAX_TOKENS,
    QUANTIZED,
    SINKS,
    CacheChoice,
    DraftChoice,
    ModelChoice,
    PromptChoice,
    SamplingChoice,
)
from llama3_scratch.system import cli
from llama3_scratch.system.fields import takes, updated


def model_choice(options: argparse.Namespace) -> ModelChoice:
    return updated(ModelChoice(), vars(options))


def cache_choice(options: argparse.Namespace) -> CacheChoice:
    return updated(CacheChoice(), vars(options))


def draft_choice(options: argparse.Namespace) -> DraftChoice:
    return updated(DraftChoice(), vars(options))


def prompt_choice(options: argparse.Namespace) -> PromptChoice:
    return updated(PromptChoice(), vars(options))


def sampling_choice(options: argparse.Namespace) -> SamplingChoice:
    return updated(SamplingChoice(), vars(options))


def add_model_flags(parser: cli.Parser, *, adapters: bool = True) -> None:
    """All of a ModelChoice, and what else a run of a model asks: --max-seq-len and --date. Without `adapters`, the
    verb has a flag of its own for them."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        metavar="PATH|NAME",
        help="Meta's or Hugging Face's folder, a .gguf or .bin file, or a downloaded name; "
        "SmolLM2-135M-Instruct, fetched at first use, unless given",
    )
    add_device_flags(group)
    add_quantize_flag(group)
    if adapters:
        add_adapter_flag(group, "merged when it's read, or beside weights in integers")
    _add_number(group, CacheChoice, "max_seq_len", metavar="N", help="context to use, at most the model's own")
    add_reading_flags(group)
    add_date_flag(group)


def add_reading_flags(group: cli.Group) -> None:
    """For files that leave something unsaid or say more than a Llama has."""
    _add_number(group, ModelChoice, "rope_scale_factor", metavar="X", help="override Llama 3.1's")
    group.add_argument("--allow-extra", action="store_true", help="ignore tensors that aren't part of a Llama")
    add_chat_format_flag(group)


def add_chat_format_flag(group: cli.Group) -> None:
    group.add_argument(
        "--chat-format",
        choices=CHAT_FORMATS,
        help="lay chats out so, whatever the files say; template: by the one among them, which is taken by itself "
        "where it differs from the others",
    )


def add_date_flag(group: cli.Group) -> None:
    group.add_argument(
        "--date",
        metavar="DATE",
        help='"26 Jul 2024": today for a chat template that asks; Meta\'s own chats are then laid out as Hugging '
        "Face's template does, which names it",
    )


def add_device_flags(group: cli.Group) -> None:
    group.add_argument("--device", default=ModelChoice.device, help="cpu, cuda, cuda:1, mps … (%(default)s)")
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        default=ModelChoice.dtype,
        help="of activations and cache; weights stay as stored. auto: float32 on a CPU, else the weights' own",
    )


def add_quantize_flag(group: cli.Group) -> None:
    group.add_argument(
        "--quantize",
        choices=QUANTIZED,
        help="round float weights to this form when they're read; embedding and head are int8. "
        "`convert --quantize` writes a folder that opens at once",
    )


def add_adapter_flag(group: cli.Group, what_becomes: str) -> None:
    group.add_argument(
        "--adapter",
        dest="adapters",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help=f"a LoRA or DoRA adapter as PEFT writes it, {what_becomes}; several add up",
    )


def add_cache_flags(parser: cli.Parser) -> None:
    group = parser.add_argument_group("KV cache")
    bits: Any = {"type": int, "choices": KV_BITS, "metavar": "BITS"}
    group.add_argument(
        "--kv-bits", **bits, help="keep keys and values in 16 (bf16), 8 or 4 bits a number; else as --dtype has them"
    )
    group.add_argument("--kv-k-bits", **bits, help="the keys in other bits than the values")
    group.add_argument("--kv-v-bits", **bits, help="the values in other bits than the keys")
    _add_number(
        group,
        CacheChoice,
        "kv_group_size",
        metavar="N",
        help="of 8 or 4 bits: numbers that share a scale, a divisor of the head's width (32 where that is one)",
    )


def add_sliding_flags(group: cli.Group) -> None:
    _add_number(
        group,
        CacheChoice,
        "sliding",
        metavar="N",
        help="go on where the context is full: forget all but its beginning and its last N tokens",
    )
    _add_number(
        group,
        CacheChoice,
        "sinks",
        metavar="N",
        help=f"with --sliding: tokens of the beginning that stay, on which heads rest that look for nothing ({SINKS})",
    )


def add_sampling_flags(parser: cli.Parser, defaults: SamplingChoice | None = None) -> None:
    """All of a SamplingChoice and a DraftChoice."""
    group = parser.add_argument_group("sampling")

    def add(name: str, metavar: str, help: str) -> None:
        _add_number(group, SamplingChoice, name, metavar=metavar, help=help, defaults=defaults)

    add("temperature", "X", "0 takes the likeliest token (%(default)s)")
    add("top_p", "X", "keep the likeliest tokens that hold this much probability (%(default)s)")
    add("top_k", "N", "keep the N likeliest tokens, 0: all")
    add("min_p", "X", "keep tokens at least X as likely as the likeliest (%(default)s)")
    add("repeat_penalty", "X", "above 1 makes tokens seen lately less likely (%(default)s)")
    add(
        "repeat_last_n",
        "N",
        "with --repeat-penalty: how many of the last tokens count, 0: none, -1: all (%(default)s)",
    )
    add("presence_penalty", "X", "above 0 makes what the answer has said less likely (%(default)s)")
    add("frequency_penalty", "X", "likewise, for each time that it was said (%(default)s)")
    add("seed", "N", "-1: a random one")
    group.add_argument(
        "--speculate",
        metavar="lookup|MODEL",
        help="draft tokens ahead and check them in one pass, for the same text sooner: by what followed the last words "
        "before, or by a smaller model with the same tokenizer",
    )
    _add_number(
        group, DraftChoice, "draft_tokens", metavar="N", help="with --speculate: draft tokens at once, at most (8)"
    )
    add("max_tokens", "N", f"({MAX_TOKENS})")
    group.add_argument(
        "--stop", type=cli.text, action="append", default=[], metavar="TEXT", help="end before this text; repeatable"
    )


def add_prompt_flags(parser: cli.Parser) -> None:
    """What `terminal.prompts` reads, and all of a PromptChoice but --date."""
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="the prompt; - reads it from stdin")
    parser.add_argument(
        "--prompt", dest="prompts", action="append", default=[], metavar="PROMPT", help="one more prompt; repeatable"
    )
    parser.add_argument("--prompt-file", type=Path, metavar="FILE", help="one more prompt: all of FILE")
    parser.add_argument(
        "--prompts-file",
        type=Path,
        metavar="FILE",
        help='a prompt on each line; in FILE.jsonl each line is {"prompt": TEXT} or {"messages": […]}. Blank lines are '
        "passed over; - reads lines of text from stdin",
    )
    parser.add_argument(
        "--batch",
        type=cli.number(int, minimum=1),
        metavar="N",
        help="prompts at once (16; all of them where a trace is asked for, or with --no-weights)",
    )
    parser.add_argument(
        "--errors", choices=("strict", "replace"), default="strict", help="what to do with bytes that aren't UTF-8"
    )
    add_system_flag(parser)
    parser.add_argument("--raw", action="store_true", help="complete the prompt as it stands, whatever the model")
    parser.add_argument(
        "--raw-special", action="store_true", help="like --raw, and names of special tokens are those tokens"
    )


def add_system_flag(group: cli.Group) -> None:
    group.add_argument("--system", type=cli.text, metavar="TEXT", help="the system message of a chat")


def add_prompt_cache_flag(group: cli.Group, what_is_kept: str) -> None:
    group.add_argument(
        "--prompt-cache",
        type=Path,
        metavar="FILE",
        help=f"begin with what FILE holds of {what_is_kept} to it at the end; the answer is the same but for rounding",
    )


def _add_number(group: cli.Group, kind: type, name: str, *, defaults: Any = None, **how: Any) -> None:
    """The flag of a field of numbers: its default and its bounds."""
    default = getattr(defaults or kind, name)
    group.add_argument(f"--{name.replace('_', '-')}", type=cli.within(takes(kind, name)), default=default, **how)
