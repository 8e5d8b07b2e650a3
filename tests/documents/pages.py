"""What the documents' cog lines print, in English and Chinese: tables of rooms, files, verbs, options, measurements."""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import re
import runpy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from llama3_scratch.__main__ import verbs
from llama3_scratch.benchmark.report import OURS
from llama3_scratch.benchmark.served import medians, ratios, shares
from tests.house import CORE, PACKAGE, ROOMS, VERBS

ROOT = PACKAGE.parent
RESULTS = PACKAGE / "benchmark" / "results"
CHINESE: dict[str, str] = json.loads((Path(__file__).parent / "chinese.json").read_text(encoding="utf-8"))

# The files of the core, of each room and of scripts/, in reading order; test_pages.py holds that none is missing.
READING = {
    "core": " ".join(f"{name}.py" for name in CORE),
    "native": "kernels.py layout.py decode.py native.h portable.c avx2.c avx512.c matmul.c decode.c "
    "sampling.py sample.c pool.c constants.c",
    "system": "cli.py fields.py stdio.py signals.py files.py json_fields.py writing.py memory.py machine.py "
    "timings.py progress.py wait_policy.py",
    "text": "tokenizer.py tokenizer_file.py byte_level.py bpe.py merge_order.py pre_tokenizers.py oniguruma.py "
    "hf_tokenizer.py added_tokens.py hf_added_tokens.py detokenizer.py dialog.py tool_calls.py "
    "tool_prompts.py tool_call_stream.py openai_messages.py chat_format.py chat_template.py marks.py "
    "chat_template_process.py chat_template_worker.py",
    "params": "quantize.py lora.py hf_layout.py",
    "checkpoint": "load.py names.py check.py params_json.py meta.py hf.py config_json.py safetensors_file.py "
    "hf_out.py gguf.py gguf_header.py gguf_rope.py ggml_blocks.py gguf_vocab.py gguf_out.py llama2c.py peft.py "
    "peft_config.py peft_out.py adapters.py conversion.py description.py description_table.py "
    "fetch.py hub.py remote.py checklist.py fingerprint.py",
    "caches": "quantized.py sliding.py paged.py prompt_cache.py",
    "data": "documents.py clean.py duplicates.py report.py shards.py windows.py batches.py conversations.py "
    "conversation_batches.py labelled.py labelled_batches.py",
    "inference": "sample.py grammar.py fast_forward.py prefill.py requests.py stream.py speculate.py engine/engine.py "
    "engine/pages.py engine/thread.py non_finite.py choices.py loading.py factories.py prompt_encoding.py "
    "timed.py answers.py notebook.py conversation.py prompt_cache_file.py",
    "terminal": "flags.py prompts.py batches.py printer.py repl.py line_editor.py word_wrap.py",
    "compare": "difference.py tensor_names.py hf_layers.py parity.py",
    "trace": "tracer.py table.py shapes.py files.py page.py page.html page.css page.js views.py position.py cost.py "
    "roofline.py compare.py references.py choice.py session.py flags.py",
    "evaluation": "reference.py scoring.py perplexity.py multiple_choice.py instructions.py judge.py table.py",
    "benchmark": "measure.py ours.py peers.py worker.py environment.py report.py startup.py served.py load.py flags.py",
    "training": "loop.py loss.py optimizer.py choices.py run.py checkpoints.py record.py curve.py flops.py "
    "pretraining.py finetuning.py classifier.py classifying.py compiled.py fp8.py flags.py",
    "serving": "choices.py run.py app.py endpoint.py security.py limits.py json_body.py body_fields.py requests.py "
    "errors.py prompts.py said_before.py answering.py answer.py generation.py service.py engine.py chat.py "
    "completions.py prompt_logprobs.py embeddings.py models.py tokenize.py health.py metrics.py responses.py "
    "streaming.py log.py look.py images.py page.py page/index.html page/main.js page/chat.js page/answer.js "
    "page/message.js page/composer.js page/sidebar.js page/markdown.js page/store.js page/api.js page/settings.js "
    "page/settings_form.js page/i18n.js page/dom.js page/look.js page/tokens.js page/lens.js page/attention.js "
    "page/pages.js page/proof.js page/studio.js page/base.css page/chat.css page/look.css page/studio.css",
    "documents": "runner.py blocks.py notebook.py shown.py pictures.py",
    "scripts": "train_tokenizer.py prepare_data.py pretrain.py search_pretraining.py finetune_lora.py "
    "finetune_classifier.py quality.py random_checkpoint.py bench_peers.sh native_llama_bench.sh "
    "bench_training.py bench_finetune.py bench_trace.py bench_bpe.py page_pictures.py storyteller.sh write_stories.py "
    "storyteller/stories.py storyteller/words.py storyteller/plots.txt tinystories.py story_requests.py "
    "storyteller/requests.py ask_for_stories.py tell_stories.py trace_picture.py test_in_debian.sh",
}

