"""Learn a byte-pair encoding from text and write it as Meta's tokenizer.model.

    python scripts/train_tokenizer.py stories.jsonl --size 2048 --out tokenizer

writes tokenizer/tokenizer.model with 2,048 tokens (and two more, for a text's begin and end, in tokenizer_extra.json
beside it), and prints how many bytes a token stands for. `--library` learns the same with the `tokenizers` library, for
texts that are too large for Python.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from llama3_scratch.system import cli

log = logging.getLogger("llama3_scratch")


def make_parser() -> cli.Parser:
    parser = cli.script("train_tokenizer", __doc__)
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="text, JSON lines (.jsonl) or a JSON list (.json)"
    )
    parser.add_argument(
        "--size", type=cli.number(int, minimum=256), default=4096, metavar="N", help="tokens (%(default)s)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--field", default="text", metavar="NAME", help="of a JSON line (%(default)s)")
    parser.add_argument("--library", action="store_true", help="learn with the tokenizers library")
    return parser


@cli.verb(make_parser)
def main(options: argparse.Namespace) -> int:
    from llama3_scratch.data.documents import documents
    from llama3_scratch.system.writing import make_folder
    from llama3_scratch.text.bpe import tokenizer_of, train_bpe, train_bpe_with_library
    from llama3_scratch.text.tokenizer_file import write_tokenizer

    def texts():
        return documents(options.files, field=options.field)

    ranks = (train_bpe_with_library if options.library else train_bpe)(texts(), options.size)
    tokenizer = tokenizer_of(ranks)
    make_folder(options.out)
    write_tokenizer(tokenizer, options.out)
    tokens = n_bytes = 0
    for text in texts():
        tokens += len(tokenizer.encode(text, bos=False, eos=False))
        n_bytes += len(text.encode())
    longest = sorted(ranks, key=len, reverse=True)[:8]
    if len(ranks) < options.size:
        log.warning("%d tokens and not %d: this text has no more pairs to merge", len(ranks), options.size)
    print(f"{len(ranks)} tokens, {n_bytes / max(1, tokens):.2f} bytes of this text each")
    print("longest:", ", ".join(repr(token.decode(errors="replace")) for token in longest))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
