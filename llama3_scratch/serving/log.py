"""A line a request on stderr: sizes and times, never what was said."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from llama3_scratch.serving.answer import Answer
from llama3_scratch.serving.responses import usage

log = logging.getLogger("llama3_scratch")

QUIET = {"/health", "/v1/health", "/metrics", "/v1/metrics", "/v1/look/pages"}  # asked every second by what watches


@dataclass
class Told:
    """What an endpoint says of a request for its line in the log."""

    prompt_tokens: int | None = None
    cached_tokens: int = 0
    generated: int = 0
    ended: str = ""  # finish reasons, or why there is none

    def finished(self, answers: Sequence[Answer], reasons: Sequence[str]) -> None:
        """The answers have come to their ends."""
        used = usage(answers)
        self.prompt_tokens, self.generated = used["prompt_tokens"], used["completion_tokens"]
        self.cached_tokens = used["prompt_tokens_details"]["cached_tokens"]
        self.ended = ", ".join(reasons)


def log_request(method: str, path: str, status: int, seconds: float, told: Told) -> None:
    if path in QUIET and status < 400:
        return
    parts = [f"{printable(method, 12)} {printable(path, 99)} {status or 'left'}", f"{seconds:.2f} s"]
    if told.prompt_tokens is not None:
        cached = f" ({told.cached_tokens} cached)" if told.cached_tokens else ""
        parts.append(f"{told.prompt_tokens}{cached} + {told.generated} tokens")
    if told.ended:
        parts.append(told.ended)
    log.info("%s", " · ".join(parts))


def printable(text: str, longest: int) -> str:
    """A stranger's text, fit for one line of a log or a terminal: line ends and all that drives one are escaped."""
    cut = text if len(text) <= longest else f"{text[:longest]}…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)
