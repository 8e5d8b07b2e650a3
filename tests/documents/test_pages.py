"""The documents' pages: links lead somewhere, both languages show the same, no file and no verb is left out."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from llama3_scratch.__main__ import verbs
from tests.documents import pages
from tests.house import CORE, ROOMS

ROOT = pages.ROOT
ENGLISH = [page for page in pages.PAGES if not page.endswith(".zh.md")]
OTHERS = [
    "walkthrough.md",
    "walkthrough.zh.md",
    "tests/data/README.md",
]


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def prose(page: str) -> str:
    """The page without its code blocks, in which a # is no heading, and without what only cog reads."""
    without = re.sub(r"^```.*?^```", "", text(page), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"<!--.*?-->", "", without, flags=re.DOTALL)


def anchors(page: str) -> set[str]:
    """The names that GitHub gives to a page's headings."""
    names = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", name.lower()).replace(" ", "-") for name in names}


def links(page: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose(page)))


@pytest.mark.parametrize("page", [*pages.PAGES, *OTHERS])
def test_every_link_leads_to_a_file_and_a_heading_that_are_there(page):
    for link in links(page):
        if re.match(r"https?:", link):
            continue
        target, _, anchor = unquote(link).partition("#")
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), f"{page}: {link}"
        if anchor:
            assert anchor in anchors(path.resolve().relative_to(ROOT).as_posix()), f"{page}: {link}"


@pytest.mark.parametrize("page", pages.PAGES)
def test_every_page_leads_to_its_other_language_and_back_to_the_front(page):
    other = "README.md" if page.endswith(".zh.md") else "README.zh.md"
    assert other in links(page)
    if "/" in page:
        front = "../" * page.count("/") + Path(page).name
        assert front in links(page)


def shape(page: str) -> list[tuple]:
    """Headings by their level, tables by their size, code by what runs of it, in order."""
    found: list[tuple] = []
    lines = iter(text(page).splitlines())
    for line in lines:
        if line.startswith("```"):
            body = [line]
            for inner in lines:
                if inner == "```":
                    break
                # Comments and what is asked may be in the reader's language.
                body.append(
                    re.sub(r'"[^"]*[^\x00-\x7f][^"]*"|(?<=[-\w]) "[A-Z][^"]*[.?]"', " TEXT", re.sub(r"#.*", "", inner))
                )
            found.append(("code", *(" ".join(inner.split()) for inner in body)))
        elif line.startswith("#"):
            found.append(("heading", line.index(" ")))
        elif line.startswith("|"):
            if found and found[-1][0] == "table":
                found[-1] = ("table", found[-1][1], found[-1][2] + 1)
            else:
                found.append(("table", len(re.findall(r"(?<!\\)\|", line)), 1))
        elif line.startswith(("* ", "![", "<details>")):
            found.append((line.split()[0][:2],))
    return found


@pytest.mark.parametrize("page", ENGLISH)
def test_both_languages_have_the_same_headings_tables_and_code(page):
    assert shape(page) == shape(page.replace(".md", ".zh.md"))


@pytest.mark.parametrize("room", pages.READING)
def test_every_file_of_a_room_stands_in_its_reading_order(room):
    assert sorted(pages.READING[room].split()) == sorted(pages.present(room)), "tests/documents/pages.py: READING"


def test_every_room_has_a_page_a_reading_order_and_a_sentence():
    assert list(pages.READING) == ["core", *ROOMS, "scripts"]
    for room in ROOMS:
        assert pages.about(pages.PACKAGE / room / "__init__.py").count(".") >= 1, f"{room}/__init__.py says nothing"


def test_every_room_file_and_verb_has_its_sentence_in_chinese():
    files = {pages.key_of(pages.folder(room) / name) for room in pages.READING for name in pages.present(room)}
    wanted = files | set(ROOMS) | {f"{verb}.py" for verb in verbs()}
    assert set(pages.CHINESE) == wanted, "tests/documents/chinese.json"
    assert all(
        re.search("[一-鿿]", line) and line.endswith("。") for line in pages.CHINESE.values() if "？" not in line
    )


def test_every_verb_is_told_of_on_a_page():
    assert set(pages.HOME) == set(verbs())
    for verb, room in pages.HOME.items():
        assert f"<code>python -m llama3_scratch.{verb}</code>" in text(f"llama3_scratch/{room}/README.md")


def test_every_measurement_is_shown_in_both_languages_with_its_day_machine_and_command():
    for path in pages.RESULTS.glob("*.json"):
        for call in ("results_table", "results_note"):
            for language, ending in (("", "README.md"), (', "zh"', "README.zh.md")):
                called = re.compile(rf'{call}\("{re.escape(path.stem)}"{language}[,)]')
                shown = [page for page in pages.PAGES if Path(page).name == ending and called.search(text(page))]
                assert shown, f"{path.name}: no {ending} has its {call}"
        kept = pages.result(path.stem)
        assert {"date", "machine", "software", "command", "columns", "rows"} <= kept.keys(), path.name
        assert all(len(row) == len(kept["columns"]) for row in kept["rows"]), path.name


def test_data_that_a_measurement_took_are_in_the_repository_or_their_source_is_named_beside_it():
    """Whoever repeats it can get the same file: a sentence on the page names it, with a link."""
    named = 0
    for path in pages.RESULTS.glob("*.json"):
        for data in re.findall(r"--data (\S+)", pages.result(path.stem)["command"]):
            if (ROOT / data).exists():
                continue
            named += 1
            shown = [page for page in pages.PAGES if f'results_table("{path.stem}"' in text(page)]
            for page in shown:
                lines = [line for line in prose(page).splitlines() if line.startswith(f"`{data}`")]
                assert any(re.search(r"\]\(https://", line) for line in lines), f"{page}: where {data} comes from"
    assert named >= 3


