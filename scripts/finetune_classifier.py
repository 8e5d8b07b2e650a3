"""Teach a model to put texts into classes: a head of one row a class on what its layers make of a text.

    python scripts/finetune_classifier.py --data tests/data/spam.tsv --balanced 600 --out runs/spam
    python scripts/finetune_classifier.py --apply runs/spam/classifier --text "You have won! Call now"

reads label, tab, text a line, or JSON lines of {"text", "label"}; learns from 600 of them, equally many of each class,
and tells how many of all others it gets right. --train says which weights learn, --read at which token the class is
read. The model is SmolLM2-135M-Instruct unless --model names another.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llama3_scratch.checkpoint.names import DEFAULT
from llama3_scratch.errors import FileError, MissingFileError, UsageError
from llama3_scratch.inference.choices import ModelChoice
from llama3_scratch.system import cli
from llama3_scratch.training import flags

if TYPE_CHECKING:
    from llama3_scratch.checkpoint.load import Checkpoint
    from llama3_scratch.data.labelled import Labelled

log = logging.getLogger("llama3_scratch")

RATES = {"head": 1e-3, "last-block": 2e-4, "all": 5e-5, "lora": 2e-4}


def make_parser() -> cli.Parser:
    parser = cli.script("finetune_classifier", __doc__)
    count = cli.number(int, minimum=1)
    parser.add_argument("--model", default=DEFAULT, metavar="PATH|NAME", help="(%(default)s)")
    job = parser.add_mutually_exclusive_group(required=True)
    job.add_argument("--data", type=Path, metavar="FILE", help="texts with a class each, to learn from")
    job.add_argument("--apply", type=Path, metavar="DIR", help="a classifier that was learnt, to ask --text of")
    parser.add_argument(
        "--text", type=cli.text, action="append", metavar="TEXT", help="with --apply; may be given several times"
    )
    flags.add_folder_flags(parser, required=False)
    parser.add_argument(
        "--balanced", dest="count", type=count, default=600, metavar="N", help="texts to learn from (%(default)s)"
    )
    parser.add_argument("--limit", type=count, metavar="N", help="of the others, test on N (all)")
    rates = ", ".join(f"{trained}: {rate:.0e}" for trained, rate in RATES.items())
    helps = {
        "rank": "of lora (%(default)s)",
        "lr": f"the highest learning rate ({rates})",
        "size": "texts a step (%(default)s)",
        "length": "tokens of a text, whose end is cut if longer (%(default)s)",
    }
    flags.add_flags(parser, helps=helps, train="last-block", read="last", rank=16, epochs=1, lr=None, size=8)
    flags.add_flags(parser, helps=helps, length=128, dtype="f32", seed=0, save_every=100)
    flags.add_device_flag(parser)
    return parser


@cli.verb(make_parser)
def main(options: argparse.Namespace) -> int:
    from llama3_scratch.data.labelled import balanced, read_labelled
    from llama3_scratch.inference.loading import open_model

    if options.apply and not options.text:
        raise UsageError("--apply needs at least one --text")
    if options.data and not options.folder:
        raise UsageError("--data needs --out, the folder of the run")
    if options.data:  # before a model is fetched: a mistake in the data is told at once
        learn, test = balanced(read_labelled(options.data), options.count, seed=options.seed)
    checkpoint, _ = open_model(ModelChoice(options.model, device=options.device), as_floats=True)
    return _apply(checkpoint, options) if options.apply else _learn(checkpoint, learn, test, options)


def _apply(checkpoint: Checkpoint, options: argparse.Namespace) -> int:
    import torch

    from llama3_scratch.training.classifier import class_logits, read_classifier

    try:
        params, classes, read = read_classifier(options.apply, checkpoint)
    except MissingFileError as error:
        raise FileError(f"{error}; --data learns one") from error
    tokenizer, device = checkpoint.require_tokenizer(), params["norm.weight"].device
    for text in options.text:
        ids = tokenizer.encode(text, bos=tokenizer.add_bos, eos=False)
        if not ids:
            raise UsageError("--text is empty")
        if len(ids) > options.length:
            log.warning(
                "%r…: %d tokens, of which the first %d are read (--length)", text[:30], len(ids), options.length
            )
        ids = ids[: options.length]
        with torch.inference_mode():
            logits_BTC = class_logits(
                torch.tensor([ids], device=device), params, checkpoint.config, dtype=torch.float32
            )
        shares_C = logits_BTC[0, -1 if read == "last" else 0].softmax(-1)
        best = int(shares_C.argmax())
        print(f"{classes[best]}  {shares_C[best]:.3f}  {text}")
    return 0


def _learn(
    checkpoint: Checkpoint, learn: Sequence[Labelled], test: Sequence[Labelled], options: argparse.Namespace
) -> int:
    from llama3_scratch.system.timings import duration
    from llama3_scratch.training.classifying import finetune_classifier

    choices, run, batches = flags.classification(options), flags.run_plan(options), flags.batch_plan(options)
    steps, lr = options.epochs * -(-len(learn) // batches.size), options.lr or RATES[choices.train]
    plan = flags.training_plan(options, steps=steps, lr=lr, warmup=5, weight_decay=0.0)
    result = finetune_classifier(checkpoint, learn, test[: options.limit], plan, batches, run, choices)
    outcome = result.outcome
    if outcome.signal:
        return cli.ended_by(outcome.signal)
    of = ", ".join(f"{label} {share:.1%}" for label, share in result.right_of.items())
    right = f"right: {result.right:.2%} of {result.tested} ({of})" if result.tested else "no text is left to test on"
    print(
        f"{right} · {result.learnt:,} parameters learnt · {duration(outcome.seconds)} · "
        f"peak {outcome.peak_bytes / 1e6:.0f} MB"
    )
    print(run.folder / "classifier")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
