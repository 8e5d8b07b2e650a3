"""Turn text into tokens on disk, a part of them held out: what scripts/pretrain.py reads.

    python scripts/prepare_data.py stories.jsonl --tokenizer tokenizer --out data/stories --validation 0.01

Files are JSON lines or a JSON list, of which each row is a document, or plain text. A text is one document, as a novel
is, unless --documents says where one ends: at each `blank-line`, at each `line`, or at lines that are a mark, as
--documents '<|endoftext|>'. Held out are whole documents by chance, or the end of each where there are too few. Files
other than a JSON list are read one document at a time and may be larger than memory. What stands there twice is taken
once; --clean and --near drop more, and report.json in the folder says how much and why.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

from llama3_scratch.system import cli

log = logging.getLogger("llama3_scratch")


def make_parser() -> cli.Parser:
    parser = cli.script("prepare_data", __doc__)
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="text, JSON lines (.jsonl) or a JSON list (.json)"
    )
    parser.add_argument(
        "--tokenizer", required=True, metavar="PATH|NAME", help="a tokenizer.model, or a model that has one"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--documents",
        type=cli.text,
        metavar="HOW",
        help="a text's documents: the file, what ends at a blank-line, each line, or what ends at a line that is HOW "
        "(file)",
    )
    parser.add_argument("--field", default="text", metavar="NAME", help="of a JSON line (%(default)s)")
    parser.add_argument(
        "--validation",
        type=cli.number(float, minimum=0, maximum=1),
        default=0.01,
        metavar="X",
        help="held out (%(default)s)",
    )
    parser.add_argument("--seed", type=cli.number(int, minimum=0), default=0, metavar="N", help="of what's held out")
    parser.add_argument("--clean", default="", metavar="RULES", help="drop what breaks these rules: gopher, c4 or both")
    parser.add_argument(
        "--near", type=cli.number(float, above=0), metavar="X", help="drop what has this share of its text in common"
    )
    return parser


@cli.verb(make_parser)
def main(options: argparse.Namespace) -> int:
    from llama3_scratch.checkpoint.names import resolve
    from llama3_scratch.data.clean import RULES
    from llama3_scratch.data.documents import FILE, documents
    from llama3_scratch.data.report import Report, cleaned
    from llama3_scratch.data.shards import write_shards
    from llama3_scratch.errors import FileError, UsageError
    from llama3_scratch.system.writing import write_whole
    from llama3_scratch.text.tokenizer_file import read_tokenizer

    rules = [name for name in options.clean.split(",") if name]
    if unknown := [name for name in rules if name not in RULES]:
        raise UsageError(f"--clean {unknown[0]}: expected {' or '.join(RULES)}")
    if options.documents is None and any(path.suffix not in (".jsonl", ".json") for path in options.files):
        log.info("each text file is one document; --documents blank-line, line or a mark parts it")
    report = Report()
    found = documents(options.files, cut=options.documents or FILE, field=options.field)
    try:
        tokenizer = read_tokenizer(resolve(options.tokenizer))
    except FileError as error:
        raise FileError(f"--tokenizer: {error}; scripts/train_tokenizer.py makes a tokenizer") from error
    manifest = write_shards(
        cleaned(found, report, rules=rules, near=options.near),
        tokenizer,
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
