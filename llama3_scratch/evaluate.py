"""Measure how good a model is: perplexity and bits per byte, multiple choice, and distance from another model."""

from __future__ import annotations

import argparse
import itertools
import logging
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama3_scratch.errors import FileError, Llama3Error, UsageError
from llama3_scratch.inference.choices import QUANTIZED
from llama3_scratch.system import cli, stdio
from llama3_scratch.terminal.flags import add_adapter_flag
from llama3_scratch.text.detokenizer import visible

if TYPE_CHECKING:
    from llama3_scratch.checkpoint.load import Checkpoint

log = logging.getLogger("llama3_scratch")

_BATCH = 16  # prompts answered at once


def _parser() -> cli.Parser:
    parser = cli.Parser("evaluate", __doc__ or "")
    count = cli.number(int, least=1)
    parser.add_argument("model", metavar="MODEL", help="a folder, a .gguf or .bin file, or a downloaded name")
    parser.add_argument("--text", type=Path, metavar="FILE", help="perplexity and bits per byte of a text")
    parser.add_argument("--tokens", type=count, metavar="N", help="of --text, the first N (all)")
    parser.add_argument(
        "--window", type=cli.number(int, least=2), metavar="N", help="tokens read at once (512, or the model's context)"
    )
    parser.add_argument("--stride", type=count, metavar="N", help="tokens between windows (one less than they hold)")
    parser.add_argument(
        "--choices", type=Path, metavar="FILE.jsonl", help='questions: {"query", "choices": […], "gold": index} a line'
    )
    parser.add_argument("--limit", type=count, metavar="N", help="of --choices or --instructions, the first N (all)")
    parser.add_argument("--samples", type=Path, metavar="FILE", help="greedy answers to its lines, side by side")
    parser.add_argument(
        "--instructions", type=Path, metavar="FILE", help="conversations: their last answers and the model's own"
    )
    parser.add_argument("--judge", metavar="URL", help="an OpenAI-compatible endpoint that marks these, 0 to 100")
    parser.add_argument("--judge-model", metavar="NAME", help="the model there (key: OPENAI_API_KEY)")
    parser.add_argument("--max-tokens", type=count, default=60, metavar="N", help="of an answer (%(default)s)")
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--against", metavar="MODEL", help="another model with the same tokens, held against on --text")
    add_adapter_flag(other, "held against the model without")
    other.add_argument("--quantize", choices=QUANTIZED, metavar="FORM", help="the same in a quantised form")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    return parser


@cli.verb(_parser)
def main(options: argparse.Namespace) -> int:
    if not (options.text or options.choices or options.samples or options.instructions):
        raise UsageError("nothing to evaluate on; give --text, --choices, --samples or --instructions")
    two = options.against or options.quantize or options.adapters
    if two and not (options.text or options.samples or options.instructions):
        raise UsageError("two models are held against each other on --text, --samples or --instructions; give one")
    if bool(options.judge) != bool(options.judge_model) or (options.judge and options.instructions is None):
        raise UsageError("a judge marks the answers to --instructions; give these, --judge and --judge-model together")
    from llama3_scratch.checkpoint.load import load
    from llama3_scratch.data.documents import require_text

    for path in (options.text, options.choices, options.samples, options.instructions):
        if path is not None:  # before a large model is read
            require_text(path)
    checkpoint = load(options.model, needs_tokenizer=True)
    other = _other(checkpoint, options)
    found: dict[str, Any] = {"model": options.model}
    failed: Llama3Error | None = None
    if options.text is not None:
        found |= _on_text(checkpoint, other, options)
    models = {options.model: checkpoint} | ({_other_name(options): other} if other is not None else {})
    if options.choices is not None:
        found["choices"] = _on_choices(checkpoint, options)
    if options.samples is not None:
        found |= _samples(models, options)
    if options.instructions is not None:
        found["instructions"], failed = _instructions(models, options)
    if options.json:
        stdio.print_json(found, indent=2)
    else:
        _print_table(found)
    if failed is not None:
        raise failed
    return 0


def _other(checkpoint: Checkpoint, options: argparse.Namespace) -> Checkpoint | None:
    from dataclasses import replace

    from llama3_scratch.checkpoint.load import load
    from llama3_scratch.checkpoint.peft import add_adapters
    from llama3_scratch.params.quantize import quantize

    if options.quantize:
        return replace(checkpoint, params=quantize(checkpoint.params, options.quantize))
    if options.adapters:
        return add_adapters(checkpoint, options.adapters)
    if options.against is None:
        return None
    other = load(options.against)
    ours, its = checkpoint.tokenizer, other.tokenizer
    if ours is None or its is None or (ours.ranks, ours.added_tokens) != (its.ranks, its.added_tokens):
        raise UsageError(
            f"--against {options.against}: has other tokens than {options.model}, so they can't be compared"
        )
    return other


