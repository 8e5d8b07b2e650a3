"""The options of the verbs that run a model, and the model that they mean."""

from __future__ import annotations

import argparse
import logging
import random
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama3_scratch.errors import FileError, ResourceError, UsageError
from llama3_scratch.system import cli

if TYPE_CHECKING:
    import torch

    from llama3_scratch.cache import Cache, Keep
    from llama3_scratch.checkpoint.load import Checkpoint
    from llama3_scratch.config import Config
    from llama3_scratch.inference.sample import Sampler
    from llama3_scratch.inference.speculate import NoDrafts
    from llama3_scratch.stored import Params

log = logging.getLogger("llama3_scratch")

DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")

# Those of `quantize`, told without torch, which takes seconds to import; a test compares them.
QUANTIZED = ("int8-row", "int8", "int4", "int4-sym", "nf4")
REPEAT_LAST_N = 64  # of `sample`, likewise

_STORIES = (
    "the storyteller that comes with the code continues stories and doesn't chat: python -m llama3_scratch.generate"
)


def add_reading_options(group: argparse._ActionsContainer) -> None:
    """What `read` takes: for files that leave something unsaid or say more than a Llama has."""
    group.add_argument("--rope-scale-factor", type=cli.number(float, above=0), metavar="X", help="override Llama 3.1's")
    group.add_argument("--allow-extra", action="store_true", help="ignore tensors that aren't part of a Llama")
    group.add_argument(
        "--chat-format",
        choices=("llama3", "chatml", "template"),
        help="lay chats out so, whatever the files say; template: by the one among them, which is taken by itself "
        "where it differs from the others",
    )


def add_model_options(parser: cli.Parser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        metavar="PATH|NAME",
        help="Meta's or Hugging Face's folder, a .gguf or .bin file, or a downloaded name; "
        "SmolLM2-135M-Instruct, fetched at first use, unless given",
    )
    add_device_options(group)
    group.add_argument(
        "--quantize",
        choices=QUANTIZED,
        help="round float weights to this form when they're read; embedding and head are int8. "
        "`convert --quantize` writes a folder that opens at once",
    )
    add_adapter_option(group, "merged when it's read, or beside weights in integers")
    group.add_argument(
        "--max-seq-len", type=cli.number(int, least=2), metavar="N", help="context to use, at most the model's own"
    )
    add_reading_options(group)
    group.add_argument(
        "--date",
        metavar="DATE",
        help="\"26 Jul 2024\": today for a chat template that asks; Meta's own files are then framed as Hugging Face's "
        "template does, which names it",
    )


def add_device_options(group: argparse._ActionsContainer) -> None:
    group.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps … (%(default)s)")
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="of activations and cache; weights stay as stored. auto: float32 on a CPU, else the weights' own",
    )


def add_adapter_option(group: argparse._ActionsContainer, what_becomes: str) -> None:
    group.add_argument(
        "--adapter",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help=f"a LoRA or DoRA adapter as PEFT writes it, {what_becomes}; several add up",
    )


def add_cache_options(parser: cli.Parser) -> None:
    group = parser.add_argument_group("KV cache")
    bits: Any = {"type": int, "choices": (16, 8, 4), "metavar": "BITS"}
    group.add_argument(
        "--kv-bits", **bits, help="keep keys and values in 16 (bf16), 8 or 4 bits a number; else as --dtype has them"
    )
    group.add_argument("--kv-k-bits", **bits, help="the keys in other bits than the values")
    group.add_argument("--kv-v-bits", **bits, help="the values in other bits than the keys")
    group.add_argument(
        "--kv-group-size",
        type=cli.number(int, least=1),
        metavar="N",
        help="of 8 or 4 bits: numbers that share a scale, a divisor of the head's width (32 where that is one)",
    )


def add_sliding_options(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--sliding",
        type=cli.number(int, least=1),
        metavar="N",
        help="go on where the context is full: forget all but its beginning and its last N tokens",
    )
    group.add_argument(
        "--sinks",
        type=cli.number(int, least=0),
        metavar="N",
        help="with --sliding: tokens of the beginning that stay, on which heads rest that look for nothing (4)",
    )