# Files that hold no sentence about themselves.
ABOUT = {
    "trace/page.html": "The page's frame.",
    "trace/page.css": "How the page looks, by day and by night.",
    "trace/page.js": "What the page does: unpacks the steps, draws them, answers clicks and keys.",
    "serving/page/index.html": "The page's frame: its three views and its dialogs, without a word in it.",
    "scripts/storyteller/plots.txt": "The plots of `stories`, in words that can be chosen from.",
}


def folder(room: str) -> Path:
    return ROOT / room if room == "scripts" else PACKAGE if room == "core" else PACKAGE / room


def present(room: str) -> list[str]:
    """A room's files that a reader may want to open, by their paths within it."""
    if room == "core":
        return [f"{name}.py" for name in CORE]
    kinds = (".py", ".sh", ".c", ".h", ".txt", ".html", ".css", ".js")
    paths = folder(room).rglob("*")
    found = (path for path in paths if path.suffix in kinds and path.name != "__init__.py")
    return sorted(path.relative_to(folder(room)).as_posix() for path in found)


def in_order(room: str) -> list[str]:
    listed = [name for name in READING[room].split() if name in present(room)]
    return listed + [name for name in present(room) if name not in listed]


def about(path: Path) -> str:
    """What a file says of itself: the first sentences of its docstring, or of its first comment."""
    if key_of(path) in ABOUT:
        return ABOUT[key_of(path)]
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        said = (ast.get_docstring(ast.parse(text)) or "").partition("\n\n")[0]
    elif path.suffix == ".sh":
        said = text.splitlines()[1].removeprefix("# ")
    else:
        comment = text.removeprefix("/* ").partition("*/")[0].replace("\n * ", " ")
        said = comment.partition("\n")[0].strip()
    said = " ".join(said.split())
    return (
        said
        if said.endswith((".", "?"))
        else said.rpartition(". ")[0] + "."
        if ". " in said
        else said.rstrip(":") + "."
    )


def key_of(path: Path) -> str:
    """What chinese.json calls a file or a folder: `model.py`, `text/bpe.py`, `scripts/pretrain.py`, `text`."""
    return path.relative_to(ROOT if path.is_relative_to(ROOT / "scripts") else PACKAGE).as_posix()


def say(path: Path, language: str) -> str:
    """A line about a file or a room; in English where nobody has said it in Chinese yet, which a test finds."""
    english = about(path / "__init__.py" if path.is_dir() else path)
    return english if language == "en" else CHINESE.get(key_of(path), english)


def table(rows: Iterable[Sequence[str]]) -> str:
    first, *others = rows
    return "\n".join(
        [f"| {' | '.join(first)} |", "|---" * len(first) + "|", *(f"| {' | '.join(row)} |" for row in others)]
    )


def heads(language: str, english: Sequence[str], chinese: Sequence[str]) -> Sequence[str]:
    return english if language == "en" else chinese


def files_table(room: str, language: str = "en") -> str:
    """A room's files in reading order, with links from the room's own page."""
    rows = [(f"[`{name}`]({name})", say(folder(room) / name, language)) for name in in_order(room)]
    return table([heads(language, ("file", "what it is"), ("文件", "内容")), *rows])


def rooms_table(language: str = "en") -> str:
    """The map on the front page: the core, then a line a room."""
    page = "README.md" if language == "en" else "README.zh.md"
    functions = ", ".join(f"`{name}`" for name in functions_of(PACKAGE / "model.py"))
    others = ", ".join(f"[`{name}.py`](llama3_scratch/{name}.py)" for name in CORE if name != "model")
    core = {
        "en": f"What a Llama is. [`model.py`](llama3_scratch/model.py) has {functions}; beside it {others}.",
        "zh": f"模型本身。[`model.py`](llama3_scratch/model.py) 里有 {functions}；旁边是 {others}。",
    }
    rooms = [(f"[`{room}/`](llama3_scratch/{room}/{page})", say(PACKAGE / room, language)) for room in ROOMS]
    first = heads(language, ("where", "what is there"), ("位置", "内容"))
    title = heads(language, ("the core",), ("核心",))[0]
    return table([first, (f"[{title}](llama3_scratch/{page})", core[language]), *rooms])


def functions_of(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]


