"""How far a long task is, on stderr: a bar of bytes that are fetched, hashed or copied, one of training steps."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator

log = logging.getLogger("llama3_scratch")

Show = Callable[[int, str], None]  # steps done, and the line that says how the last one went


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield advance(bytes), which moves a bar of `total` bytes; no bar with --quiet or where stderr is no terminal."""
    if not (sys.stderr.isatty() and log.isEnabledFor(logging.INFO)):
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


@contextlib.contextmanager
def steps_bar(done: int, steps: int) -> Iterator[Show]:
    """Yield show(steps done, line): on a terminal a bar beside a line that stays in its place, other messages above it;
    elsewhere a line a step. `done` of `steps` are behind it already."""
    if not sys.stderr.isatty() or not log.isEnabledFor(logging.INFO):
        yield lambda step, line: log.info(line)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, Task, TaskProgressColumn, TextColumn
    from rich.table import Column
    from rich.text import Text

    class Line(TextColumn):
        def render(self, task: Task) -> Text:
            # The text's own no_wrap, so that of the columns it's this one that a narrow terminal cuts.
            return Text(task.description, no_wrap=True, overflow="ellipsis")

    fixed = (BarColumn(12, table_column=Column(no_wrap=True)), TaskProgressColumn(table_column=Column(no_wrap=True)))
    bar = Progress(*fixed, Line("", table_column=Column()), console=Console(stderr=True))
    task = bar.add_task("", total=steps, completed=done)
    before = sys.stderr
    with bar:  # sys.stderr is one now that writes above the line
        ours = [h for h in log.handlers if isinstance(h, logging.StreamHandler) and h.stream is before]
        for handler in ours:
            handler.setStream(sys.stderr)
        try:
            yield lambda step, line: bar.update(task, completed=step, description=line)
        finally:
            for handler in ours:
                handler.setStream(before)
