"""`leakaudit history`: the stored results of a branch, drawn over its runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leakaudit.errors import UserError
from leakaudit.files.writing import apart
from leakaudit.options.command import Command
from leakaudit.options.common import GATES, examples, written
from leakaudit.result.plaintext import visible


def add(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        cls=Command,
        rich_help_panel=GATES,
        short_help="Draw leakage and accuracy over the stored results of a branch.",
        epilog=examples("leakaudit history results/", "leakaudit history results/ -o trend.html"),
    )(history)


def history(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A folder with the result.json of every run below.")],
    output: Annotated[Path, written("The HTML file.", "--output", "-o")] = Path("history.html"),
) -> None:
    """Draw leakage and accuracy over the stored results of a branch, in the natural order of their paths.

    Where a run measured something else than the one before, the line is broken and the reason named. Judges nothing:
    exits 0 whatever the verdicts.
    """
    from rich.console import Console

    from leakaudit.compare.history import read
    from leakaudit.files.writing import write_atomically
    from leakaudit.reports.history import render, summary

    if output.suffix.lower() == ".json":
        raise UserError(f"--output {output} may be a run itself: name the HTML file to write, say history.html.")
    apart({"--output": output}, {})
    found = read(directory)
    write_atomically(output, render(found))
    summary(found, Console())
    typer.echo(visible(f"history  {output}", 5_000))