def verb_table(language: str = "en", root: str = "llama3_scratch/") -> str:
    """Every verb, with a link to the page that tells of it."""
    page = "README.md" if language == "en" else "README.zh.md"
    rows = []
    for verb, line in verbs().items():
        said = line if language == "en" else CHINESE.get(f"{verb}.py", line)
        rows.append((f"[`{verb}`]({root}{HOME[verb]}/{page})", said))
    return table(
        [
            heads(
                language, ("`python -m llama3_scratch.…`", "what it does"), ("`python -m llama3_scratch.…`", "做什么")
            ),
            *rows,
        ]
    )


# The room whose page tells of a verb.
HOME = {
    "generate": "inference",
    "chat": "terminal",
    "describe": "checkpoint",
    "download": "checkpoint",
    "verify": "checkpoint",
    "convert": "checkpoint",
    "bench": "benchmark",
    "evaluate": "evaluation",
    "parity": "compare",
    "serve": "serving",
    "walkthrough": "documents",
}


def options(name: str) -> list[tuple[str, str]]:
    """A verb's or a script's arguments and options with their help, those left out that all have."""
    scope = (
        runpy.run_path(str(ROOT / name))
        if name.endswith(".py")
        else vars(importlib.import_module(f"llama3_scratch.{name}"))
    )
    parser: argparse.ArgumentParser = scope["make_parser"]()
    found = []
    for action in parser._actions:
        if action.help == argparse.SUPPRESS or {"--help", "--quiet", "--debug"} & set(action.option_strings):
            continue
        said = (action.help or "") % {**vars(action), "prog": parser.prog}
        words = [", ".join(action.option_strings), value_of(action)]
        found.append((" ".join(word for word in words if word), " ".join(said.split())))
    return found


def value_of(action: argparse.Action) -> str:
    """What an option or an argument takes, as --help shows it; "" for a flag."""
    if action.nargs == 0:
        return ""
    named = action.metavar or (
        "{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest.upper()
    )
    named = named if isinstance(named, str) else " ".join(named)
    if action.nargs in ("?", "*"):
        return f"[{named}]" if action.nargs == "?" else f"[{named} …]"
    return f"{named} …" if action.nargs == "+" else named


def options_table(name: str, language: str = "en") -> str:
    """A folded table of options, as --help says them."""
    command = f"python {name}" if name.endswith(".py") else f"python -m llama3_scratch.{name}"
    title = (
        f"The options of <code>{command}</code>"
        if language == "en"
        else f"<code>{command}</code> 的选项（取自 <code>--help</code>，英文）"
    )
    rows = [(f"`{shown.replace('|', chr(92) + '|')}`", said.replace("|", "\\|")) for shown, said in options(name)]
    body = table([heads(language, ("option", "what it does"), ("选项", "作用")), *rows])
    return f"<details><summary>{title}</summary>\n\n{body}\n\n</details>"


def result(name: str) -> dict[str, Any]:
    """A measurement as it was kept: as a table of our own, or what `bench --json` printed, made into one.

    Decimals of a table stay as they were written: 0.80, not 0.8.
    """
    text = (RESULTS / f"{name}.json").read_text(encoding="utf-8")
    kept = json.loads(text, parse_float=str)
    if "columns" in kept:
        return kept
    found = json.loads(text)
    return of_served(found) if found.get("kind") == "serve" else of_bench(found)


SCENARIOS = {
    "short": {"en": "short questions", "zh": "简短的问题"},
    "shared": {"en": "a shared system prompt, new", "zh": "共同的系统提示，第一次见"},
    "decode": {"en": "all answers under way", "zh": "所有回答都在进行"},
    "cached": {"en": "a system prompt that is known", "zh": "已知的系统提示"},
    "intruder": {"en": "four, and a long prompt comes", "zh": "四个，来了一个长提示"},
    "turns": {"en": "chats of six turns", "zh": "六轮的对话"},
}


