"""Write short stories for children, made up from a seed: as many as one likes, to train on.

    python scripts/write_stories.py --count 50000 --seed 1 --out stories.jsonl

writes a JSON line a story, 150 words long on average, or plain text where the file ends in .txt; `--show` prints them
to be read instead.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from storyteller.stories import stories

from llama3_scratch.errors import UsageError
from llama3_scratch.system import cli
from llama3_scratch.system.writing import fresh_file


def make_parser() -> cli.Parser:
    parser = cli.script("write_stories", __doc__)
    parser.add_argument("--count", type=cli.number(int, minimum=1), default=10, metavar="N", help="(%(default)s)")
    parser.add_argument("--seed", type=cli.number(int, minimum=0), default=0, metavar="N", help="(%(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to (stdout); text if it ends in .txt")
    parser.add_argument("--show", action="store_true", help="as text instead of JSON lines")
    return parser


@cli.verb(make_parser)
def main(options: argparse.Namespace) -> int:
    made = stories(options.seed, options.count)
    as_text = options.show or (options.out is not None and options.out.suffix == ".txt")
    lines = (f"{text}\n\n\n" if as_text else json.dumps({"text": text}) + "\n" for text in made)
    if options.out is None:
        sys.stdout.writelines(lines)
        return 0
    if options.show:
        raise UsageError("--show prints stories to be read, --out writes them to train on; give one of them")
    with fresh_file(options.out) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(lines)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
