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
from llama3_scratch.inference.choices import ModelChoice
from llama3_scratch.system import cli
from llama3_scratch.terminal.flags import add_chat_format_flag, add_date_flag
from llama3_scratch.training import flags


def make_parser() -> cli.Parser:
    parser = cli.script("finetune_lora", __doc__)
    count = cli.number(int, minimum=1)
    parser.add_argument("--model", default=DEFAULT, metavar="PATH|NAME", help="(%(default)s)")
    parser.add_argument("--data", type=Path, required=True, metavar="FILE", help=".jsonl, or a .json list")
    flags.add_folder_flags(parser)
    parser.add_argument("--validation-data", type=Path, metavar="FILE", help="held-out conversations")
    parser.add_argument(
        "--validation",
        type=cli.number(float, minimum=0, maximum=0.5),
        default=0.05,
        metavar="X",
        help="else this share of --data",
    )
    parser.add_argument(
        "--test",
        type=cli.number(float, minimum=0, maximum=0.5),
        default=0.0,
        metavar="X",
        help="leave this share of --data out and write it to test.jsonl, for python -m llama3_scratch.evaluate",
    )
    parser.add_argument("--rows", type=count, metavar="N", help="learn from the first N (after shuffling) only")
    add_chat_format_flag(parser)
    add_date_flag(parser)
    what = parser.add_argument_group("what learns")
    flags.add_flags(what, method="lora", rank=16, alpha=32.0, rslora=False)
    what.add_argument(
        "--targets", default="wq,wk,wv,wo,w1,w2,w3", metavar="W,…", help="weights with adapters (%(default)s)"
    )
    how = parser.add_argument_group("how it learns")
    helps = {"steps": "at most so many", "lr": "the highest learning rate (2e-4; full: 2e-5)"}
    flags.add_flags(how, helps=helps, epochs=1, steps=0, lr=None, warmup=5, schedule="cosine", weight_decay=0.0)
    flags.add_flags(how, size=4, accumulate=1, length=512, truncate="right")
    how.add_argument(
        "--mask-prompt",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="learn the answers only, not what they answer (on)",
    )
    flags.add_flags(how, dtype="f32", recompute=False, compile=False, seed=0, save_every=100)
    flags.add_device_flag(how)
    return parser


@cli.verb(make_parser)
def main(options: argparse.Namespace) -> int:
    choices, batches, run = flags.finetuning(options), flags.batch_plan(options), flags.run_plan(options)
    plan = flags.training_plan(options, lr=options.lr or (2e-5 if choices.method == "full" else 2e-4))

    from llama3_scratch.data.conversations import read_conversations, split
    from llama3_scratch.inference.loading import open_model
    from llama3_scratch.system.timings import duration
    from llama3_scratch.system.writing import write_whole
    from llama3_scratch.training.finetuning import finetune

    found = read_conversations(options.data)
    validation = 0.0 if options.validation_data else options.validation
    shares = [1 - validation - options.test, validation, *([options.test] if options.test else [])]
    learn, held_out, *test = split(found, shares, seed=options.seed)
    if options.validation_data:
        held_out = read_conversations(options.validation_data)
    if not learn:
        raise UsageError(f"{options.data}: no conversation is left to learn from")
    choice = ModelChoice(options.model, device=options.device, chat_format=options.chat_format)
    checkpoint, _ = open_model(choice, as_floats=True)
    result = finetune(checkpoint, learn[: options.rows], held_out, plan, batches, run, choices)
    if test:
        rows = "".join(json.dumps({"messages": messages}, ensure_ascii=False) + "\n" for messages in test[0])
        write_whole(run.folder / "test.jsonl", rows)
    if result.before is None or result.after is None:
        loss = "no conversation was held out, so there is no held-out loss"
    else:
        loss = f"held-out loss {result.before:.4f} → {result.after:.4f}"
    outcome = result.outcome
    print(
        f"{loss} · {result.trainable:,} parameters learnt · {duration(outcome.seconds)} · "
        f"peak {outcome.peak_bytes / 1e6:.0f} MB"
    )
    print(run.folder / ("model" if choices.method == "full" else "adapter"))
    return cli.ended_by(outcome.signal)


if __name__ == "__main__":
    raise SystemExit(main())