def of_served(found: dict[str, Any]) -> dict[str, Any]:
    """What `bench --serve --json` printed as a table: a row a scenario, users and server, of medians."""
    columns: list[dict[str, str]] = [{"en": "scenario", "zh": "场景"}, {"en": "users", "zh": "用户"}]
    columns += [{"en": "server", "zh": "服务器"}, {"en": "output tokens/s", "zh": "输出词元/秒"}]
    columns += [{"en": "ours / theirs", "zh": "我们 / 对方"}]
    columns += [{"en": "first token p50, p95", "zh": "首个词元 p50、p95", "unit": " s"}]
    columns += [{"en": "between tokens p50, p95, max", "zh": "词元之间 p50、p95、最大", "unit": " ms"}]
    columns += [{"en": "of the prompts cached", "zh": "提示在缓存中", "unit": " %"}]
    columns += [{"en": "`/health` p99", "zh": "`/health` p99", "unit": " ms"}]
    columns += [{"en": "CPU of server, client", "zh": "服务器、客户端的 CPU", "unit": " s"}]
    compared, rows = ratios(found), []
    for row in sorted(found["rows"], key=lambda row: (list(SCENARIOS).index(row["scenario"]), row["users"])):
        m, key = medians(row), (row["scenario"], row["users"])
        ratio = f"{compared[key]:.2f}×" if row["server"] == OURS and key in compared else None
        cells: list[Any] = [SCENARIOS[row["scenario"]], row["users"], row["server"], round(m["tokens_per_second"])]
        cells += [ratio, [f"{m['first_p50']:.3f}", f"{m['first_p95']:.3f}"]]
        cells += [[three_digits(1000 * m[f"between_{name}"]) for name in ("p50", "p95", "max")]]
        cells += [round(100 * m["cached_share"]), three_digits(1000 * m["health_p99"]) if m["health_p99"] else None]
        rows.append([*cells, [f"{m['server_cpu']:.1f}", f"{m['client_cpu']:.1f}"]])
    return {
        "date": found["date"][:10],
        "machine": {"cpu": found["cpu"]},
        "software": {"Python": found["versions"]["python"], "torch": found["versions"]["torch"].partition("+")[0]}
        | {name: {"en": build, "zh": build} for name, build in found["builds"].items()},
        "threads": found["threads"],
        "runs": found["repeats"],
        "command": found["command"],
        "columns": columns,
        "rows": rows,
    }


