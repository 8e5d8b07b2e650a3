"""Stories of a model, unpicked, with what they owe to the text that it learnt from.

    python scripts/tell_stories.py weights/storyteller --text tiny.jsonl made.jsonl --count 10

prints stories that begin as `--begin` says, one for each seed from 0 on, and the longest run of words that each has in
common with a document of the text.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from llama3_scratch.system import cli

RUN = 5  # words by which a document's place is found again


def make_parser() -> cli.Parser:
    parser = cli.script("tell_stories", __doc__)
    parser.add_argument("model", metavar="PATH|NAME")
    parser.add_argument("--text", nargs="*", type=Path, default=[], metavar="FILE", help="what it learnt from")
    parser.add_argument("--count", type=cli.number(int, minimum=1), default=10, metavar="N", help="(%(default)s)")
    parser.add_argument("--begin", type=cli.text, default="", metavar="TEXT", help="how each begins (with nothing)")
    parser.add_argument(
        "--temperature", type=cli.number(float, minimum=0), default=0.6, metavar="X", help="(%(default)s)"
    )
    return parser


def longest_runs(stories: Sequence[str], documents: Iterable[str]) -> list[int]:
    """Of each story the words of the longest run that stands in a document word for word; 0 below RUN."""
    words = [re.findall(r"\w+", story.lower()) for story in stories]
    places: dict[tuple[str, ...], list[tuple[int, int]]] = {}
    for number, own in enumerate(words):
        for at in range(len(own) - RUN + 1):
            places.setdefault(tuple(own[at : at + RUN]), []).append((number, at))
    longest = [0] * len(stories)
    for document in documents:
        theirs = re.findall(r"\w+", document.lower())
        for begin in range(len(theirs) - RUN + 1):
            for number, at in places.get(tuple(theirs[begin : begin + RUN]), ()):
                own, length = words[number], RUN
                while own[at + length : at + length + 1] == theirs[begin + length : begin + length + 1] != []:
                    length += 1
                longest[number] = max(longest[number], length)
    return longest


@cli.verb(make_parser)
def main(options: argparse.Namespace) -> int:
    from llama3_scratch.checkpoint.load import load
    from llama3_scratch.data.documents import documents
    from llama3_scratch.inference.answers import answers
    from llama3_scratch.inference.sample import sampler

    model = load(options.model, needs_tokenizer=True)
    tokenizer = model.require_tokenizer()
    prompt = tokenizer.encode(options.begin, bos=tokenizer.add_bos, eos=False)
    answered = answers(
        [prompt] * options.count,
        model,
        max_tokens=model.config.max_seq_len,
        samplers=[sampler(temperature=options.temperature, seed=seed) for seed in range(options.count)],
    )
    stories = [options.begin + answer.text for answer in answered]
    runs = longest_runs(stories, documents(options.text)) if options.text else []
    for seed, story in enumerate(stories):
        copied = f"; {runs[seed]} words in a row stand so in the text" if runs else ""
        print(f"### Seed {seed} ({len(story.split())} words{copied})\n\n{story}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
