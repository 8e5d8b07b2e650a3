"""The standard streams, whatever encoding they come in: no character ends a program, and none is lost.

Files and pipes are UTF-8, in and out, whatever the locale and PYTHONIOENCODING say: what is written on one machine is
read on another. A terminal keeps its encoding. Of what it can't show, punctuation and signs become the nearest in
ASCII, and all else is escaped as in JSON (`\\u4f60`); JSON itself is escaped there as a whole, so that it stays exact.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import math
import os
import sys
from typing import Any

_LEGIBLE = "llama3_scratch.legible"
# What our own messages hold, and what models write most.
NEAREST = {
    **{chr(0x2400 + code): f"^{chr(code ^ 64)}" for code in range(32)},  # how text.visible shows control characters
    **dict.fromkeys("·–—−─", "-") | dict.fromkeys("‘’‚", "'") | dict.fromkeys("“”„", '"'),
    **{"×": "x", "•": "*", "…": "...", "\xa0": " ", "�": "?", "§": "section ", "µ": "u", "√": "sqrt ", "Σ": "sum "},
    **{"␣": "_", "⏎": "$", "⇥": ">", "∅": "0", "⟨": "<", "⟩": ">"},  # of text.label, as wide, so that columns stay
    **{"→": "->", "←": "<-", "↔": "<->", "≤": "<=", "≥": ">=", "≠": "!=", "≈": "~", "±": "+-", "²": "^2", "³": "^3"},
}


def _legible(error: UnicodeError) -> tuple[str, int]:
    """An error handler of codecs, by which every encoding takes every text."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(NEAREST.get(character) or json.dumps(character)[1:-1] for character in text), error.end


def prepare() -> None:
    """Make the three streams as the module says. What begins a program calls this before it reads or prints."""
    codecs.register_error(_LEGIBLE, _legible)
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started us, or never there: what is printed goes nowhere
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: PTH123, SIM115
        elif not hasattr(stream, "reconfigure"):
            continue  # a notebook's, or a text in memory
        elif name == "stdin":
            with contextlib.suppress(io.UnsupportedOperation):  # it has been read from
                if not stream.isatty():
                    stream.reconfigure(encoding="utf-8-sig")
                elif codecs.lookup(stream.encoding).name == "ascii":  # as in the C locale; UTF-8 holds all of ASCII
                    stream.reconfigure(encoding="utf-8", errors="strict")
        else:
            stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors=_LEGIBLE)


def settle() -> None:
    """Flush stdout. Where it takes no more, the rest goes nowhere, so that the interpreter's own flush can't fail."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):  # a stream in memory has no file behind it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_json(value: Any, indent: int | None = None) -> None:
    """Print the value as JSON, at once and exact; null for a float that is no number, as JSON knows none."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    escaped = not codecs.lookup(encoding).name.startswith("utf-")
    print(json.dumps(_finite(value), ensure_ascii=escaped, indent=indent, allow_nan=False), flush=True)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
