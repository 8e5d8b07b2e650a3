"""`/metrics`, in Prometheus' text format: names, types, and figures that are what happened."""

from __future__ import annotations

import re

from llama3_scratch.serving.metrics import Histogram

NAMES = """num_requests_running num_requests_waiting kv_cache_usage_perc prompt_tokens_total generation_tokens_total
prefix_cache_queries_total prefix_cache_hits_total num_preemptions_total request_success_total
time_to_first_token_seconds inter_token_latency_seconds e2e_request_latency_seconds request_queue_time_seconds"""


def figures(client) -> dict[str, float]:
    found = {}
    for line in client.get("/metrics").body.decode().splitlines():
        assert re.fullmatch(r"# (HELP|TYPE) \S+ .+|[a-z_0-9]+(\{\w+=\"[^\"]*\"\})? [-+0-9.einf]+", line), line
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            found[name.removeprefix("llama3_scratch_")] = float(value)
    return found


def test_all_metrics_are_there_with_their_types(client):
    text = client.get("/metrics").body.decode()
    for name in NAMES.split():
        (kind,) = re.findall(rf"^# TYPE llama3_scratch_{name} (\w+)$", text, re.MULTILINE)
        assert kind == {"total": "counter", "seconds": "histogram"}.get(name.rpartition("_")[2], "gauge")
    assert client.get("/metrics").headers["content-type"].startswith("text/plain; version=0.0.4")


def test_the_figures_are_what_happened(client, says):
    before = figures(client)
    says("abc", "abc", None)
    used = client.chat("hello " * 30).json["usage"]
    again = client.chat("hello " * 30).json["usage"]
    short = client.chat("hi", max_tokens=2).json["usage"]
    after = figures(client)

    def grown(name: str) -> float:
        return after[name] - before[name]

    assert grown("generation_tokens_total") == 4 + 4 + 2
    cached = [usage["prompt_tokens_details"]["cached_tokens"] for usage in (used, again, short)]
    assert cached[1] >= 128 and grown("prefix_cache_hits_total") == sum(cached)
    assert grown("prompt_tokens_total") == grown("prefix_cache_queries_total") > 2 * used["prompt_tokens"]
    assert grown('request_success_total{finished_reason="stop"}') == 2
    assert grown('request_success_total{finished_reason="length"}') == 1
    assert grown("time_to_first_token_seconds_count") == grown("e2e_request_latency_seconds_count") == 3
    assert grown("request_queue_time_seconds_count") == 3
    assert grown("inter_token_latency_seconds_count") == 3 + 3 + 1
    assert after["num_requests_running"] == after["num_requests_waiting"] == after["kv_cache_usage_perc"] == 0


def test_errors_are_counted_by_status(client):
    before = figures(client).get('request_errors_total{status="404"}', 0)
    client.chat("hi", model="nobody")
    assert figures(client)['request_errors_total{status="404"}'] == before + 1


def test_a_histogram_counts_what_is_at_most_so_much():
    histogram = Histogram()
    for seconds in (0.001, 0.0011, 7000.0):
        histogram.observe(seconds)
    lines = dict(line.rsplit(" ", 1) for line in histogram.lines("x"))
    assert lines['llama3_scratch_x_bucket{le="0.001"}'] == "1" and lines['llama3_scratch_x_bucket{le="0.0025"}'] == "2"
    assert lines['llama3_scratch_x_bucket{le="600"}'] == "2" and lines['llama3_scratch_x_bucket{le="+Inf"}'] == "3"
    assert lines["llama3_scratch_x_count"] == "3" and float(lines["llama3_scratch_x_sum"]) > 7000