def _other_name(options: argparse.Namespace) -> str:
    if options.adapters:
        return f"{options.model} with {', '.join(map(str, options.adapters))}"
    return options.against or f"{options.model} in {options.quantize}"


def _on_text(checkpoint: Checkpoint, other: Checkpoint | None, options: argparse.Namespace) -> dict[str, Any]:
    import torch

    from llama3_scratch.data.documents import placed
    from llama3_scratch.evaluation.scoring import estimate, kl_divergence, log_probabilities, surprisal, windows
    from llama3_scratch.system.files import read_text
    from llama3_scratch.system.timings import remaining

    tokenizer = checkpoint.require_tokenizer()
    text = read_text(options.text, "a text in UTF-8")
    if options.text.suffix in (".json", ".jsonl"):
        log.warning("%s: measured as it stands, the syntax of JSON included; give the text alone", options.text)
    with placed(str(options.text)):
        ids = tokenizer.encode(text, bos=False, eos=False)[: options.tokens]
    context = min(one.config.max_seq_len for one in (checkpoint, other) if one is not None)
    length = options.window or min(512, context)
    if length > context:
        raise UsageError(f"--window {length}: the model was trained for {context} tokens")
    first = tokenizer.bos_id if tokenizer.add_bos else None
    cut = list(windows(ids, length=length, stride=options.stride or length - 1, first=first))
    if not cut:
        raise UsageError(f"{options.text}: {len(ids)} tokens, too few to predict one")
    seen, divergences, same, theirs = [], [], [], []
    begun = time.perf_counter()
    for number, window in enumerate(cut, start=1):
        one_TV = log_probabilities(window.ids, checkpoint.params, checkpoint.config)
        seen.append(surprisal(window, one_TV, tokenizer))
        if other is not None:
            other_TV = log_probabilities(window.ids, other.params, other.config)
            theirs.append(surprisal(window, other_TV, tokenizer))
            distance = kl_divergence(window, one_TV, other_TV)
            divergences.append(distance.divergence_T)
            same.append(distance.same_T.double().mean().item())
        if number % 10 == 0:
            log.info("window %d of %d · %s", number, len(cut), remaining(begun, number, len(cut)))
    policy = f"windows of {length} tokens, {options.stride or length - 1} apart, " + (
        "each behind a begin token" if first is not None else "without a begin token"
    )
    found = {"text": {"file": str(options.text), "policy": policy, "windows": len(cut)} | _summed(seen)}
    if other is not None:
        all_T = torch.cat(divergences)
        weights = [window.scored for window in cut]
        means = estimate([divergence_T.mean().item() for divergence_T in divergences], weights)
        agreement = estimate(same, weights)
        found["against"] = {
            "model": _other_name(options),
            **_summed(theirs),
            "kl": means.mean,
            "kl_error": means.error,
            "kl_median": all_T.median().item(),
            "kl_99": all_T.quantile(0.99).item(),
            "top1": agreement.mean,
            "top1_error": agreement.error,
        }
    return found


def _summed(seen: list[Any]) -> dict[str, Any]:
    from llama3_scratch.evaluation.scoring import estimate

    tokens, n_bytes = sum(one.tokens for one in seen), sum(one.bytes for one in seen)
    nats = estimate([one.nats / one.tokens for one in seen], [one.tokens for one in seen])
    bits = estimate([one.nats / math.log(2) / one.bytes for one in seen], [one.bytes for one in seen])
    return {
        "tokens": tokens,
        "bytes": n_bytes,
        "perplexity": math.exp(min(700.0, nats.mean)),
        "perplexity_error": math.exp(min(700.0, nats.mean)) * nats.error,
        "bits_per_byte": bits.mean,
        "bits_per_byte_error": bits.error,
    }


def _questions(path: Path) -> Iterator[tuple[str, str, list[str], int]]:
    """Place, query, choices and the right one's index."""
    from llama3_scratch.data.documents import rows

    for number, row in rows(path):
        place = f"{path}:{number}"
        query, choices, gold = row.get("query"), row.get("choices"), row.get("gold")
        if (
            not isinstance(query, str)
            or not isinstance(choices, list)
            or len(choices) < 2
            or not all(isinstance(choice, str) for choice in choices)
        ):
            raise FileError(f"{place}: expected a text under query and at least two under choices")
        if "" in choices:
            raise FileError(f"{place}: choice {choices.index('')} is empty, so nothing of it could be predicted")
        if not isinstance(gold, int) or isinstance(gold, bool) or not 0 <= gold < len(choices):
            raise FileError(f"{place}: gold must be the index of a choice, 0 to {len(choices) - 1}, got {gold!r}")
        yield place, query, choices, gold


