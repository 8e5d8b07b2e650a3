"""Turn text into tokens on disk, a part of them held out: what scripts/pretrain.py reads.

    python scripts/prepare_data.py stories.jsonl --tokenizer tokenizer --out data/stories --validation 0.01

Files are plain text, whose documents are parted by empty lines or by lines that are `--separator`, or JSON lines. They
are read one document at a time and may be larger than memory. What stands there twice is taken once; --clean and --near
drop more, and report.json in the folder says how much and why.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from llama3_scratch import cli


def _parser() -> cli.Parser:
    parser = cli.script("prepare_data", __doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="text, or JSON lines (.jsonl)")
    parser.add_argument(
        "--tokenizer", required=True, metavar="PATH|NAME", help="a tokenizer.model, or a model that has one"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--separator", default="", metavar="TEXT", help="the line between documents (an empty one)")
    parser.add_argument("--field", default="text", metavar="NAME", help="of a JSON line (%(default)s)")
    parser.add_argument(
        "--validation",
        type=cli.number(float, least=0, most=1),
        default=0.01,
        metavar="X",
        help="held out (%(default)s)",
    )
    parser.add_argument("--seed", type=cli.number(int, least=0), default=0, metavar="N", help="of what's held out")
    parser.add_argument("--clean", default="", metavar="RULES", help="drop what breaks these rules: gopher, c4 or both")
    parser.add_argument(
        "--near", type=cli.number(float, above=0), metavar="X", help="drop what has this share of its text in common"
    )
    return parser


@cli.verb(_parser)
def main(options: argparse.Namespace) -> int:
    from llama3_scratch.checkpoint.names import resolve
    from llama3_scratch.data.clean import RULES
    from llama3_scratch.data.documents import documents
    from llama3_scratch.data.report import Report, cleaned
    from llama3_scratch.data.shards import write_shards
    from llama3_scratch.errors import UsageError
    from llama3_scratch.files import write_whole
    from llama3_scratch.tokenizer import read_tokenizer

    rules = [name for name in options.clean.split(",") if name]
    if unknown := [name for name in rules if name not in RULES]:
        raise UsageError(f"--clean {unknown[0]}: expected {' or '.join(RULES)}")
    report = Report()
    found = documents(options.files, separator=options.separator, field=options.field)
    manifest = write_shards(
        cleaned(found, report, rules=rules, near=options.near),
        read_tokenizer(resolve(options.tokenizer)),
        options.out,
        validation=options.validation,
        seed=options.seed,
    )
    write_whole(options.out / "report.json", json.dumps(report.as_dict(), indent=1, ensure_ascii=False) + "\n")
    print("\n".join(report.lines()))
    for part, made in manifest["parts"].items():
        print(f"{part}: {made['documents']:,} documents, {made['tokens']:,} tokens, {made['bytes']:,} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
