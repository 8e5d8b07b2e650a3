"""How far a run is: on a terminal a line with a bar that stays in its place, elsewhere a line a step."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator

log = logging.getLogger("llama3_scratch")

Show = Callable[[int, str], None]  # steps done, and the line that says how the last one went


@contextlib.contextmanager
def display(done: int, steps: int) -> Iterator[Show]:
    """What shows each step of a run of `steps`, of which `done` are. Other messages stand above the line meanwhile."""
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
    progress = Progress(*fixed, Line("", table_column=Column()), console=Console(stderr=True))
    task = progress.add_task("", total=steps, completed=done)
    before = sys.stderr
    with progress:  # sys.stderr is one now that writes above the line
        ours = [h for h in log.handlers if isinstance(h, logging.StreamHandler) and h.stream is before]
        for handler in ours:
            handler.setStream(sys.stderr)
        try:
            yield lambda step, line: progress.update(task, completed=step, description=line)
        finally:
            for handler in ours:
                handler.setStream(before)
