"""Check a folder of weights: its files against checklist.chk, and on request every tensor's numbers."""

from __future__ import annotations

import argparse

from llama3_scratch.checkpoint.checklist import CHECKLIST, check_files
from llama3_scratch.checkpoint.names import resolve
from llama3_scratch.errors import FileError
from llama3_scratch.system import cli


def make_parser() -> cli.Parser:
    parser = cli.Parser("verify", __doc__ or "")
    parser.add_argument(
        "folder",
        metavar="FOLDER",
        help="a folder of weights or the name of downloaded ones; with --tensors a file too",
    )
    parser.add_argument(
        "--tensors", action="store_true", help="load every tensor: NaN, infinity, all zero, absurd size"
    )
    return parser


@cli.verb(make_parser)
def main(options: argparse.Namespace) -> int:
    folder = resolve(options.folder)
    if not folder.is_dir() and not options.tensors:
        raise FileError(f"{folder}: expected a folder of weights, found a file; --tensors scans a file's numbers too")
    if (folder / CHECKLIST).exists():
        for name in check_files(folder):
            print(f"{name}: OK")
    elif not options.tensors:
        nearby = (
            " (there is one in original/: verify that folder)" if (folder / "original" / CHECKLIST).exists() else ""
        )
        raise FileError(f"{folder}: no {CHECKLIST} to verify against{nearby}; --tensors scans the numbers without one")
    if options.tensors:
        from llama3_scratch.checkpoint.check import SCAN_LIMIT, scan
        from llama3_scratch.checkpoint.load import load
        from llama3_scratch.stored import n_bytes

        checkpoint = load(folder)
        if n_bytes(checkpoint.params) >= SCAN_LIMIT:  # else load has done it
            scan(checkpoint.params, folder)
        print(f"{len(checkpoint.params)} tensors: OK")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