def check_sliding(options: argparse.Namespace) -> None:
    if options.sinks is not None and not options.sliding:
        raise UsageError("--sinks goes with --sliding")


def make_cache(options: argparse.Namespace, config: Config, rows: int = 1) -> Cache:
    """The cache that the options mean, for `rows` prompts at once."""
    from llama3_scratch.cache import Cache, Kept, RaggedCache
    from llama3_scratch.caches.quantized import KEPT_IN_BITS, group_size
    from llama3_scratch.caches.sliding import SlidingCache

    chosen = [bits or options.kv_bits for bits in (options.kv_k_bits, options.kv_v_bits)]
    group = options.kv_group_size
    if group is not None and not {4, 8} & set(chosen):
        raise UsageError(f"--kv-group-size {group}: goes with --kv-bits 8 or 4, which have scales")
    if group is not None and (config.head_dim % group or (4 in chosen and group % 2)):
        even = ", and be even for 4 bits" if 4 in chosen else ""
        raise UsageError(f"--kv-group-size {group}: must divide the head's width, which is {config.head_dim}{even}")

    def form(bits: int | None) -> Keep:
        if bits is None:
            return Kept
        kind = KEPT_IN_BITS[bits]
        return kind if bits == 16 else partial(kind, group=group_size(config.head_dim, group))

    limit = options.max_seq_len or config.max_seq_len
    keys, values = map(form, chosen)
    if getattr(options, "sliding", None):
        sinks = 4 if options.sinks is None else options.sinks
        return SlidingCache(limit, config, window=options.sliding, sinks=sinks, keys=keys, values=values)
    if rows == 1:
        return Cache(limit, keys=keys, values=values)
    return RaggedCache(limit, rows, keys=keys, values=values)


def add_sampling_options(parser: cli.Parser, *, temperature: float, top_p: float) -> None:
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--temperature",
        type=cli.number(float, least=0),
        default=temperature,
        metavar="X",
        help="0 takes the likeliest token (%(default)s)",
    )
    group.add_argument(
        "--top-p",
        type=cli.number(float, above=0, most=1),
        default=top_p,
        metavar="X",
        help="keep the likeliest tokens that hold this much probability (%(default)s)",
    )
    group.add_argument(
        "--top-k", type=cli.number(int, least=0), default=0, metavar="N", help="keep the N likeliest tokens, 0: all"
    )
    group.add_argument(
        "--min-p",
        type=cli.number(float, least=0, most=1),
        default=0.0,
        metavar="X",
        help="keep tokens at least X as likely as the likeliest (%(default)s)",
    )
    group.add_argument(
        "--repeat-penalty",
        type=cli.number(float, above=0),
        default=1.0,
        metavar="X",
        help="above 1 makes tokens seen lately less likely (%(default)s)",
    )
    group.add_argument(
        "--repeat-last-n",
        type=cli.number(int, least=-1),
        default=REPEAT_LAST_N,
        metavar="N",
        help="with --repeat-penalty: how many of the last tokens count, 0: none, -1: all (%(default)s)",
    )
    group.add_argument(
        "--seed", type=cli.number(int, least=-1, most=2**64 - 1), default=-1, metavar="N", help="-1: a random one"
    )
    group.add_argument(
        "--speculate",
        metavar="lookup|MODEL",
        help="guess tokens ahead and check them in one pass, for the same text sooner: by what followed the last words "
        "before, or by a smaller model with the same tokenizer",
    )
    group.add_argument(
        "--draft-tokens",
        type=cli.number(int, least=1, most=15),
        metavar="N",
        help="with --speculate: guesses at once, at most (8)",
    )
    group.add_argument("--max-tokens", type=cli.number(int, least=1), default=512, metavar="N", help="(%(default)s)")
    group.add_argument(
        "--stop", type=cli.text, action="append", default=[], metavar="TEXT", help="end before this text; repeatable"
    )


