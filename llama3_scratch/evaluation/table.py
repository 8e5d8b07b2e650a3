"""What `evaluate` found, for a person."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from llama3_scratch.text.detokenizer import visible


def _error(value: float, form: str) -> str:
    """A standard error as the table shows it; a single window or question has none."""
    return "–" if math.isnan(value) else format(value, form)


def print_table(found: dict[str, Any]) -> None:
    """Answers side by side, then a table of all figures, then what they were measured on."""
    from rich.console import Console
    from rich.table import Table

    table = Table("", "", "± standard error", box=None, pad_edge=False)
    for key, label in (("text", found["model"]), ("against", found.get("against", {}).get("model", ""))):
        if key in found:
            one = found[key]
            label = Path(label).name
            table.add_row(f"perplexity, {label}", f"{one['perplexity']:.4g}", _error(one["perplexity_error"], ".2g"))
            table.add_row(
                f"bits per byte, {label}", f"{one['bits_per_byte']:.4f}", _error(one["bits_per_byte_error"], ".2g")
            )
    if "against" in found:
        one = found["against"]
        table.add_row("KL divergence, nats", f"{one['kl']:.3g}", _error(one["kl_error"], ".2g"))
        table.add_row("  median, 99 %", f"{one['kl_median']:.3g}, {one['kl_99']:.3g}")
        table.add_row("same likeliest token", f"{one['top1']:.2%}", _error(one["top1_error"], ".2%"))
    if "choices" in found:
        one = found["choices"]
        table.add_row("right answers", f"{one['accuracy']:.2%}", _error(one["accuracy_error"], ".2%"))
        table.add_row(
            "  by log p a byte", f"{one['accuracy_by_byte']:.2%}", _error(one["accuracy_by_byte_error"], ".2%")
        )
    for name, one in found.get("instructions", {}).get("marks", {}).items():
        if one["mean"] is None:
            table.add_row(f"mark, {name}", "none given", "")
        else:
            table.add_row(f"mark of {one['marked']}, {name}", f"{one['mean']:.1f}", _error(one["error"], ".2g"))
    console = Console(markup=False, highlight=False)
    for sample in [*found.get("samples", []), *found.get("instructions", {}).get("rows", [])]:
        for name, text in sample.items():
            shown = visible(text) if console.is_terminal and isinstance(text, str) else text
            console.print(f"{name}: {shown}", soft_wrap=True)
        console.print()
    if table.row_count:
        console.print(table)
    if "text" in found:
        one = found["text"]
        console.print(
            f"{one['tokens']:,} tokens, {one['bytes']:,} bytes of {one['file']}: {one['policy']}", soft_wrap=True
        )
    if "choices" in found:
        one = found["choices"]
        left_out = f", {one['left_out']} more left out: a choice alone is longer" if one["left_out"] else ""
        cut = f", {one['cut']} cut from the left to the model's context" if one["cut"] else ""
        console.print(f"{one['questions']} questions of {one['file']}{cut}{left_out}", soft_wrap=True)
    for cut_of in (found.get("samples_cut", {}), found.get("instructions", {}).get("cut", {})):
        for name, count in cut_of.items():
            if count:
                console.print(f"{count} prompts cut from the left to the context of {name}", soft_wrap=True)
