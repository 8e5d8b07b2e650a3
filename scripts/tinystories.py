"""Turn files of TinyStories in which a single line end parts two stories into JSON lines, with capitals put back.

    python scripts/tinystories.py train_cased.txt train_lowercase.txt --out tiny.jsonl

The first file teaches which words are names; in files without capitals these, "I", and the beginnings of sentences get
theirs back. A story that stands in two files is taken once.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from llama3_scratch.system import cli
from llama3_scratch.system.files import read_text
from llama3_scratch.system.writing import fresh_file


def make_parser() -> cli.Parser:
    parser = cli.script("tinystories", __doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="the first one with capitals")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl")
    return parser


def split(path: Path) -> Iterator[str]:
    """The stories of a file; an empty line parts two paragraphs of one."""
    for text in re.split(r"(?<!\n)\n(?!\n)", read_text(path, "stories")):
        if text.strip():
            yield text.strip()


def names(stories: list[str]) -> set[str]:
    """Words, in lower case, that have a capital wherever they stand within a sentence."""
    seen: Counter[str] = Counter()
    capital: Counter[str] = Counter()
    for story in stories:
        for word in re.findall(r"(?<=[a-z,] )[A-Za-z]+", story):
            seen[word.lower()] += 1
            capital[word.lower()] += word[0].isupper()
    return {word for word, count in seen.items() if capital[word] > 0.8 * count and count > 1}


def with_capitals(story: str, names: set[str]) -> str:
    story = re.sub(r"[a-z]+", lambda word: word[0].capitalize() if word[0] in names else word[0], story)
    story = re.sub(r"\bi\b", "I", story)
    return re.sub(r'((?:^|[.!?]["\']?\s+|(?:^|\s)["\'])["\']?)([a-z])', lambda m: m[1] + m[2].upper(), story)


@cli.verb(make_parser)
def main(options: argparse.Namespace) -> int:
    first = list(split(options.files[0]))
    known = names(first)
    seen: set[str] = set()
    with fresh_file(options.out) as temporary, temporary.open("w", encoding="utf-8") as file:
        for path in options.files:
            for story in split(path):
                if (key := re.sub(r"\W+", " ", story.lower())) not in seen:
                    seen.add(key)
                    text = story if any(map(str.isupper, story)) else with_capitals(story, known)
                    file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    print(f"{len(seen)} stories")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
