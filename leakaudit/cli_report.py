"""The commands that read a stored result: `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leakaudit.cli_options import examples
from leakaudit.errors import UserError


def add(app: typer.Typer) -> None:
    """Register the commands of this file."""
    app.command(epilog=examples("leakaudit report leakaudit-out/result.json -o report.html"))(report)


def report(
    result: Annotated[Path, typer.Argument(help="A result.json written by a scan.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML file.")] = Path("report.html"),
) -> None:
    """Render a stored result as HTML again. Runs no attack and needs no model."""
    from rich.console import Console

    from leakaudit.reports.html import render
    from leakaudit.reports.terminal import summary
    from leakaudit.result import load, write_atomically

    loaded = load(result)
    if output.is_dir():
        raise UserError(f"--output {output} is a folder: name the HTML file to write, say {output / 'report.html'}.")
    write_atomically(output, render(loaded))
    summary(loaded, Console())
    typer.echo(f"report  {output}")
