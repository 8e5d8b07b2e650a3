"""Documents on their way through cleaning, and what became of each: how many were dropped, by which rule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from llama3_scratch.data.clean import broken_rule, c4_lines, tidy
from llama3_scratch.data.duplicates import Exact, Near


@dataclass
class Report:
    """Documents read, kept, and dropped by reason."""

    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, Any]:
        return {"read": self.read, "kept": self.kept, "dropped": dict(self.dropped.most_common())}

    def lines(self) -> Iterator[str]:
        yield f"{self.read:,} documents read, {self.kept:,} kept"
        for reason, count in self.dropped.most_common():
            yield f"{count:>9,} dropped: {reason}"


def cleaned(
    documents: Iterable[str], report: Report, *, rules: Sequence[str] = (), near: float | None = None
) -> Iterator[str]:
    """The documents worth learning from, tidied; what was dropped is counted in `report`.

    Exact duplicates always are, near ones where `near` says how much of a text must have been there before.
    """
    seen, nearly = Exact(), Near(near) if near is not None else None
    for document in documents:
        report.read += 1
        text = tidy(document).strip()
        reason = "nothing in it" if not text else broken_rule(text, rules)
        if reason is None and "c4" in rules:
            text = "\n".join(c4_lines(text))
        if reason is None and seen(text):
            reason = "stood there before"
        if reason is None and nearly is not None and nearly(text):
            reason = f"nearly stood there before ({near:g} in common)"
        if reason is None:
            report.kept += 1
            yield text
        else:
            report.dropped[reason] += 1
