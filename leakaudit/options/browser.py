"""`--open`: a page in the browser of whoever runs a command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leakaudit.options.common import TOLD
from leakaudit.result.outward import in_ci
from leakaudit.result.plaintext import visible

Open = Annotated[
    bool,
    typer.Option(
        "--open", help="Open the report in the browser at the end; never where CI=true.", rich_help_panel=TOLD
    ),
]


def show(page: Path) -> None:
    """Open a page; where nothing opens it, say so on stderr and where it is."""
    import webbrowser  # late: of all commands few open a page

    if in_ci():
        told = "CI=true: no browser was opened"
    elif webbrowser.open(page.resolve().as_uri()):
        return
    else:
        told = "no browser was found here"
    typer.echo(visible(f"leakaudit: {told}; the report is {page.resolve()}.", 5_000), err=True)
