"""What models answer: greedy answers side by side, and to instructions beside the answers of a reference, marked by a
judge."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from llama3_scratch.checkpoint.load import Checkpoint
from llama3_scratch.data.conversations import read_conversations
from llama3_scratch.data.documents import lines, placed
from llama3_scratch.errors import FileError, Llama3Error, UsageError
from llama3_scratch.evaluation.judge import Judge, RefusedError
from llama3_scratch.evaluation.scoring import estimate
from llama3_scratch.inference.answers import answers
from llama3_scratch.inference.choices import BATCH_SIZE
from llama3_scratch.system.timings import remaining
from llama3_scratch.text.dialog import encode_dialog

log = logging.getLogger("llama3_scratch")


def on_samples(path: Path, models: dict[str, Checkpoint], *, max_tokens: int) -> dict[str, Any]:
    """Each line of a file as a prompt, and what each model says to it; one that doesn't chat goes on with the text."""
    prompts = {f"{path}:{number}": line for number, line in lines(path) if line.strip()}
    if not prompts:
        raise FileError(f"{path}: expected a prompt a line, found empty lines only")
    dialogs = {place: [{"role": "user", "content": prompt}] for place, prompt in prompts.items()}
    samples: list[dict[str, Any]] = [{"prompt": prompt} for prompt in prompts.values()]
    cut = {name: _answer(name, dialogs, samples, checkpoint, max_tokens) for name, checkpoint in models.items()}
    return {"samples": samples, "samples_cut": cut}


def on_instructions(
    path: Path, models: dict[str, Checkpoint], *, max_tokens: int, limit: int | None = None, judge: Judge | None = None
) -> tuple[dict[str, Any], Llama3Error | None]:
    """Conversations, of each its last answer and the models' own, with the marks that a judge gives them, and why it
    gives no more: the answers, which took their time, aren't lost with it."""
    rows: list[dict[str, Any]] = []
    asked: dict[str, list[Any]] = {}
    for number, conversation in enumerate(read_conversations(path)[:limit], start=1):
        last = max(i for i, message in enumerate(conversation) if message["role"] == "assistant")
        asked[f"{path}, conversation {number}"] = conversation[:last]
        task = "\n\n".join(str(message["content"]) for message in conversation[:last])
        rows.append({"prompt": task, "reference": conversation[last]["content"]})
    found: dict[str, Any] = {"file": str(path), "rows": rows}
    found["cut"] = {name: _answer(name, asked, rows, checkpoint, max_tokens) for name, checkpoint in models.items()}
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
    max_tokens: int,
) -> int:
    """Put the model's answer to each dialog, which its place names, into its row; how many prompts had to be cut.

    As lm-evaluation-harness does it: what leaves no room for `max_tokens` in the context is cut from the left.
    """
    tokenizer = checkpoint.require_tokenizer()
    room = checkpoint.config.max_seq_len - max_tokens
    if room < 1:
        raise UsageError(
            f"`max_tokens` {max_tokens}: leaves no room for a prompt in the {checkpoint.config.max_seq_len} "
            f"tokens of {name}'s context; lower it"
        )
    asked = []
    for place, dialog in dialogs.items():
        with placed(place):
            if tokenizer.chat_format is None:
                asked.append(tokenizer.encode(dialog[-1]["content"], bos=tokenizer.add_bos, eos=False))
            else:
                asked.append(encode_dialog(dialog, tokenizer))
    begun, done = time.perf_counter(), 0

    def count(prompt: int) -> None:
        nonlocal done
        done += 1
        if done % BATCH_SIZE == 0 or done == len(asked):
            log.info("%s: %d of %d answers · %s", name, done, len(asked), remaining(begun, done, len(asked)))

    said = answers([ids[-room:] for ids in asked], checkpoint, max_tokens=max_tokens, on_done=count)
    for row, answer in zip(rows, said, strict=True):
        row[name] = answer.text.strip()
    return sum(len(ids) > room for ids in asked)
