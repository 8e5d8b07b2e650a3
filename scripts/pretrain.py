"""Train a Llama from random weights on prepared data, on whatever machine this is.

    python scripts/prepare_data.py stories.jsonl --tokenizer tokenizer --out data/stories
    python scripts/pretrain.py data/stories --out runs/stories --dim 128 --layers 6 --steps 2000

prints a line a step and leaves in `runs/stories`: `log.jsonl`, `loss.png`, checkpoints to go on from (`--resume`), and
in `runs/stories/model` the weights in Meta's layout, for `python -m llama3_scratch.generate --model
runs/stories/model`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from llama3_scratch.errors import UsageError
from llama3_scratch.system import cli


def _parser() -> cli.Parser:
    parser = cli.script("pretrain", __doc__)
    count, size = cli.number(int, least=1), cli.number(int, least=0)
    positive = cli.number(float, above=0)
    parser.add_argument("data", type=Path, metavar="DATA", help="a folder that scripts/prepare_data.py wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the run's folder")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --out")
    parser.add_argument("--other-data", action="store_true", help="with --resume: the data may have changed")
    parser.add_argument(
        "--weights", type=Path, metavar="DIR", help="begin with the weights of this checkpoint (step_N)"
    )
    shape = parser.add_argument_group("the model")
    shape.add_argument("--dim", type=count, default=128, metavar="N", help="width D (%(default)s)")
    shape.add_argument("--layers", type=count, default=6, metavar="N", help="(%(default)s)")
    shape.add_argument("--heads", type=count, default=8, metavar="N", help="query heads (%(default)s)")
    shape.add_argument("--kv-heads", type=count, default=4, metavar="N", help="key/value heads (%(default)s)")
    shape.add_argument("--hidden", type=count, metavar="N", help="feed-forward width (Meta's formula, multiple of 32)")
    shape.add_argument("--untied", action="store_true", help="a head of its own instead of the embedding's")
    plan = parser.add_argument_group("how it learns")
    plan.add_argument("--steps", type=count, default=2000, metavar="N", help="(%(default)s)")
    plan.add_argument("--batch", type=count, default=16, metavar="N", help="rows at once (%(default)s)")
    plan.add_argument("--accumulate", type=count, default=1, metavar="N", help="batches a step (%(default)s)")
    plan.add_argument(
        "--length", type=cli.number(int, least=2), default=256, metavar="N", help="tokens a row (%(default)s)"
    )
    plan.add_argument("--lr", type=positive, default=2e-3, metavar="X", help="the highest learning rate (%(default)s)")
    plan.add_argument("--warmup", type=size, default=100, metavar="N", help="steps (%(default)s)")
    plan.add_argument("--schedule", default="cosine", help="cosine, wsd or constant (%(default)s)")
    plan.add_argument("--weight-decay", type=cli.number(float, least=0), default=0.1, metavar="X", help="(%(default)s)")
    plan.add_argument("--clip", type=positive, default=1.0, metavar="X", help="largest gradient norm (%(default)s)")
    plan.add_argument("--dtype", default="f32", help="of the activations: f32, bf16, f16 or fp8 (%(default)s)")
    plan.add_argument("--recompute", action="store_true", help="keep less and compute more (activation checkpointing)")
    plan.add_argument("--compile", action="store_true", help="by torch.compile: a minute later, then faster steps")
    plan.add_argument("--seed", type=size, default=0, metavar="N", help="of weights and order (%(default)s)")
    plan.add_argument("--find-lr", action="store_true", help="only try learning rates from 1e-5 to 1, and suggest one")
    told = parser.add_argument_group("what it tells and keeps")
    told.add_argument("--save-every", type=count, default=250, metavar="N", help="steps (%(default)s)")
    told.add_argument("--validate-every", type=count, default=250, metavar="N", help="steps (%(default)s)")
    told.add_argument("--sample-every", type=count, default=500, metavar="N", help="steps (%(default)s)")
    told.add_argument(
        "--sample", type=cli.text, default="Once upon a time", metavar="TEXT", help="how samples begin (%(default)r)"
    )
    return parser


@cli.verb(_parser)
def main(options: argparse.Namespace) -> int:
    from llama3_scratch.config import Config, hidden_dim
    from llama3_scratch.data.shards import Shards
    from llama3_scratch.training.loop import TrainingPlan
    from llama3_scratch.training.pretraining import Telling, pretrain, range_test, suggested

    if options.resume and options.weights:
        raise UsageError("--weights begins a run with others' weights, --resume goes on with its own; give one of them")
    shards = Shards(options.data)
    config = Config(
        dim=options.dim,
        n_layers=options.layers,
        n_heads=options.heads,
        n_kv_heads=options.kv_heads,
        vocab_size=shards.tokenizer.n_words,
        hidden_dim=options.hidden or hidden_dim(options.dim, 32),
        max_seq_len=options.length,
        rope_theta=10_000.0,
        tied=not options.untied,
    )
    plan = TrainingPlan(
        steps=options.steps,
        lr=options.lr,
        warmup=options.warmup,
        schedule=options.schedule,
        weight_decay=options.weight_decay,
        clip=options.clip,
        accumulate=options.accumulate,
        dtype=options.dtype,
        recompute=options.recompute,
        compile=options.compile,
    )
    if options.find_lr:
        found = range_test(shards, config, plan, size=options.batch, length=options.length, seed=options.seed)
        print("learning rate  loss")
        for lr, loss in found[:: max(1, len(found) // 20)]:
            print(f"{lr:13.1e}  {loss:.3f}")
        print(f"suggested: --lr {suggested(found):.1e}")
        return 0
    ended = pretrain(
        shards,
        config,
        plan,
        options.out,
        size=options.batch,
        length=options.length,
        seed=options.seed,
        telling=Telling(options.save_every, options.validate_every, options.sample_every, options.sample),
        resume=options.resume,
        other_data=options.other_data,
        begin_with=options.weights,
    )
    print(options.out / "model")
    return cli.ended_by(ended)


if __name__ == "__main__":
    raise SystemExit(main())
