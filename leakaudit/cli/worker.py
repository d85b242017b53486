"""`leakaudit worker`: take part in the scans of a shared folder, on any machine that sees it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leakaudit.errors import UserError, line_of
from leakaudit.options.command import Command
from leakaudit.options.common import AUDIT, SPREAD, TOLD, examples
from leakaudit.options.failing import failed
from leakaudit.result.numbers import seconds as took
from leakaudit.result.outward import in_place
from leakaudit.result.plaintext import visible
from leakaudit.scans.run import Voice

if TYPE_CHECKING:
    from leakaudit.units.shelf import Shelf

CODES = (
    "\b\nExit codes: 0 done, 2 usage, or a scan that could not be done here,\n"
    "            3 interrupted, 4 internal error."
)


def add(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        cls=Command,
        rich_help_panel=AUDIT,
        short_help="Take part in scans that share their pieces through a folder.",
        epilog=examples(
            "leakaudit worker /shared/audits",
            "leakaudit worker /shared/audits --wait 10m",
            "ssh node7 leakaudit worker /shared/audits",
            codes=CODES,
        ),
    )(worker)


def worker(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The --cache of the scans to take part in.")],
    job: Annotated[
        str | None, typer.Option("--job", metavar="ID", help="Take part in this scan alone.", rich_help_panel=SPREAD)
    ] = None,
    wait: Annotated[
        str | None,
        typer.Option("--wait", metavar="TIME", help="How long to wait for a scan, at most.", rich_help_panel=SPREAD),
    ] = None,
    tied: Annotated[bool, typer.Option("--tied", hidden=True)] = False,
    quiet: Annotated[
        bool,
        typer.Option("--quiet", "-q", help="On stderr nothing but errors, on stdout nothing.", rich_help_panel=TOLD),
    ] = False,
) -> None:
    """Claim pieces of the scans that are not finished in FOLDER, and compute them, until none is left.

    It writes nothing but outcomes into FOLDER: whoever began a scan gathers them. Any number of workers may come and
    go; what one that dies was at is taken over by another. A scan that cannot be done on this machine is said here and
    where it was begun, and the next one is tried.
    """
    from leakaudit.spread import serving
    from leakaudit.units.shelf import opened
    from leakaudit.work.quantities import seconds

    if tied:
        serving.tie(serving.INTERRUPTED)
    patience = seconds(wait) if wait else 0.0
    if not serving.there(folder, patience):
        which = "it holds other things" if folder.is_dir() else "no such folder"
        raise UserError(f"{folder}: {which}; name the --cache of a scan.")
    shelf = opened(folder)
    if tied and job:  # started by another process, for one scan
        _take_part(shelf, job, Voice(quiet))
        return

    def say(told: str) -> None:
        if not quiet:
            typer.echo(visible(f"leakaudit: {told}", 5_000), err=True)

    done = serving.serve(shelf, job, patience, say, quiet=quiet)
    if not quiet:
        left = f", {done.failed} could not be" if done.failed else ""
        none = "" if done.scans or done.failed else f": there is no unfinished {_which(job)} in {folder}"
        told = f"{done.scans} scan{'' if done.scans == 1 else 's'} taken part in{left}{none}"
        typer.echo(visible(told, 5_000))
    raise typer.Exit(done.worst)


def _which(job: str | None) -> str:
    return "scan" if job is None else f"scan {job}"


def _take_part(shelf: Shelf, id: str, voice: Voice) -> None:
    """Take part in a scan until every piece is known, or it is over; whoever waits for it is told what fails."""
    from leakaudit.spread.glance import glance, leave, place
    from leakaudit.spread.serving import until_over

    path, count = place(shelf, id), 0
    scan = glance(path)
    if scan is None:  # it is finished
        return
    images = scan.request.plan.images

    def told(work: str, seconds: float) -> None:
        nonlocal count
        count += 1
        if not voice.quiet:
            typer.echo(f"{visible(in_place(work, images), 5_000)}  {took(seconds)}", err=True)

    try:
        with voice.starting():
            from leakaudit.spread.job import read
            from leakaudit.spread.participant import take_part
            from leakaudit.work.progress import monitored

        job = read(path)
        if job is None and path.exists():
            raise UserError(scan.refusal or f"the file of the scan of {scan.request.target} cannot be read.")
        if job is None:
            return
        with until_over(path), voice.listening(job.request.plan) as monitor, monitored(monitor):
            take_part(job, shelf, again=lambda: read(path), told=told)
        if not voice.quiet:
            typer.echo(f"leakaudit: {count} piece{'' if count == 1 else 's'} computed here", err=True)
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit):
            error = UserError(f"code of yours exits{line_of(error)} while it is used: let it return or raise.")
        leave(shelf, scan, failed(error)[0])
        raise error from None