def _on_choices(checkpoint: Checkpoint, options: argparse.Namespace) -> dict[str, Any]:
    from llama3_scratch.data.documents import placed
    from llama3_scratch.evaluation.scoring import Asked, TooLongError, ask, choose, estimate
    from llama3_scratch.system.timings import remaining

    tokenizer, context = checkpoint.require_tokenizer(), checkpoint.config.max_seq_len
    questions: list[tuple[Asked, int]] = []  # all of them first: a mistake in the last line is told at once
    left_out = 0
    for place, query, choices, gold in itertools.islice(_questions(options.choices), options.limit):
        try:
            with placed(place):
                questions.append((ask(f"{query}\nAnswer:", choices, tokenizer, context), gold))
        except TooLongError as error:
            left_out += 1
            log.warning("%s: %s; the question is left out", place, error)
    if not questions:
        raise FileError(f"{options.choices}: no question is left to ask")
    plain: list[float] = []
    by_byte: list[float] = []
    begun = time.perf_counter()
    for number, (asked, gold) in enumerate(questions, start=1):
        chosen = choose(asked, checkpoint.params, checkpoint.config)
        plain.append(float(chosen.plain == gold))
        by_byte.append(float(chosen.by_byte == gold))
        if number % 50 == 0:
            left = remaining(begun, number, len(questions))
            log.info("question %d of %d: %.3f right so far · %s", number, len(questions), sum(plain) / number, left)
    right, right_by_byte = estimate(plain), estimate(by_byte)
    return {
        "file": str(options.choices),
        "questions": len(plain),
        "cut": sum(asked.cut > 0 for asked, _ in questions),
        "left_out": left_out,
        "accuracy": right.mean,
        "accuracy_error": right.error,
        "accuracy_by_byte": right_by_byte.mean,
        "accuracy_by_byte_error": right_by_byte.error,
    }


def _samples(models: dict[str, Checkpoint], options: argparse.Namespace) -> dict[str, Any]:
    """Each line of a file as a prompt, and what each model says to it; one that doesn't chat goes on with the text."""
    from llama3_scratch.data.documents import lines

    prompts = {f"{options.samples}:{number}": line for number, line in lines(options.samples) if line.strip()}
    if not prompts:
        raise FileError(f"{options.samples}: expected a prompt a line, found empty lines only")
    dialogs = {place: [{"role": "user", "content": prompt}] for place, prompt in prompts.items()}
    samples: list[dict[str, Any]] = [{"prompt": prompt} for prompt in prompts.values()]
    cut = {name: _answer(name, dialogs, samples, checkpoint, options) for name, checkpoint in models.items()}
    return {"samples": samples, "samples_cut": cut}


def _instructions(
    models: dict[str, Checkpoint], options: argparse.Namespace
) -> tuple[dict[str, Any], Llama3Error | None]:
    """Conversations, of each its last answer and the models' own, with the marks that a judge gives them, and why it
    gives no more: the answers, which took their time, aren't lost with it."""
    from llama3_scratch.data.conversations import read_conversations
    from llama3_scratch.evaluation.judge import Judge, RefusedError
    from llama3_scratch.evaluation.scoring import estimate

    judge = Judge(options.judge, options.judge_model, os.environ.get("OPENAI_API_KEY")) if options.judge else None
    rows: list[dict[str, Any]] = []
    asked: dict[str, list[Any]] = {}
    for number, conversation in enumerate(read_conversations(options.instructions)[: options.limit], start=1):
        last = max(i for i, message in enumerate(conversation) if message["role"] == "assistant")
        asked[f"{options.instructions}, conversation {number}"] = conversation[:last]
        task = "\n\n".join(str(message["content"]) for message in conversation[:last])
        rows.append({"prompt": task, "reference": conversation[last]["content"]})
    found: dict[str, Any] = {"file": str(options.instructions), "rows": rows}
    found["cut"] = {name: _answer(name, asked, rows, checkpoint, options) for name, checkpoint in models.items()}
    failed: Llama3Error | None = None
    for name in models if judge is not None else ():
        assert judge is not None
        refused: RefusedError | None = None
        try:
            for place, row in zip(asked, rows, strict=True) if failed is None else ():
                try:
                    row[f"mark of {name}"] = judge.mark(row["prompt"], row["reference"], row[name])
                except RefusedError as error:
                    log.warning("%s: no mark: %s", place, error)
                    refused = error
        except Llama3Error as error:
            failed = error
        marks = [float(row[f"mark of {name}"]) for row in rows if row.get(f"mark of {name}") is not None]
        means = estimate(marks) if marks else None
        failed = failed or (None if marks else refused)
        found.setdefault("marks", {})[name] = {
            "judge": judge.model,
            "marked": len(marks),
            "mean": means.mean if means else None,
            "error": means.error if means else None,
        }
    return found, failed


