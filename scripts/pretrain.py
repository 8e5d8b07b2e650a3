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

from llama3_scratch.errors import FileError, MissingFileError
from llama3_scratch.system import cli
from llama3_scratch.training import flags


def make_parser() -> cli.Parser:
    parser = cli.script("pretrain", __doc__)
    count = cli.number(int, minimum=1)
    parser.add_argument("data", type=Path, metavar="DATA", help="a folder that scripts/prepare_data.py wrote")
    flags.add_folder_flags(parser)
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
    how = parser.add_argument_group("how it learns")
    flags.add_flags(how, steps=2000, size=16, accumulate=1, length=256, lr=2e-3, warmup=100, schedule="cosine")
    flags.add_flags(how, weight_decay=0.1, clip=1.0, dtype="f32", recompute=False, compile=False, seed=0)
    flags.add_device_flag(how)
    how.add_argument("--find-lr", action="store_true", help="only try learning rates from 1e-5 to 1, and suggest one")
    reports = parser.add_argument_group("what it reports and keeps")
    flags.add_flags(reports, save_every=250, validate_every=250, sample_every=500)
    reports.add_argument(
        "--sample", type=cli.text, default="Once upon a time", metavar="TEXT", help="how samples begin (%(default)r)"
    )
    return parser


@cli.verb(make_parser)
def main(options: argparse.Namespace) -> int:
    plan, batches, run = flags.training_plan(options), flags.batch_plan(options), flags.run_plan(options)

    from llama3_scratch.config import Config, hidden_dim
    from llama3_scratch.data.shards import Shards
    from llama3_scratch.inference.loading import check_device
    from llama3_scratch.training.pretraining import pretrain, range_test, suggested

    try:
        shards = Shards(options.data)
    except MissingFileError as error:
        raise FileError(f"{error}; python scripts/prepare_data.py TEXT --tokenizer DIR --out DIR makes one") from error
    device = check_device(options.device)
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
    if options.find_lr:
        found = range_test(shards, config, plan, batches, device=device)
        print("learning rate  loss")
        for lr, loss in found[:: max(1, len(found) // 20)]:
            print(f"{lr:13.1e}  {loss:.3f}")
        print(f"suggested: --lr {suggested(found):.1e}")
        return 0
    outcome = pretrain(shards, config, plan, batches, run, flags.pretraining(options), device=device)
    print(run.folder / "model")
    return cli.ended_by(outcome.signal)


if __name__ == "__main__":
    raise SystemExit(main())
