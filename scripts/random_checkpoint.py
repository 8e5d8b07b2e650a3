"""Write random weights of an official shape as Meta's folder, to try what needs no real ones: speed, memory, loading.

    python scripts/random_checkpoint.py llama3.2-1b weights/random-1b --tokenizer tokenizer.model

writes consolidated.00.pth (2.47 GB of bfloat16), params.json and the tokenizer, in less than a minute. Without
--tokenizer the model takes token ids only, no text. The weights take their whole size in memory: with --layers 1 even
llama3.1-405b's shape fits a 32 GB machine.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from llama3_scratch.config import OFFICIAL, official_name
from llama3_scratch.errors import UsageError
from llama3_scratch.system import cli


def make_parser() -> cli.Parser:
    parser = cli.script("random_checkpoint", __doc__)
    parser.add_argument("name", metavar="NAME", help=", ".join(OFFICIAL))
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="where to write it")
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16", help="of the weights (%(default)s)"
    )
    parser.add_argument("--layers", type=cli.number(int, minimum=1), metavar="N", help="fewer layers than the official")
    parser.add_argument(
        "--shards",
        type=cli.number(int, minimum=1),
        default=1,
        metavar="N",
        help="consolidated.NN.pth files (%(default)s)",
    )
    parser.add_argument(
        "--seed", type=cli.number(int, minimum=0, maximum=2**64 - 1), default=0, metavar="N", help="(%(default)s)"
    )
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="a tokenizer.model to put beside the weights")
    return parser


@cli.verb(make_parser)
def main(options: argparse.Namespace) -> int:
    name = official_name(options.name)
    if name is None:
        raise UsageError(f"{options.name!r} isn't an official shape, expected one of {', '.join(OFFICIAL)}")
    config = OFFICIAL[name]
    if options.layers:
        config = replace(config, n_layers=options.layers)
    import torch

    from llama3_scratch.checkpoint.meta import write_meta
    from llama3_scratch.init import init
    from llama3_scratch.text.tokenizer_file import read_tokenizer

    tokenizer = read_tokenizer(options.tokenizer) if options.tokenizer else None
    params = init(config, seed=options.seed, dtype=getattr(torch, options.dtype))
    write_meta(options.folder, params, config, tokenizer, shards=options.shards)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
