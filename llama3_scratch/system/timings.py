"""What an answer took: seconds, tokens, memory."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def peak_rss_bytes() -> int:
    """The most memory that this process has held so far, pages mapped from files included."""
    with contextlib.suppress(OSError, StopIteration):
        # getrusage's number begins with that of whoever started this process; Linux has one of the process alone.
        lines = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@dataclass
class Timings:
    """Seconds and tokens of one batch. Prefill ends with the first new token; what follows is decoding."""

    load_s: float
    prefill_s: float = 0.0
    decode_s: float = 0.0
    prompt_tokens: int = 0
    decoded_tokens: int = 0  # new tokens but the first of each answer
    proposed: int = 0  # draft tokens of speculative decoding, and those that were accepted
    accepted: int = 0

    def add(self, other: Timings) -> None:
        """Count another batch in, of the same model."""
        self.prefill_s, self.decode_s = self.prefill_s + other.prefill_s, self.decode_s + other.decode_s
        self.prompt_tokens += other.prompt_tokens
        self.decoded_tokens += other.decoded_tokens
        self.proposed, self.accepted = self.proposed + other.proposed, self.accepted + other.accepted

    def as_dict(self) -> dict[str, Any]:
        return {
            "load_s": round(self.load_s, 3),
            "prefill_tokens_per_s": round(self.prompt_tokens / self.prefill_s, 2) if self.prefill_s else None,
            "decode_tokens_per_s": round(self.decoded_tokens / self.decode_s, 2) if self.decoded_tokens else None,
            "peak_rss_mb": round(peak_rss_bytes() / 1e6),
            **({"guesses": {"proposed": self.proposed, "accepted": self.accepted}} if self.proposed else {}),
        }

    def __str__(self) -> str:
        numbers = self.as_dict()
        parts = [f"load {self.load_s:.1f} s"]
        if self.prefill_s:
            parts.append(f"prefill {self.prompt_tokens} tokens, {numbers['prefill_tokens_per_s']:.1f}/s")
        if self.decoded_tokens:
            parts.append(f"decode {self.decoded_tokens} tokens, {numbers['decode_tokens_per_s']:.1f}/s")
        if self.proposed:
            parts.append(f"{self.accepted} of {self.proposed} draft tokens accepted")
        return " · ".join([*parts, f"peak {numbers['peak_rss_mb']} MB"])


def duration(seconds: float) -> str:
    """A time as a person says it: `40 s`, `5 min 20 s`, `17 min`, `1 h 20 min`, `2 d 3 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def remaining(begun: float, done: int, total: int) -> str:
    """How long the rest takes at the rate since `begun` (time.perf_counter's): `5 min left`."""
    return f"{duration((time.perf_counter() - begun) / done * (total - done))} left"
