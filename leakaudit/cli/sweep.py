"""`leakaudit sweep`: a list of scans, models by defenses by strengths by moments of training, and one report of all."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leakaudit.cli.run import Voice, scanned
from leakaudit.cli.scan import scan as scan_command
from leakaudit.errors import UserError, line_of, quote
from leakaudit.files.folder import claimed
from leakaudit.files.writing import writable, write_atomically
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
from leakaudit.options.failing import failed
from leakaudit.options.sweepfile import Model, Scan, listed, read, scans
from leakaudit.result.outward import in_place
from leakaudit.result.plaintext import visible

if TYPE_CHECKING:
    from leakaudit.cli.run import Ended
    from leakaudit.compare.sweep import Entry
    from leakaudit.protocol.target import Target

PAGE, VALUES = "sweep.html", "sweep.json"


def add(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        cls=Command,
        rich_help_panel=AUDIT,
        short_help="Scan models under defenses of many strengths, with one frontier.",
        epilog=examples(
            "leakaudit sweep sweep.toml --dry-run",
            "leakaudit sweep sweep.toml -o strengths --open",
            "leakaudit gate strengths/model-gaussian-std=0.1",
            codes=EPILOG,
        ),
    )(sweep)


def sweep(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The sweep file, TOML: docs/sweep.md shows one.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Folder for sweep.html, sweep.json, and a folder for each scan.",
            rich_help_panel=TOLD,
        ),
    ] = Path("leakaudit-sweep"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the scans, and do nothing.", rich_help_panel=TOLD)
    ] = False,
    exit_zero: ExitZero = False,
    quiet: Quiet = False,
    open: Open = False,
) -> None:
    """Scan every model of a file at every moment of training under every defense and strength, and draw one frontier.

    Each scan has a folder of its own in OUTPUT, as from leakaudit scan. One that cannot be done is a row that says why;
    the exit code is that of the worst verdict.
    """
    asked, voice = read(file, scan_command), Voice(quiet)
    writable(output)
    with voice.starting():
        from leakaudit.protocol.registry import attacks, defenses

        attacks(), defenses()
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
        entries, code = _swept(file, found, output, voice)
    if not quiet:
        from rich.console import Console

        from leakaudit.compare.sweep import frontiers
        from leakaudit.reports.sweep import summary

        summary(frontiers(entries), Console())
    typer.echo(
        "\n".join(
            visible(f"{name:<6}  {output / each}", 5_000) for name, each in (("report", PAGE), ("values", VALUES))
        )
    )
    if open:
        show(output / PAGE)
    raise typer.Exit(0 if exit_zero and code not in (USAGE, INTERNAL) else code)


def _swept(file: Path, found: Sequence[Scan], output: Path, voice: Voice) -> tuple[list[Entry], int]:
    """Do the scans one after another; return what came of each, and the exit code. The page is written after each."""
    from leakaudit.compare.sweep import Entry, ended, verdict
    from leakaudit.result.rules import EXIT

    images = found[0].plan.images
    entries = [
        Entry(
            name=each.name,
            model=in_place(each.model.name, images),
            stage=each.stage,
            spec=in_place(each.strength.spec, images),
            line=in_place(each.strength.line, images),
            varied=each.strength.values,
        )
        for each in found
    ]
    targets: dict[Model, Target | UserError] = {}
    broken = False
    _write(file, entries, output, images == "full")
    for i, each in enumerate(found):
        if not voice.quiet:
            typer.echo(visible(f"leakaudit: scan {i + 1} of {len(found)}: {each.name}", 5_000), err=True)
        try:
            done = _one(each, targets, output / each.name, voice)
            entries[i] = ended(entries[i], done.result)
        except Exception as error:
            told, why = failed(error)
            if why == INTERNAL and os.environ.get("LEAKAUDIT_DEBUG"):
                raise
            broken |= why == INTERNAL
            entries[i] = replace(entries[i], trouble=in_place(told, images))
            typer.echo(visible(f"leakaudit: {each.name}: {told}", 10_000), err=True)
        _write(file, entries, output, images == "full")
        if entries[i].state == "interrupted":
            typer.echo("Interrupted: what was measured so far is kept.", err=True)
            return entries, EXIT["inconclusive"]
    judged = verdict(entries)
    return entries, INTERNAL if broken else USAGE if judged is None else EXIT[judged]


def _one(each: Scan, targets: dict[Model, Target | UserError], folder: Path, voice: Voice) -> Ended:
    """Do one scan as `leakaudit scan` does, with a clock of its own; a model is loaded once."""
    from leakaudit.load.loading import load_target
    from leakaudit.options.plans import check_specs
    from leakaudit.work import ends
    from leakaudit.work.progress import Monitor, monitored

    def load() -> Target:
        if each.model not in targets:
            targets.clear()  # one at a time: data may be large
            try:
                targets[each.model] = load_target(each.model.target, **each.loading)
            except UserError as error:
                targets[each.model] = error
        target = targets[each.model]
        if isinstance(target, UserError):
            raise target
        check_specs(each.plan, wait=False)
        return target

    try:
        with (
            claimed(folder, each.plan.images == "full"),
            ends.listening(),
            monitored(Monitor(started=time.monotonic())),
        ):
            return scanned(load, each.plan, folder, voice, lpips_weights=each.lpips_weights, command=each.command)
    except SystemExit as error:
        raise UserError(f"code of yours exits{line_of(error)} while it is used: let it return or raise.") from error


def _write(file: Path, entries: Sequence[Entry], output: Path, private: bool) -> None:
    from leakaudit.compare.sweep import frontiers, values
    from leakaudit.reports.sweep import render
    from leakaudit.result.sweep import to_json

    fronts, source = frontiers(entries), in_place(str(file), "full" if private else "none")
    write_atomically(output / PAGE, render(source, fronts), private)
    write_atomically(output / VALUES, to_json(values(source, fronts)), private)
