"""The package's rooms in reading order. The order is a law (test_house.py) and the README's map is made from it."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "llama3_scratch"

# A module imports only what stands above it.
ROOMS = {
    "The core: read this first": [
        "errors",
        "config",
        "stored",
        "native.kernels",
        "linear",
        "cache",
        "token_ids",
        "tied",
        "model",
        "init",
    ],
    "Text": ["files", "added_tokens", "tokenizer", "text", "chat_template_worker", "chat_template", "dialog"],
    "Doors in and out": [
        "memory",
        "checkpoint.progress",
        "checkpoint.params_json",
        "checkpoint.check",
        "checkpoint.meta",
        "checkpoint.oniguruma",
        "checkpoint.pre_tokenizers",
        "checkpoint.hf_added_tokens",
        "checkpoint.chat_format",
        "checkpoint.merge_order",
        "checkpoint.byte_level",
        "checkpoint.hf",
        "checkpoint.hf_out",
        "checkpoint.ggml_blocks",
        "checkpoint.gguf_vocab",
        "checkpoint.gguf",
        "checkpoint.gguf_out",
        "checkpoint.llama2c",
        "checkpoint.remote",
        "checkpoint.names",
        "checkpoint.fingerprint",
        "checkpoint.load",
    ],
    "Other caches: shorter, endless, on disk": ["cache_forms", "sliding", "prompt_cache"],
    "Params → params, and the layer in C": ["quantize", "lora", "checkpoint.peft", "native.decode"],
    "From logits to answers": ["wait_policy", "sample", "speculate", "stream", "timings", "answers", "judge"],
    "The glass box": [
        "difference",
        "hf_layers",
        "machine",
        "trace.cost",
        "trace.tracer",
        "trace.compare",
        "trace.roofline",
        "trace.table",
        "trace.files",
        "trace.views",
        "trace.page",
        "trace.shapes",
        "pictures",
    ],
    "Training": [
        "bpe",
        "data.story_words",
        "data.stories",
        "data.documents",
        "data.story_requests",
        "data.clean",
        "data.duplicates",
        "data.report",
        "scoring",
        "training.batches",
        "training.loss",
        "training.fp8",
        "training.compiled",
        "training.optimizer",
        "training.checkpoints",
        "training.loop",
        "data.shards",
        "training.display",
        "training.record",
        "training.pretraining",
        "data.conversations",
        "training.finetuning",
        "data.labelled",
        "training.classifier",
        "training.classifying",
    ],
    "Verbs: `python -m llama3_scratch.<verb>`": [
        "stdio",
        "cli",
        "verify",
        "download",
        "describe",
        "options",
        "prompts",
        "trace.session",
        "word_wrap",
        "generate",
        "conversation",
        "line_editor",
        "repl",
        "chat",
        "answering",
        "convert",
        "parity",
        "evaluate",
        "walkthrough",
        "bench_ours",
        "bench_peers",
        "bench_report",
        "bench_worker",
        "bench",
    ],
}
ORDER = [module for rooms in ROOMS.values() for module in rooms]


def tree(module: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))


def imports(module: str) -> set[str]:
    """The package's modules that `module` imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "llama3_scratch":
            inner = node.module.removeprefix("llama3_scratch").removeprefix(".")
            for alias in node.names:
                longer = f"{inner}.{alias.name}".removeprefix(".")
                found.add(longer if longer in ORDER else inner)
    return found


def readme_map() -> str:
    """The map: a line a module, with the first line of its docstring."""
    lines = []
    for room, modules in ROOMS.items():
        lines += ["", f"**{room}**", "", "| module | what it is |", "|---|---|"]
        for module in modules:
            path = f"llama3_scratch/{module.replace('.', '/')}.py"
            source = (PACKAGE.parent / path).read_text(encoding="utf-8")
            about = (ast.get_docstring(ast.parse(source)) or "").partition("\n\n")[0].replace("\n", " ")
            lines.append(f"| [`{module}`]({path}) | {about} |")
    return "\n".join(lines[1:])