def check_sampling(options: argparse.Namespace) -> None:
    """Refuse what argparse can't see, and settle the seed."""
    if options.draft_tokens and not options.speculate:
        raise UsageError("--draft-tokens goes with --speculate")
    if "" in options.stop:
        raise UsageError("--stop: expected some text, got an empty string")
    if options.seed == -1:
        options.seed = random_seed()


def random_seed() -> int:
    return random.SystemRandom().getrandbits(32)


def make_sampler(options: argparse.Namespace) -> Sampler:
    from llama3_scratch.inference.sample import sampler

    return sampler(
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        repeat_penalty=options.repeat_penalty,
        repeat_last_n=options.repeat_last_n,
        seed=options.seed,
    )


def make_drafts(options: argparse.Namespace, checkpoint: Checkpoint, dtype: torch.dtype) -> NoDrafts:
    """What --speculate means for an answer of this model."""
    from llama3_scratch.inference import speculate

    if not options.speculate:
        return speculate.NO_DRAFTS
    most = options.draft_tokens or speculate.MAX_DRAFT_TOKENS
    if options.speculate == "lookup":
        return speculate.Drafts(speculate.lookup, most=most)
    draft = read(options.speculate, options, device=options.device)
    ours, its = checkpoint.tokenizer, draft.tokenizer
    if ours is None or its is None or not ours.same_tokens(its):
        raise UsageError(f"--speculate {options.speculate}: its tokenizer isn't that of {checkpoint.path}")
    if draft.config.vocab_size != checkpoint.config.vocab_size:
        sizes = f"{draft.config.vocab_size} tokens, {checkpoint.path} {checkpoint.config.vocab_size}"
        raise UsageError(f"--speculate {options.speculate}: its vocabulary has {sizes}")
    return speculate.Drafts(speculate.DraftModel(draft.params, draft.config, dtype=dtype), most=most)


def check_device(name: str) -> torch.device:
    """The torch device of that name, UsageError where there is none."""
    import torch

    there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        there.append("mps")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # "meta" has no numbers
    except (RuntimeError, AssertionError):  # torch built without CUDA asserts
        raise UsageError(f"--device {name}: not on this machine, which has {', '.join(there)}") from None
    return device


def read(
    path_or_name: str | Path,
    options: argparse.Namespace,
    *,
    device: torch.device | str = "cpu",
    blocks: str = "floats",
    needs_tokenizer: bool = False,
) -> Checkpoint:
    """`load` by the options of `add_reading_options`."""
    from llama3_scratch.checkpoint.load import load

    checkpoint = load(
        path_or_name,
        device=device,
        rope_scale_factor=options.rope_scale_factor,
        allow_extra=options.allow_extra,
        blocks=blocks,
        needs_tokenizer=needs_tokenizer,
    )
    if options.chat_format and checkpoint.tokenizer is not None:
        checkpoint.tokenizer.set_chat_format(options.chat_format)
    return checkpoint


def model_options(*arguments: str) -> argparse.Namespace:
    """The options that `add_model_options` gives a verb, of these arguments."""
    parser = cli.Parser("generate", "")
    add_model_options(parser)
    return parser.parse_args(arguments)


