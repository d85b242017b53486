"""`leakaudit sweep`: a list of scans, models by defenses by strengths by moments of training, and one report of all."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leakaudit.cli.scan import scan
from leakaudit.errors import quote
from leakaudit.files.folder import claimed
from leakaudit.files.writing import writable
from leakaudit.options.browser import Open, show
from leakaudit.options.command import Command
from leakaudit.options.common import (
    AUDIT,
    EPILOG,
    INTERNAL,
    TOLD,
    USAGE,
    ExitZero,
    Quiet,
    examples,
    name_what_was_left_out,
)
from leakaudit.options.settings import FROM_ENVIRONMENT
from leakaudit.options.spreading import Cache, Executor, Fresh, Keep, Workers
from leakaudit.options.sweepfile import listed, read, scans
from leakaudit.result.plaintext import visible
from leakaudit.scans.run import Voice

Output = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        metavar="FOLDER",
        help="Folder for sweep.html, sweep.json, and a folder for each scan.",
        rich_help_panel=TOLD,
    ),
]

DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="List the scans, and do nothing.", allow_from_autoenv=False, rich_help_panel=TOLD),
]


def add(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        cls=Command,
        context_settings=FROM_ENVIRONMENT,
        rich_help_panel=AUDIT,
        short_help="Scan models under defenses of many strengths, with one frontier.",
        epilog=examples(
            "leakaudit sweep sweep.toml --dry-run",
            "leakaudit sweep sweep.toml -o strengths --open",
            "leakaudit gate strengths/model-gaussian-std=0.1",
            codes=EPILOG,
        ),
    )(sweep)


def sweep(  # noqa: PLR0913 - a command: its options
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The sweep file, TOML: docs/sweep.md shows one.")],
    output: Output = Path("leakaudit-sweep"),
    dry_run: DryRun = False,
    workers: Workers = 1,
    executor: Executor = "local",
    cache: Cache = None,
    fresh: Fresh = False,
    keep_intermediates: Keep = False,
    exit_zero: ExitZero = False,
    quiet: Quiet = False,
    open: Open = False,
) -> None:
    """Scan every model of a file at every moment of training under every defense and strength, and draw one frontier.

    Each scan has a folder of its own in OUTPUT, as from leakaudit scan; what they share is computed once. One that
    cannot be done is a row that says why; the exit code is that of the worst verdict.
    """
    asked, voice = read(file, scan), Voice(quiet)
    writable(output)
    with voice.starting():
        from leakaudit.compare.sweep import frontiers
        from leakaudit.protocol.registry import attacks, defenses
        from leakaudit.reports.sweep import summary
        from leakaudit.scans.sweep import PAGE, VALUES, swept
        from leakaudit.spread.sharing import Sharing

        attacks(), defenses()
        sharing = Sharing(cache, workers, executor, fresh, keeps=keep_intermediates)
        found = scans(asked)
    images = found[0].plan.images
    quote(images == "full")
    for line in listed(asked, found) if dry_run or not quiet else ():
        typer.echo(visible(line, 5_000), err=not dry_run)
    if dry_run:
        return
    if not quiet:
        name_what_was_left_out()
    with claimed(output, images == "full"):
        entries, code = swept(file, found, output, voice, sharing)
    if not quiet:
        from rich.console import Console

        summary(frontiers(entries), Console())
    typer.echo(visible(f"report  {output / PAGE}", 5_000))
    typer.echo(visible(f"values  {output / VALUES}", 5_000))
    if open:
        show(output / PAGE)
    raise typer.Exit(0 if exit_zero and code not in (USAGE, INTERNAL) else code)
