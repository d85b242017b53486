"""The command line. Parsing and printing only: the audit itself is `leakaudit.audit`.

Heavy imports wait until a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
from typing import Annotated, Any

import typer
import typer.main

from leakaudit.cli import cache as cli_cache
from leakaudit.cli import capture as cli_capture
from leakaudit.cli import doctor as cli_doctor
from leakaudit.cli import gate as cli_gate
from leakaudit.cli import history as cli_history
from leakaudit.cli import init as cli_init
from leakaudit.cli import obscure as cli_obscure
from leakaudit.cli import report as cli_report
from leakaudit.cli import sign as cli_sign
from leakaudit.cli import sweep as cli_sweep
from leakaudit.cli import worker as cli_worker
from leakaudit.cli.scan import app
from leakaudit.errors import (
    Interrupted,
    UserError,
    left_out,
    line_of,
    quoting,
)
from leakaudit.files.reading import check_text
from leakaudit.options import settings
from leakaudit.options.common import GENERATOR, INTERNAL, USAGE
from leakaudit.options.failing import failed
from leakaudit.result.outward import default_images
from leakaudit.result.plaintext import visible
from leakaudit.work import ends
from leakaudit.work.progress import Monitor, monitored

# Bad usage found by the parser. Typer carries its own copy of click in newer versions, so the class is taken from it.
COMPLETING = "_LEAKAUDIT_COMPLETE"  # the variable in which a shell asks
ParseError: type[Any] = typer.BadParameter.__mro__[2]


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", "-V", help="Print the version.", is_eager=True, callback=lambda v: _version(v))
    ] = False,
) -> None: ...


def _version(wanted: bool) -> None:
    if wanted:
        from leakaudit.version import __version__

        typer.echo(f"leakaudit {__version__}")
        raise typer.Exit


# After the commands above: the help screen lists them in this order.
cli_sweep.add(app)

cli_doctor.add(app)

cli_worker.add(app)

cli_cache.add(app)

cli_capture.add(app)

cli_report.add(app)

cli_sign.add(app)

cli_gate.add(app)

cli_init.add(app)

cli_history.add(app)

app.add_typer(
    cli_obscure.app,
    name="obscure",
    rich_help_panel=GENERATOR,
    short_help="The obscuring generator as a file: fit, apply.",
)


def main() -> None:
    """Run the command line; every outcome ends in a documented exit code.

    A time budget begins here, as the process does.

    A reader that goes away early (`| head`) ends it by the signal that ends every program then, not by a verdict.
    """
    clock = monitored(Monitor(started=time.monotonic()))
    with ends.broken_pipes(), ends.listening(), clock, settings.noting(), quoting(default_images() == "full"):
        try:
            _main_()
        finally:
            if told := left_out():
                typer.echo(f"leakaudit: {told}", err=True)
            atexit.register(ends.ignore)


def _called() -> Any:
    """Run the command; what exits within is code of others, whose exit code would pass for a verdict."""
    try:
        return app(standalone_mode=False)
    except SystemExit as error:
        raise UserError(f"code of yours exits{line_of(error)} while it is used: let it return or raise.") from error


def _completed() -> None:
    """Answer a shell that completes a word, or print and install what lets it ask: all of that is the library's."""
    try:
        app(prog_name="leakaudit")
    except SystemExit as error:  # a code is an answer, too, where a shell asks
        sys.exit(error.code if os.environ.get(COMPLETING) else USAGE if error.code else 0)


def _main_() -> None:
    try:
        for word in sys.argv[1:]:
            check_text(word, "the command line")  # now: what is written of it would fail when the work is done
        if os.environ.get(COMPLETING) or sys.argv[1:2] in (["--install-completion"], ["--show-completion"]):
            _completed()
        code = _called()
        if code == 130:  # newer typer's word for Ctrl-C
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except ParseError as error:
        error.show()
        sys.exit(USAGE)
    except (typer.Abort, KeyboardInterrupt) as error:
        put = str(error) if isinstance(error, Interrupted) else ""  # code of others may interrupt, and say anything
        told = f"leakaudit: interrupted; only what an --output folder already holds is kept. {put}".rstrip()
        typer.echo(visible(told), err=True)
        from leakaudit.result.rules import EXIT

        sys.exit(EXIT["inconclusive"])
    except Exception as error:
        if os.environ.get("LEAKAUDIT_DEBUG") and not isinstance(error, UserError):
            raise
        told, code = failed(error)
        typer.echo(f"leakaudit: {visible(told, 10_000)}", err=True)
        if code == INTERNAL:
            more = "This is a bug in leakaudit: please report it; LEAKAUDIT_DEBUG=1 shows the traceback."
            typer.echo(more, err=True)
        sys.exit(code)