def served_rows(name: str, users: int) -> list[int]:
    """The numbers of a kept `bench --serve`'s rows with so many users, and of the scenarios that have their own."""
    rows, several = of_served(json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")))["rows"], []
    for number, row in enumerate(rows):
        scenario = next(key for key, said in SCENARIOS.items() if said == row[0])
        if row[1] == users or scenario in ("cached", "intruder", "turns"):
            several.append(number)
    return several


def through_the_server(name: str, language: str = "en") -> str:
    """Of a kept `bench --serve`: what the engine decodes without a server, and how much of that through it."""
    found = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    first = heads(
        language,
        ("prompts at once", "the engine alone, tokens/s", "through the server"),
        ("同时的提示", "只有引擎，词元/秒", "经过服务器"),
    )
    rows = [(str(n), f"{rate:,.0f}", f"{share:.0%}") for n, (rate, share) in shares(found).items()]
    return table([first, *rows])


def of_bench(found: dict[str, Any]) -> dict[str, Any]:
    """What `bench --json` printed as a table: a row an engine, form, cache and batch, two columns a test."""
    columns: list[dict[str, str]] = [{"en": "model", "zh": "模型"}, {"en": "program", "zh": "程序"}]
    columns += [{"en": "weights", "zh": "权重"}, {"en": "KV bits", "zh": "KV 比特"}, {"en": "batch", "zh": "批"}]
    columns += [{"en": "peak memory", "zh": "内存峰值", "unit": " MB"}]
    for test in found["tests"]:
        columns += [{"en": f"{test}, tokens/s", "zh": f"{test}，词元/秒"}]
        columns += [{"en": "of the limit", "zh": "占极限", "unit": " %"}]
    columns += [{"en": "ours / theirs, medians", "zh": "我们 / 对方，中位数"}]
    rows = []
    for row in found["rows"]:
        cells: list[Any] = [row["model"], row["engine"], row["form"], row["kv"], row["batch"]]
        cells.append(round(row["peak_bytes"] / 1e6))
        ratios = []
        for test in found["tests"]:
            timed = row["tests"].get(test)
            cells += [{key: three_digits(timed[key]) for key in ("mean", "sd")}] if timed else [None]
            cells += [round(timed["percent_of_limit"])] if timed else [None]
            ratios += [f"{test} {peer} {ratio:.2f}×" for peer, ratio in (timed or {"ratios": {}})["ratios"].items()]
        rows.append([*cells, ", ".join(ratios) or None])
    versions = {"Python": found["versions"]["python"], "torch": found["versions"]["torch"]}
    return {
        "date": found["date"][:10],
        "machine": {"cpu": found["cpu"]},
        "software": versions | {name: {"en": build, "zh": build} for name, build in found["builds"].items()},
        "threads": found["threads"],
        "runs": found["repeats"],
        "bandwidth_gb_s": f"{found['machine']['bandwidth'] / 1e9:.0f}",
        "command": found["command"],
        "columns": columns,
        "rows": rows,
    }


def three_digits(value: float) -> int | str:
    return round(value) if value >= 100 else f"{value:.1f}"


def spoken(value: Any, language: str) -> str:
    return value[language] if isinstance(value, dict) else str(value)


def cell(value: Any, column: dict, language: str) -> str:
    """None, a text, a text in two languages, a number, a mean with its deviation, or several numbers."""
    unit, between = column.get("unit", "").replace(" ", NO_BREAK), column.get("between", " · ")
    if value is None:
        return ""
    if isinstance(value, int):
        return f"{value:,}{unit}"
    if isinstance(value, list):
        return between.join(cell(one, {}, language) for one in value) + unit
    if isinstance(value, dict) and "mean" in value:
        return f"{cell(value['mean'], {}, language)}{NO_BREAK}±{NO_BREAK}{value['sd']}{unit}"
    if isinstance(value, dict):
        return value[language]
    return value + (unit if re.fullmatch(r"[\d.e-]+", value) else "")


NO_BREAK = "\u00a0"  # a space at which no line ends


def results_table(
    name: str, language: str = "en", *, columns: Sequence[int] = (), rows: Sequence[int] = (), root: str = ""
) -> str:
    """A kept measurement as a table: all of it, or some columns and rows by their numbers.

    With `root`, the way from the page to the repository's root, test files become links.
    """
    kept = result(name)
    wanted = [kept["columns"][i] for i in columns or range(len(kept["columns"]))]
    lines = [[column.get(language, column["en"]) for column in wanted]]
    for i in rows or range(len(kept["rows"])):
        row = [kept["rows"][i][j] for j in columns or range(len(kept["columns"]))]
        lines.append([cell(value, column, language) for value, column in zip(row, wanted, strict=True)])
    made = table(lines)
    return re.sub(r"`(test_\w+[.]py)`", lambda found: linked(found[1], root), made) if root else made


def linked(test: str, root: str) -> str:
    (path,) = (ROOT / "tests").rglob(test)
    return f"[`{test}`]({root}{path.relative_to(ROOT).as_posix()})"


def results_note(name: str, language: str = "en") -> str:
    """When, where and by which command it was measured: a sentence for beneath the table."""
    kept = result(name)
    machine = kept["machine"]
    software = [
        f"{key} {spoken(value, language)}" for key, value in kept["software"].items() if not isinstance(value, dict)
    ]
    others = [f"{key} {spoken(value, language)}" for key, value in kept["software"].items() if isinstance(value, dict)]
    command = " && ".join(f"`{part}`" for part in kept["command"].split(" && "))
    able, cores, memory = machine.get("instructions", []), machine.get("cores"), machine.get("memory_gb")
    if language == "en":
        counts = {"threads": "threads", "runs": "runs"}
        more = [f"{kept[key]} {noun}" for key, noun in counts.items() if key in kept]
        if "bandwidth_gb_s" in kept:
            more.append(f"memory that a plain loop reads at {kept['bandwidth_gb_s']} GB/s")
        listed = ", ".join([*([f"{memory} GB"] if memory else []), *software, *others, *more])
        by = command.replace("` && `", "`, then `")
        where = f"{cores} cores of an {machine['cpu']}" if cores else f"an {machine['cpu']}"
        where += f" with {', '.join(able)} ({listed})" if able else f" ({listed})"
        return f"Measured on {kept['date']} on {where}, by {by}."
    more = [f"{kept[key]} {noun}" for key, noun in {"threads": "个线程", "runs": "次"}.items() if key in kept]
    if "bandwidth_gb_s" in kept:
        more.append(f"普通循环读内存的速度是 {kept['bandwidth_gb_s']} GB/s")
    listed = "，".join([*([f"{memory} GB 内存"] if memory else []), *software, *others, *more])
    by = command.replace("` && `", "`，然后 `")
    where = f"{machine['cpu']} 的 {cores} 个核" if cores else machine["cpu"]
    return f"{kept['date']} 测于 {where}（{'、'.join(able) + '；' if able else ''}{listed}）；命令是 {by}。"


def room_pages() -> list[str]:
    """Every page of a room, in both languages, from the repository's root."""
    folders = ["llama3_scratch", *(f"llama3_scratch/{room}" for room in ROOMS), "scripts"]
    return [f"{place}/{page}" for place in folders for page in ("README.md", "README.zh.md")]


OTHER_PAGES = ["weights/README.md", "weights/storyteller/README.md", "tests/README.md"]  # of folders that are no rooms
PAGES = ["README.md", "README.zh.md", *room_pages()]
PAGES += [page.replace(".md", ending) for page in OTHER_PAGES for ending in (".md", ".zh.md")]
assert set(VERBS) >= set(HOME)