def find_model(options: argparse.Namespace, *, as_floats: bool = False, chats: bool = False) -> tuple[Path, str]:
    """Where the model lies that the options mean, fetched first if it's the default one, and as what its blocks are
    read: "stored" or "floats".

    With `chats`, UsageError for a model that only completes text.

    Blocks of a GGUF file, and so the default model, stay as they're stored where the kernels multiply by them; a trace
    looks at floats, and adapters are merged into floats.
    """
    from llama3_scratch.checkpoint.names import DEFAULT, resolve, storyteller

    # Before torch, which takes seconds to import: a misspelt name is told at once.
    path = resolve(options.model) if options.model not in (None, DEFAULT) else None
    if chats and path is not None and path == storyteller():
        raise UsageError(f"--model {options.model}: {_STORIES}; leave --model out to chat with {DEFAULT}")
    from llama3_scratch.download import download, stored_blocks
    from llama3_scratch.native import kernels

    device = check_device(options.device)
    in_kernels = kernels.chosen() is not None and device.type == "cpu" and options.dtype in ("auto", "float32")
    as_floats = bool(as_floats or options.quantize or options.adapter)
    blocks = "stored" if in_kernels and not as_floats else "floats"
    if path is None:
        try:
            path = stored_blocks() if options.model is None and blocks == "stored" else download(DEFAULT)
        except (FileError, ResourceError) as error:
            path = storyteller() if options.model is None else None
            if path is None:
                raise
            if chats:
                raise type(error)(
                    f"{error}; what fetches it is python -m llama3_scratch.download {DEFAULT}, and {_STORIES}"
                ) from error
            log.warning("%s; instead, the storyteller that comes with the code goes on with the text", error)
    return path, blocks


def open_model(
    options: argparse.Namespace, *, as_floats: bool = False, chats: bool = False, needs_tokenizer: bool = True
) -> tuple[Checkpoint, torch.dtype]:
    """The model that the options mean, found by `find_model`, and its activations' dtype."""
    path, blocks = find_model(options, as_floats=as_floats, chats=chats)
    import torch

    from llama3_scratch.checkpoint.fingerprint import Origin

    origin = Origin.now([path, *options.adapter], f"{blocks}, {options.quantize or 'as stored'}")
    checkpoint = read(
        path, options, device=torch.device(options.device), blocks=blocks, needs_tokenizer=needs_tokenizer
    )
    if chats and checkpoint.tokenizer is not None and checkpoint.tokenizer.chat_format is None:
        raise UsageError(
            f"{checkpoint.path}: a base model, which completes text but doesn't chat; take an instruct model, "
            "or say --chat-format if it is one"
        )
    if options.quantize:
        from llama3_scratch.params.quantize import quantize

        checkpoint = replace(checkpoint, params=quantize(checkpoint.params, options.quantize))
    if options.adapter:
        checkpoint = _adapted(checkpoint, options.adapter)
    checkpoint = replace(checkpoint, origin=origin.of(checkpoint.params))
    if options.max_seq_len and options.max_seq_len > checkpoint.config.max_seq_len:
        raise UsageError(
            f"--max-seq-len {options.max_seq_len}: this model was trained for {checkpoint.config.max_seq_len} tokens"
        )
    return checkpoint, activations_dtype(options, checkpoint.params)


def activations_dtype(options: argparse.Namespace, params: Params) -> torch.dtype:
    """What --dtype means for these weights, with a warning where the processor has to do more for it."""
    import torch

    dtype = getattr(torch, options.dtype) if options.dtype != "auto" else activations(params)
    if params["norm.weight"].device.type == "cpu" and dtype in (torch.bfloat16, torch.float16):
        from llama3_scratch.linear import multiplies

        if not multiplies(dtype, "cpu"):
            log.warning("this CPU doesn't multiply in %s: sums run in float32, results are rounded", options.dtype)
    return dtype


def activations(params: Params) -> torch.dtype:
    """The activations' dtype unless another is asked for: float32 on a CPU, else the weights' own."""
    import torch

    own = params["norm.weight"]
    return torch.float32 if own.device.type == "cpu" else own.dtype


def _adapted(checkpoint: Checkpoint, folders: list[Path]) -> Checkpoint:
    """The model with these adapters, merged unless that would cost a weight its form or change a tied embedding."""
    from llama3_scratch.checkpoint.peft import add_adapters
    from llama3_scratch.params.lora import merge, on_tied_head
    from llama3_scratch.stored import quantised

    checkpoint = add_adapters(checkpoint, folders)
    if quantised(checkpoint.params) or on_tied_head(checkpoint.params):
        return checkpoint
    return replace(checkpoint, params=merge(checkpoint.params))
