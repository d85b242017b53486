"""What the terminal shows while an audit runs: one line for the piece of work, one bar for its iterations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from leakaudit.progress import Monitor


@contextmanager
def progress_monitor(console: Console | None = None) -> Iterator[Monitor]:
    """Yield a monitor that draws on stderr: a live bar on a terminal, a line per piece of work elsewhere."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield Monitor(show=_lines(console))
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("starting", total=None)
        piece = ""

        def show(label: str, done: int, total: int) -> None:
            nonlocal piece
            if total == 0:
                piece = label
                bars.reset(task, description=escape(label), total=None)
            else:
                doing = piece if label in piece else f"{piece} · {label}"
                bars.update(task, description=escape(doing), completed=done, total=total)

        yield Monitor(show=show)


def _lines(console: Console) -> Callable[[str, int, int], None]:
    def show(label: str, done: int, total: int) -> None:
        if total == 0:
            console.print(escape(label), highlight=False)

    return show
