"""`leakaudit cache`: what is kept of scans, and how it is removed."""

from __future__ import annotations

from json import dumps
from typing import Annotated

import typer

from leakaudit.errors import UserError
from leakaudit.options.command import Command
from leakaudit.options.common import AUDIT, TOLD, examples
from leakaudit.options.settings import FROM_ENVIRONMENT, Config
from leakaudit.options.spreading import Cache
from leakaudit.result.plaintext import visible


def add(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        name="cache",
        cls=Command,
        context_settings=FROM_ENVIRONMENT,
        rich_help_panel=AUDIT,
        short_help="Show what is kept of scans for later ones, or clear it.",
        epilog=examples(
            "leakaudit cache", "leakaudit cache --clear --older 30", "leakaudit cache --cache /shared/audits"
        ),
    )(show)


def show(
    cache: Cache = None,
    clear: Annotated[
        bool,
        typer.Option(
            "--clear", help="Remove it, unless a scan is running.", allow_from_autoenv=False, rich_help_panel=TOLD
        ),
    ] = False,
    older: Annotated[
        float | None,
        typer.Option(
            "--older",
            metavar="DAYS",
            min=0,
            help="With --clear: only what no scan has used for so many days.",
            allow_from_autoenv=False,
            rich_help_panel=TOLD,
        ),
    ] = None,
    json: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON document on stdout, of what is kept then.", rich_help_panel=TOLD),
    ] = False,
    config: Config = None,
) -> None:
    """Show finished pieces of scans, scans that were not finished, and who is at work now; or clear them.

    Pieces of scans with --images full hold private pictures. Nothing is removed that is not leakaudit's.
    """
    from leakaudit.options import cached
    from leakaudit.spread import inventory
    from leakaudit.units.shelf import Shelf, usual

    if older is not None and not clear:
        raise UserError("--older says what --clear removes: give both, or neither.")
    none_yet = cache is None and not usual().exists()  # no scan was done yet: nothing is wrong
    shelf = Shelf(usual()) if none_yet else inventory.shelf_in(cache or usual())
    found = inventory.inventory(shelf)
    removed = inventory.clear(found, older) if clear else None
    if json:
        left = found if removed is None else inventory.inventory(shelf)
        typer.echo(dumps(cached.as_json(left, removed), indent=1))
    else:
        for line in cached.lines(found) if removed is None else [cached.gone(removed, found)]:
            typer.echo(visible(line, 5_000))
