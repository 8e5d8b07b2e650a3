"""How fast byte-pair encodings are that give the same ids: ours, written to be read, tiktoken's and tokenizers'.

    python scripts/bench_bpe.py tests/data/wikitext2.txt --tokenizer weights/storyteller

learns nothing: it encodes the text's documents by the ranks of a tokenizer with each, says how many MB/s that is, and
whether all ids are equal. Needs pip install -e ".[train]".
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

from llama3_scratch.errors import MismatchError, UsageError
from llama3_scratch.system import cli


def make_parser() -> cli.Parser:
    parser = cli.script("bench_bpe", __doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="text, or JSON lines (.jsonl)")
    parser.add_argument(
        "--tokenizer", required=True, metavar="PATH|NAME", help="a tokenizer.model, or a model that has one"
    )
    parser.add_argument(
        "--megabytes", type=cli.number(float, above=0), default=1.0, metavar="X", help="of text (%(default)s)"
    )
    return parser


@cli.verb(make_parser)
def main(options: argparse.Namespace) -> int:
    from llama3_scratch.checkpoint.names import resolve
    from llama3_scratch.data.documents import documents
    from llama3_scratch.text.bpe import encode, with_library
    from llama3_scratch.text.tokenizer_file import read_tokenizer

    tokenizer = read_tokenizer(resolve(options.tokenizer))
    texts: list[str] = []
    for text in documents(options.files):
        if sum(len(text.encode()) for text in texts) >= options.megabytes * 1e6:
            break
        texts.append(text)
    if not texts:
        raise UsageError(f"{options.files[0]}: no text to encode")
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    library = with_library(tokenizer.ranks, pattern=tokenizer.pattern)
    ways: dict[str, Callable[[str], list[int]]] = {
        "tiktoken": lambda text: tokenizer.encode(text, bos=False, eos=False),
        "tokenizers": lambda text: library.encode(text).ids,
        "ours": lambda text: encode(text, tokenizer.ranks, pattern=tokenizer.pattern),
    }
    wanted: list[list[int]] | None = None
    for name, way in ways.items():
        begun = time.perf_counter()
        ids = [way(text) for text in texts]
        seconds = time.perf_counter() - begun
        wanted = wanted or ids
        print(f"{name:10}  {megabytes / seconds:8.2f} MB/s  {'the same ids' if ids == wanted else 'OTHER IDS'}")
        if ids != wanted:
            at = next(i for i, (one, other) in enumerate(zip(ids, wanted, strict=True)) if one != other)
            raise MismatchError(f"{name} gives other ids than tiktoken for document {at + 1}: {texts[at][:60]!r}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
