"""`leakaudit worker`: take part in the scans of a shared folder, on any machine that sees it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from leakaudit.errors import UserError
from leakaudit.options.command import Command
from leakaudit.options.common import AUDIT, DONE, SPREAD, Quiet, examples
from leakaudit.result.plaintext import visible
from leakaudit.scans.run import Voice

LOOK = 1.0  # seconds between two looks for a scan to take part in
GRACE = 5.0  # seconds after which a tied worker that cannot end by itself is ended


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
            codes=DONE,
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
    quiet: Quiet = False,
) -> None:
    """Claim pieces of the scans that are not finished in FOLDER, and compute them, until none is left.

    It writes nothing but outcomes into FOLDER: whoever began a scan gathers them. Any number of workers may come and
    go; what one that dies was at is taken over by another.
    """
    if tied:
        _tie()
    from leakaudit.work.quantities import seconds

    patience, voice = seconds(wait) if wait else 0.0, Voice(quiet)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name the --cache of a scan.")
    with voice.starting():
        from leakaudit.spread.job import unfinished
        from leakaudit.spread.participant import take_part
        from leakaudit.units.shelf import opened
        from leakaudit.work.progress import current, monitored

    shelf, done, taken = opened(folder), set[str](), 0
    until = time.monotonic() + patience
    while True:
        jobs = [each for each in unfinished(shelf) if each.attempt not in done and job in (None, each.id)]
        if not jobs:
            if time.monotonic() >= until:
                break
            time.sleep(LOOK)
            continue
        done.add(jobs[0].attempt)
        if not quiet:
            typer.echo(visible(f"leakaudit: taking part in the scan of {jobs[0].request.target}", 5_000), err=True)
        with voice.listening(jobs[0].request.plan) as monitor, monitored(monitor):
            current()
            taken += len(take_part(jobs[0], shelf).computed)
        until = time.monotonic() + patience
    if not quiet:
        typer.echo(f"{len(done)} scans, {taken} pieces computed here")


def _tie() -> None:
    """End with whoever holds the other end of standard input: a participant must not outlive its scan."""

    def wait() -> None:
        with suppress(OSError, ValueError):
            sys.stdin.buffer.read()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os._exit(3)

    threading.Thread(target=wait, daemon=True).start()
