"""Write a model in another layout: Meta's, Hugging Face's or GGUF; adapters are merged into it."""

from __future__ import annotations

import argparse
from pathlib import Path

from llama3_scratch.checkpoint.conversion import (
    FILE_DTYPES,
    GGUF_TYPES,
    LAYOUTS,
    QUANTIZED,
    Conversion,
    check_target,
    convert,
)
from llama3_scratch.inference.loading import read
from llama3_scratch.system import cli
from llama3_scratch.system.fields import updated
from llama3_scratch.terminal.flags import add_adapter_flag, add_reading_flags, model_choice


def make_parser() -> cli.Parser:
    parser = cli.Parser("convert", __doc__ or "")
    parser.add_argument("source", metavar="SOURCE", help="a folder, a .gguf or .bin file, or a downloaded name")
    parser.add_argument("target", metavar="TARGET", type=Path, help="the folder to write, or the .gguf file")
    parser.add_argument("--to", required=True, choices=LAYOUTS, help="the layout to write")
    parser.add_argument("--force", action="store_true", help="replace TARGET")
    parser.add_argument(
        "--dtype",
        choices=FILE_DTYPES,
        help="of the weights, for meta and hf; as stored if not given; makes floats of quantised ones",
    )
    parser.add_argument(
        "--quantize", choices=QUANTIZED, help="the form of the matrices, for meta and gguf; embedding and head are int8"
    )
    parser.add_argument(
        "--blocks",
        choices=("floats", "stored"),
        default="floats",
        help="what becomes of a GGUF's Q8_0, Q4_0 and Q4_1: floats, or int8 and int4 of the same numbers (%(default)s)",
    )
    parser.add_argument(
        "--shards", type=cli.number(int, minimum=1), metavar="N", help="how many consolidated.*.pth, for meta (1)"
    )
    parser.add_argument(
        "--type",
        choices=GGUF_TYPES,
        help="of the matrices, for gguf; without it the stored dtype or form",
    )
    add_adapter_flag(parser, "merged into the weights")
    add_reading_flags(parser)
    return parser


@cli.verb(make_parser)
def main(options: argparse.Namespace) -> int:
    how = updated(Conversion(), vars(options))
    check_target(options.target.resolve(), folder=how.to != "gguf", force=options.force)  # before anything is read
    choice = model_choice(options)
    checkpoint = read(options.source, choice, blocks=options.blocks)
    if choice.adapters:
        from llama3_scratch.checkpoint.adapters import add_adapters

        checkpoint = add_adapters(checkpoint, list(choice.adapters))
    form = convert(checkpoint, options.target, how, force=options.force)
    target = options.target
    written = list(target.iterdir()) if target.is_dir() else [target]
    print(f"{target}: {LAYOUTS[how.to]}, {form}, {sum(path.stat().st_size for path in written):,} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
