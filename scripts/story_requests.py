"""Turn stories into conversations in which each is the answer to a request for three of its words.

    python scripts/story_requests.py tiny.jsonl --count 1000 --out requests.jsonl
    python scripts/finetune_lora.py --data requests.jsonl --out runs/teller

A model that has learnt from them is what scripts/ask_for_stories.py asks for new ones.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from llama3_scratch.errors import UsageError
from llama3_scratch.system import cli
from llama3_scratch.system.writing import fresh_file


def make_parser() -> cli.Parser:
    parser = cli.script("story_requests", __doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="stories, JSONL with a text or plain text")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl", help="conversations")
    parser.add_argument(
        "--count", type=cli.number(int, minimum=1), metavar="N", help="so many stories, picked by chance (all)"
    )
    parser.add_argument("--seed", type=cli.number(int, minimum=0), default=0, metavar="N", help="(%(default)s)")
    return parser


@cli.verb(make_parser)
def main(options: argparse.Namespace) -> int:
    from storyteller.requests import REQUESTED_WORDS, content_words, request, words_of

    from llama3_scratch.data.documents import documents

    stories = list(documents(options.files))
    known = content_words(stories)
    chance = random.Random(options.seed)
    written = 0
    with fresh_file(options.out) as temporary, temporary.open("w", encoding="utf-8") as file:
        for story in chance.sample(stories, len(stories)):
            words = words_of(story, known, chance)
            if len(words) < REQUESTED_WORDS or written == options.count:
                continue
            asked = {"role": "user", "content": request(words)}
            row = {"messages": [asked, {"role": "assistant", "content": story}]}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            written += 1
        if not written:
            raise UsageError(f"{options.files[0]}: too few stories to take {REQUESTED_WORDS} words of any from")
    print(f"{written} conversations, {len(known)} words to ask for")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
