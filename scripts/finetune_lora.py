"""Teach a model from conversations: LoRA, DoRA, QLoRA, or all of its weights.

    python scripts/finetune_lora.py --data tests/data/instructions.jsonl --test 0.1 --out runs/mine
    python -m llama3_scratch.chat --adapter runs/mine/adapter

reads JSON lines, or a .json list, of {"messages": [{"role", "content"}, …]} or {"instruction", "input", "output"},
learns the answers only, prints a line a step, and leaves in `runs/mine` an adapter in PEFT's layout, with a log and
checkpoints that --resume goes on from. The model is SmolLM2-135M-Instruct unless --model names another.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from llama3_scratch.checkpoint.names import DEFAULT
from llama3_scratch.errors import UsageError
from llama3_scratch.system import cli


def _parser() -> cli.Parser:
    parser = cli.script("finetune_lora", __doc__)
    count, size = cli.number(int, least=1), cli.number(int, least=0)
    positive = cli.number(float, above=0)
    parser.add_argument("--model", default=DEFAULT, metavar="PATH|NAME", help="(%(default)s)")
    parser.add_argument("--data", type=Path, required=True, metavar="FILE", help=".jsonl, or a .json list")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the run's folder")
    parser.add_argument("--validation-data", type=Path, metavar="FILE", help="held-out conversations")
    parser.add_argument(
        "--validation",
        type=cli.number(float, least=0, most=0.5),
        default=0.05,
        metavar="X",
        help="else this share of --data",
    )
    parser.add_argument(
        "--test",
        type=cli.number(float, least=0, most=0.5),
        default=0.0,
        metavar="X",
        help="leave this share of --data out and write it to test.jsonl, for python -m llama3_scratch.evaluate",
    )
    parser.add_argument("--rows", type=count, metavar="N", help="learn from the first N (after shuffling) only")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --out")
    parser.add_argument("--other-data", action="store_true", help="with --resume: the data may have changed")
    parser.add_argument("--chat-format", choices=("llama3", "chatml", "template"), help="lay chats out so")
    parser.add_argument(
        "--date", metavar="DATE", help='"26 Jul 2024": today for a chat template that asks, on all days'
    )
    how = parser.add_argument_group("what learns")
    how.add_argument("--method", default="lora", help="lora, dora, qlora or full (%(default)s)")
    how.add_argument("--rank", type=count, default=16, metavar="N", help="(%(default)s)")
    how.add_argument("--alpha", type=positive, default=32.0, metavar="X", help="(%(default)s)")
    how.add_argument("--rslora", action="store_true", help="scale by alpha/√rank instead of alpha/rank")
    how.add_argument(
        "--targets", default="wq,wk,wv,wo,w1,w2,w3", metavar="W,…", help="weights with adapters (%(default)s)"
    )
    plan = parser.add_argument_group("how it learns")
    plan.add_argument("--epochs", type=count, default=1, metavar="N", help="(%(default)s)")
    plan.add_argument("--steps", type=size, default=0, metavar="N", help="at most so many")
    plan.add_argument("--lr", type=positive, metavar="X", help="the highest learning rate (2e-4; full: 2e-5)")
    plan.add_argument("--warmup", type=size, default=5, metavar="N", help="steps (%(default)s)")
    plan.add_argument("--schedule", default="cosine", help="cosine, wsd or constant (%(default)s)")
    plan.add_argument("--weight-decay", type=cli.number(float, least=0), default=0.0, metavar="X", help="(%(default)s)")
    plan.add_argument("--batch", type=count, default=4, metavar="N", help="rows at once (%(default)s)")
    plan.add_argument("--accumulate", type=count, default=1, metavar="N", help="batches a step (%(default)s)")
    plan.add_argument("--length", type=count, default=512, metavar="N", help="tokens a row (%(default)s)")
    plan.add_argument("--truncate", default="right", help="the side at which what is longer is cut (%(default)s)")
    plan.add_argument(
        "--mask-prompt",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="learn the answers only, not what they answer (on)",
    )
    plan.add_argument("--dtype", default="f32", help="of the activations: f32, bf16, f16 or fp8 (%(default)s)")
    plan.add_argument("--recompute", action="store_true", help="keep less and compute more")
    plan.add_argument("--compile", action="store_true", help="by torch.compile: a minute later, then faster steps")
    plan.add_argument("--seed", type=size, default=0, metavar="N", help="(%(default)s)")
    plan.add_argument("--save-every", type=count, default=100, metavar="N", help="steps (%(default)s)")
    return parser


@cli.verb(_parser)
def main(options: argparse.Namespace) -> int:
    from llama3_scratch.checkpoint.fetch import download
    from llama3_scratch.checkpoint.load import load
    from llama3_scratch.data.conversations import read_conversations, split
    from llama3_scratch.system.files import write_whole
    from llama3_scratch.system.timings import duration
    from llama3_scratch.training.finetuning import Adapters, finetune
    from llama3_scratch.training.loop import TrainingPlan

    found = read_conversations(options.data)
    validation = 0.0 if options.validation_data else options.validation
    shares = [1 - validation - options.test, validation, *([options.test] if options.test else [])]
    learn, held_out, *test = split(found, shares, seed=options.seed)
    if options.validation_data:
        held_out = read_conversations(options.validation_data)
    if not learn:
        raise UsageError(f"{options.data}: no conversation is left to learn from")
    checkpoint = load(download(options.model) if options.model == DEFAULT else options.model)
    if options.chat_format and checkpoint.tokenizer is not None:
        checkpoint.tokenizer.set_chat_format(options.chat_format)
    plan = TrainingPlan(
        steps=options.steps,
        lr=options.lr or (2e-5 if options.method == "full" else 2e-4),
        warmup=options.warmup,
        schedule=options.schedule,
        weight_decay=options.weight_decay,
        accumulate=options.accumulate,
        dtype=options.dtype,
        recompute=options.recompute,
        compile=options.compile,
    )
    result = finetune(
        checkpoint,
        learn[: options.rows],
        held_out,
        plan,
        options.out,
        epochs=options.epochs,
        size=options.batch,
        length=options.length,
        seed=options.seed,
        method=options.method,
        adapters=Adapters(options.rank, options.alpha, options.targets.split(","), options.rslora),
        mask_prompt=options.mask_prompt,
        truncate=options.truncate,
        date=options.date,
        save_every=options.save_every,
        resume=options.resume,
        other_data=options.other_data,
    )
    if test:
        rows = "".join(json.dumps({"messages": messages}, ensure_ascii=False) + "\n" for messages in test[0])
        write_whole(options.out / "test.jsonl", rows)
    if result.before is None or result.after is None:
        loss = "no conversation was held out, so no loss tells how well it learnt"
    else:
        loss = f"held-out loss {result.before:.4f} → {result.after:.4f}"
    print(
        f"{loss} · {result.trainable:,} parameters learnt · {duration(result.seconds)} · "
        f"peak {result.peak_bytes / 1e6:.0f} MB"
    )
    print(options.out / ("model" if options.method == "full" else "adapter"))
    return cli.ended_by(result.ended)


if __name__ == "__main__":
    raise SystemExit(main())
