"""How well a model predicts a text: perplexity, bits per byte, and its KL divergence from a reference."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import Any

import torch

from llama3_scratch.checkpoint.load import Checkpoint
from llama3_scratch.data.documents import placed
from llama3_scratch.errors import UsageError
from llama3_scratch.evaluation.scoring import (
    Surprisal,
    estimate,
    kl_divergence,
    log_probabilities,
    surprisal,
    windows,
)
from llama3_scratch.system.files import read_text
from llama3_scratch.system.timings import remaining

log = logging.getLogger("llama3_scratch")


def on_text(
    path: Path,
    checkpoint: Checkpoint,
    reference: Checkpoint | None = None,
    *,
    tokens: int | None = None,
    window: int | None = None,
    stride: int | None = None,
    reference_name: str = "",
) -> dict[str, Any]:
    """{"text": …} of a text's first `tokens` in windows that are `stride` apart; with a reference {"against": …} too:
    its own figures, and KL(reference ‖ model), which is what the model lost of it (as llama.cpp has it)."""
    tokenizer = checkpoint.require_tokenizer()
    text = read_text(path, "a text in UTF-8")
    if path.suffix in (".json", ".jsonl"):
        log.warning("%s: measured as it stands, the syntax of JSON included; give the text alone", path)
    with placed(str(path)):
        ids = tokenizer.encode(text, bos=False, eos=False)[:tokens]
    context = min(one.config.max_seq_len for one in (checkpoint, reference) if one is not None)
    length = window or min(512, context)
    if length > context:
        raise UsageError(f"`window` {length}: the model was trained for {context} tokens")
    first = tokenizer.bos_id if tokenizer.add_bos else None
    cut = list(windows(ids, length=length, stride=stride or length - 1, first=first))
    if not cut:
        raise UsageError(f"{path}: {len(ids)} tokens, too few to predict one")
    seen, divergences, same, theirs = [], [], [], []
    begun = time.perf_counter()
    for number, part in enumerate(cut, start=1):
        model_TV = log_probabilities(part.ids, checkpoint.params, checkpoint.config)
        seen.append(surprisal(part, model_TV, tokenizer))
        if reference is not None:
            reference_TV = log_probabilities(part.ids, reference.params, reference.config)
            theirs.append(surprisal(part, reference_TV, tokenizer))
            distance = kl_divergence(part, reference_TV, model_TV)
            divergences.append(distance.divergence_T)
            same.append(distance.same_T.double().mean().item())
        if number % 10 == 0:
            log.info("window %d of %d · %s", number, len(cut), remaining(begun, number, len(cut)))
    policy = f"windows of {length} tokens, {stride or length - 1} apart, " + (
        "each behind a begin token" if first is not None else "without a begin token"
    )
    found = {"text": {"file": str(path), "policy": policy, "windows": len(cut)} | _summed(seen)}
    if reference is not None:
        all_T = torch.cat(divergences)
        weights = [part.scored for part in cut]
        means = estimate([divergence_T.mean().item() for divergence_T in divergences], weights)
        agreement = estimate(same, weights)
        found["against"] = {
            "model": reference_name,
            **_summed(theirs),
            "kl": means.mean,
            "kl_error": means.error,
            "kl_median": all_T.median().item(),
            "kl_99": all_T.quantile(0.99).item(),
            "top1": agreement.mean,
            "top1_error": agreement.error,
        }
    return found


def _summed(seen: list[Surprisal]) -> dict[str, Any]:
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
