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
from llama3_scratch.errors import UsageError
from llama3_scratch.system import cli

if TYPE_CHECKING:
    from llama3_scratch.checkpoint.load import Checkpoint
    from llama3_scratch.data.labelled import Labelled

log = logging.getLogger("llama3_scratch")

RATES = {"head": 1e-3, "last-block": 2e-4, "all": 5e-5, "lora": 2e-4}


def _parser() -> cli.Parser:
    parser = cli.script("finetune_classifier", __doc__)
    count, positive = cli.number(int, least=1), cli.number(float, above=0)
    parser.add_argument("--model", default=DEFAULT, metavar="PATH|NAME", help="(%(default)s)")
    job = parser.add_mutually_exclusive_group(required=True)
    job.add_argument("--data", type=Path, metavar="FILE", help="texts with a class each, to learn from")
    job.add_argument("--apply", type=Path, metavar="DIR", help="a classifier that was learnt, to ask --text of")
    parser.add_argument(
        "--text", type=cli.text, action="append", metavar="TEXT", help="with --apply; may be given several times"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="the run's folder, with --data")
    parser.add_argument("--balanced", type=count, default=600, metavar="N", help="texts to learn from (%(default)s)")
    parser.add_argument("--limit", type=count, metavar="N", help="of the others, test on N (all)")
    parser.add_argument("--train", default="last-block", help="head, last-block, all or lora (%(default)s)")
    parser.add_argument("--read", default="last", help="the class at the last or the first token (%(default)s)")
    parser.add_argument("--rank", type=count, default=16, metavar="N", help="of lora (%(default)s)")
    parser.add_argument("--epochs", type=count, default=1, metavar="N", help="(%(default)s)")
    rates = ", ".join(f"{trained}: {rate:.0e}" for trained, rate in RATES.items())
    parser.add_argument("--lr", type=positive, metavar="X", help=f"the highest learning rate ({rates})")
    parser.add_argument("--batch", type=count, default=8, metavar="N", help="texts a step (%(default)s)")
    parser.add_argument(
        "--length",
        type=count,
        default=128,
        metavar="N",
        help="tokens of a text, whose end is cut if longer (%(default)s)",
    )
    parser.add_argument("--dtype", default="f32", help="of the activations: f32, bf16, f16 or fp8 (%(default)s)")
    parser.add_argument("--seed", type=cli.number(int, least=0), default=0, metavar="N", help="(%(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --out")
    parser.add_argument("--save-every", type=count, default=100, metavar="N", help="steps (%(default)s)")
    return parser


@cli.verb(_parser)
def main(options: argparse.Namespace) -> int:
    from llama3_scratch.checkpoint.fetch import download
    from llama3_scratch.checkpoint.load import load
    from llama3_scratch.data.labelled import balanced, read_labelled

    if options.apply and not options.text:
        raise UsageError("--apply needs at least one --text")
    if options.data and not options.out:
        raise UsageError("--data needs --out, the folder of the run")
    if options.data:  # before a model is fetched: a mistake in the data is told at once
        learn, test = balanced(read_labelled(options.data), options.balanced, seed=options.seed)
    checkpoint = load(download(options.model) if options.model == DEFAULT else options.model, needs_tokenizer=True)
    return _apply(checkpoint, options) if options.apply else _learn(checkpoint, learn, test, options)


def _apply(checkpoint: Checkpoint, options: argparse.Namespace) -> int:
    import torch

    from llama3_scratch.training.classifier import class_logits, read_classifier

    params, classes, read = read_classifier(options.apply, checkpoint)
    tokenizer = checkpoint.require_tokenizer()
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
            logits_BTC = class_logits(torch.tensor([ids]), params, checkpoint.config, dtype=torch.float32)
        shares_C = logits_BTC[0, -1 if read == "last" else 0].softmax(-1)
        best = int(shares_C.argmax())
        print(f"{classes[best]}  {shares_C[best]:.3f}  {text}")
    return 0


def _learn(
    checkpoint: Checkpoint, learn: Sequence[Labelled], test: Sequence[Labelled], options: argparse.Namespace
) -> int:
    from llama3_scratch.system.timings import duration
    from llama3_scratch.training.classifying import finetune
    from llama3_scratch.training.loop import TrainingPlan

    plan = TrainingPlan(
        steps=options.epochs * -(-len(learn) // options.batch),
        lr=options.lr or RATES.get(options.train, 0.0),
        warmup=5,
        weight_decay=0.0,
        dtype=options.dtype,
    )
    result = finetune(
        checkpoint,
        learn,
        test[: options.limit],
        plan,
        options.out,
        trained=options.train,
        read=options.read,
        size=options.batch,
        length=options.length,
        rank=options.rank,
        seed=options.seed,
        save_every=options.save_every,
        resume=options.resume,
    )
    if result.ended:
        return cli.ended_by(result.ended)
    of = ", ".join(f"{label} {share:.1%}" for label, share in result.right_of.items())
    right = f"right: {result.right:.2%} of {result.tested} ({of})" if result.tested else "no text is left to test on"
    print(
        f"{right} · {result.learnt:,} parameters learnt · {duration(result.seconds)} · "
        f"peak {result.peak_bytes / 1e6:.0f} MB"
    )
    print(options.out / "classifier")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
