"""Counters, gauges and histograms in the text format that Prometheus reads."""

from __future__ import annotations

import bisect
import itertools
import time
from collections import Counter
from collections.abc import Iterable

from llama3_scratch.inference.requests import Stats

PREFIX = "llama3_scratch_"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 600.0)


class Histogram:
    """How many values were at most so large."""

    def __init__(self) -> None:
        self._counts = [0] * (len(SECONDS) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect.bisect_left(SECONDS, seconds)] += 1
        self._sum += seconds

    def lines(self, name: str) -> Iterable[str]:
        bounds = [*(f"{bound:g}" for bound in SECONDS), "+Inf"]
        for bound, count in zip(bounds, itertools.accumulate(self._counts), strict=True):
            yield f'{PREFIX}{name}_bucket{{le="{bound}"}} {count}'
        yield f"{PREFIX}{name}_sum {self._sum:.9g}"
        yield f"{PREFIX}{name}_count {sum(self._counts)}"


class Metrics:
    """What was answered since the start; told from the event loop alone."""

    def __init__(self) -> None:
        self.started = time.time()
        self.finished: Counter[str] = Counter()  # answers by their finish reason
        self.refused: Counter[int] = Counter()  # requests by their status
        self.requests = 0
        self.first_token, self.between_tokens = Histogram(), Histogram()
        self.whole_request, self.queued = Histogram(), Histogram()

    def asked(self, status: int, seconds: float) -> None:
        """A request is over; status 0: its client left before it was answered."""
        self.requests += 1
        if status >= 400:
            self.refused[status] += 1

    def text(self, stats: Stats) -> str:
        """Everything, with what the engine says of itself."""
        gauges = {
            "num_requests_running": ("answers that are generated now", stats.running),
            "num_requests_waiting": ("answers that wait for their first step", stats.waiting),
            "kv_cache_usage_perc": ("share of the pages that answers hold, 0 to 1", stats.pages_held / stats.pages),
        }
        counters = {
            "prompt_tokens_total": ("tokens of prompts", stats.prompt_tokens),
            "generation_tokens_total": ("tokens that were generated", stats.generated_tokens),
            "prefix_cache_queries_total": ("tokens of prompts that were looked for in the pages", stats.prompt_tokens),
            "prefix_cache_hits_total": ("of these, those that were found", stats.cached_tokens),
            "num_preemptions_total": ("answers that had to give their pages back and begin anew", stats.preemptions),
        }
        histograms = {
            "time_to_first_token_seconds": ("from a request to its first token", self.first_token),
            "inter_token_latency_seconds": ("between two tokens of an answer", self.between_tokens),
            "e2e_request_latency_seconds": ("from a request to its answer's end", self.whole_request),
            "request_queue_time_seconds": ("from a request to the first step that works on it", self.queued),
        }
        name = "start_time_seconds"
        lines = [f"# HELP {PREFIX}{name} when the server was started", *_kind(name, "gauge")]
        lines.append(f"{PREFIX}{name} {self.started:.3f}")
        for name, (about, value) in gauges.items():
            lines += [f"# HELP {PREFIX}{name} {about}", *_kind(name, "gauge"), f"{PREFIX}{name} {value:.6g}"]
        for name, (about, count) in counters.items():
            lines += [f"# HELP {PREFIX}{name} {about}", *_kind(name, "counter"), f"{PREFIX}{name} {count}"]
        name = "request_success_total"
        lines += [f"# HELP {PREFIX}{name} answers that came to their end", *_kind(name, "counter")]
        for reason in sorted({"stop", "length", *self.finished}):
            lines.append(f'{PREFIX}{name}{{finished_reason="{reason}"}} {self.finished[reason]}')
        name = "request_errors_total"
        lines += [f"# HELP {PREFIX}{name} requests that weren't answered", *_kind(name, "counter")]
        lines += [f'{PREFIX}{name}{{status="{status}"}} {n}' for status, n in sorted(self.refused.items())]
        for name, (about, histogram) in histograms.items():
            lines += [f"# HELP {PREFIX}{name} {about}", *_kind(name, "histogram"), *histogram.lines(name)]
        return "\n".join(lines) + "\n"


def _kind(name: str, kind: str) -> list[str]:
    return [f"# TYPE {PREFIX}{name} {kind}"]