def _answer(
    name: str,
    dialogs: dict[str, list[Any]],
    rows: list[dict[str, Any]],
    checkpoint: Checkpoint,
    options: argparse.Namespace,
) -> int:
    """Put the model's answer to each dialog, which its place names, into its row; how many prompts had to be cut.

    As lm-evaluation-harness does it: what leaves no room for --max-tokens in the context is cut from the left.
    """
    from llama3_scratch.data.documents import placed
    from llama3_scratch.inference.answers import answers
    from llama3_scratch.system.timings import remaining
    from llama3_scratch.text.dialog import encode_dialog

    tokenizer = checkpoint.require_tokenizer()
    room = checkpoint.config.max_seq_len - options.max_tokens
    if room < 1:
        raise UsageError(
            f"--max-tokens {options.max_tokens}: leaves no room for a prompt in the {checkpoint.config.max_seq_len} "
            f"tokens of {name}'s context; lower it"
        )
    asked = []
    for place, dialog in dialogs.items():
        with placed(place):
            if tokenizer.chat_format is None:
                asked.append(tokenizer.encode(dialog[-1]["content"], bos=tokenizer.add_bos, eos=False))
            else:
                asked.append(encode_dialog(dialog, tokenizer))
    said: list[str] = []
    begun = time.perf_counter()
    for first in range(0, len(asked), _BATCH):
        part = answers(
            [ids[-room:] for ids in asked[first : first + _BATCH]], checkpoint, max_tokens=options.max_tokens
        )
        said += [answer.text.strip() for answer in part]
        log.info("%s: %d of %d answers · %s", name, len(said), len(asked), remaining(begun, len(said), len(asked)))
    for row, text in zip(rows, said, strict=True):
        row[name] = text
    return sum(len(ids) > room for ids in asked)


def _error(value: float, form: str) -> str:
    """A standard error as the table shows it; a single window or question has none."""
    return "–" if math.isnan(value) else format(value, form)


def _print_table(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", "", "± standard error", box=None, pad_edge=False)
    for key, label in (("text", found["model"]), ("against", found.get("against", {}).get("model", ""))):
        if key in found:
            one = found[key]
            label = Path(label).name
            table.add_row(f"perplexity, {label}", f"{one['perplexity']:.4g}", _error(one["perplexity_error"], ".2g"))
            table.add_row(
                f"bits per byte, {label}", f"{one['bits_per_byte']:.4f}", _error(one["bits_per_byte_error"], ".2g")
            )
    if "against" in found:
        one = found["against"]
        table.add_row("KL divergence, nats", f"{one['kl']:.3g}", _error(one["kl_error"], ".2g"))
        table.add_row("  median, 99 %", f"{one['kl_median']:.3g}, {one['kl_99']:.3g}")
        table.add_row("same likeliest token", f"{one['top1']:.2%}", _error(one["top1_error"], ".2%"))
    if "choices" in found:
        one = found["choices"]
        table.add_row("right answers", f"{one['accuracy']:.2%}", _error(one["accuracy_error"], ".2%"))
        table.add_row(
            "  by log p a byte", f"{one['accuracy_by_byte']:.2%}", _error(one["accuracy_by_byte_error"], ".2%")
        )
    for name, one in found.get("instructions", {}).get("marks", {}).items():
        if one["mean"] is None:
            table.add_row(f"mark, {name}", "none given", "")
        else:
            table.add_row(f"mark of {one['marked']}, {name}", f"{one['mean']:.1f}", _error(one["error"], ".2g"))
    console = Console(markup=False, highlight=False)
    for sample in [*found.get("samples", []), *found.get("instructions", {}).get("rows", [])]:
        for name, text in sample.items():
            shown = visible(text) if console.is_terminal and isinstance(text, str) else text
            console.print(f"{name}: {shown}", soft_wrap=True)
        console.print()
    if table.row_count:
        console.print(table)
    if "text" in found:
        one = found["text"]
        console.print(
            f"{one['tokens']:,} tokens, {one['bytes']:,} bytes of {one['file']}: {one['policy']}", soft_wrap=True
        )
    if "choices" in found:
        one = found["choices"]
        left_out = f", {one['left_out']} more left out: a choice alone is longer" if one["left_out"] else ""
        cut = f", {one['cut']} cut from the left to the model's context" if one["cut"] else ""
        console.print(f"{one['questions']} questions of {one['file']}{cut}{left_out}", soft_wrap=True)
    for cut_of in (found.get("samples_cut", {}), found.get("instructions", {}).get("cut", {})):
        for name, count in cut_of.items():
            if count:
                console.print(f"{count} prompts cut from the left to the context of {name}", soft_wrap=True)


if __name__ == "__main__":
    raise SystemExit(main())