def test_figures_keep_the_digits_that_they_were_published_with():
    assert pages.cell("0.80", {}, "en") == "0.80"
    assert pages.cell(46080, {}, "en") == "46,080"
    assert pages.cell({"mean": 1022, "sd": 25}, {}, "en") == "1,022\u00a0±\u00a025"
    assert pages.cell(["1.408", "1.066"], {"between": " → "}, "en") == "1.408 → 1.066"
    assert pages.cell("3.0", {"unit": " GB"}, "en") == "3.0\u00a0GB"
    assert pages.cell(None, {"unit": " GB"}, "en") == ""
    assert pages.cell({"en": "all", "zh": "全部"}, {"unit": " GB"}, "zh") == "全部"


def test_what_bench_prints_as_json_becomes_a_table_in_both_languages(tmp_path, monkeypatch):
    timed = {"mean": 131.26, "sd": 1.24, "percent_of_limit": 64.4, "ratios": {"hf bf16": 5.51}}
    row = {"model": "smollm2-135m", "engine": "llama3_scratch", "form": "int8", "kv": 32, "batch": 1}
    found = {
        **{"command": "bench", "date": "2026-11-27T16:00:00+00:00", "cpu": "AMD EPYC", "repeats": 5, "threads": 2},
        **{"versions": {"python": "3.11.2", "torch": "2.13.0"}, "builds": {}, "machine": {"bandwidth": 30.4e9}},
        **{"tests": ["pp512", "tg96"], "rows": [row | {"peak_bytes": 4.1e8, "tests": {"tg96": timed}}]},
    }
    (tmp_path / "new.json").write_text(json.dumps(found))
    monkeypatch.setattr(pages, "RESULTS", tmp_path)
    shown = pages.results_table("new", "zh").replace("\u00a0", " ").splitlines()
    assert shown[0].startswith("| 模型 | 程序 | 权重 |")
    assert (
        shown[2]
        == "| smollm2-135m | llama3_scratch | int8 | 32 | 1 | 410 MB |  |  | 131 ± 1.2 | 64 % | tg96 hf bf16 5.51× |"
    )
    assert pages.results_note("new") == (
        "Measured on 2026-11-27 on an AMD EPYC (Python 3.11.2, torch 2.13.0, 2 threads, 5 runs, memory that a plain "
        "loop reads at 30 GB/s), by `bench`."
    )


def test_what_bench_prints_of_servers_becomes_a_table_in_both_languages(tmp_path, monkeypatch):
    figures = {"first_p50": 0.0512, "first_p95": 0.1, "between_p50": 0.0104, "between_p95": 0.012, "between_max": 0.2}
    figures |= {"cached_share": 0.873, "health_p99": 0.004, "server_cpu": 10.04, "client_cpu": 0.5}
    rows = [
        {"server": server, "scenario": "shared", "users": 8, "runs": [figures | {"tokens_per_second": rate}]}
        for server, rate in (("llama3_scratch", 600.0), ("llama.cpp", 150.0))
    ]
    found = {
        **{"kind": "serve", "command": "bench --serve", "date": "2026-11-27T16:00:00+00:00", "cpu": "AMD EPYC"},
        **{"repeats": 5, "threads": 2, "versions": {"python": "3.11.2", "torch": "2.13.0"}},
        **{"builds": {"llama.cpp": "0 (native)"}, "rows": rows, "batches": []},
    }
    (tmp_path / "new.json").write_text(json.dumps(found))
    monkeypatch.setattr(pages, "RESULTS", tmp_path)
    shown = pages.results_table("new").replace("\u00a0", " ").splitlines()
    assert shown[2].startswith("| a shared system prompt, new | 8 | llama3_scratch | 600 | 4.00× | 0.051 · 0.100 s |")
    assert shown[2].endswith("| 10.4 · 12.0 · 200 ms | 87 % | 4.0 ms | 10.0 · 0.5 s |")
    assert pages.results_table("new", "zh").splitlines()[3].startswith("| 共同的系统提示，第一次见 | 8 | llama.cpp |")
    assert pages.served_rows("new", 8) == [0, 1] and pages.served_rows("new", 4) == []
    assert "llama.cpp 0 (native), 2 threads, 5 runs), by `bench --serve`." in pages.results_note("new")


# From the front page alone: the page that a newcomer turns to, and the file that they look for.
WALK = {
    "RoPE": ("llama3_scratch/model.py", "rope_frequencies"),
    "a KV cache quantised": ("llama3_scratch/caches/quantized.py", "KV caches beside"),
    "a token chosen": ("llama3_scratch/inference/sample.py", "next token is chosen"),
    "a GGUF block read": ("llama3_scratch/checkpoint/ggml_blocks.py", "GGUF and its blocks"),
    "a training step": ("llama3_scratch/training/loop.py", "training step"),
}


@pytest.mark.parametrize("sought", WALK)
def test_a_newcomer_finds_it_within_two_links_of_the_front_page(sought):
    wanted, word = WALK[sought]
    (line,) = (line for line in text("README.md").splitlines() if line.startswith("| [") and word in line)
    first = [(ROOT / link).resolve() for link in re.findall(r"\]\(([^)]+)\)", line)]
    second = [
        (page.parent / link).resolve()
        for page in first
        if page.suffix == ".md"
        for link in links(page.relative_to(ROOT).as_posix())
    ]
    assert ROOT / wanted in [*first, *second]


def test_the_core_is_listed_in_the_order_of_its_imports():
    assert pages.in_order("core") == [f"{name}.py" for name in CORE]
