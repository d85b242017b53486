"""The commands for CI: `gate` judges a stored result, `compare` shows what changed between two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leakaudit.errors import UserError
from leakaudit.files.folder import stored
from leakaudit.files.writing import apart
from leakaudit.gate.pyproject import read
from leakaudit.options.command import Command
from leakaudit.options.common import EPILOG, GATES, JUDGED, STORED, TOLD, Stored, examples, written
from leakaudit.options.gating import Baseline, Gating
from leakaudit.options.settings import Config
from leakaudit.result.outward import in_place
from leakaudit.scans.run import summarise

if TYPE_CHECKING:
    from leakaudit.result.outcome import Outcome
    from leakaudit.result.schema import AuditResult


def add(app: typer.Typer) -> None:
    """Register the commands of this file."""
    app.command(
        cls=Command,
        rich_help_panel=GATES,
        short_help="Judge a stored result, and its change from a baseline, for CI.",
        epilog=examples(
            "leakaudit gate leakaudit-out --verbose",
            "leakaudit gate result.json --baseline main.json --junit junit.xml",
            "leakaudit gate result.json --sarif leakaudit.sarif -o gate.json",
            "leakaudit gate result.json --markdown comment.md --html report.html",
            codes=EPILOG,
        ),
    )(gate)
    app.command(
        cls=Command,
        rich_help_panel=GATES,
        short_help="Show what changed between two results, and what chance explains.",
        epilog=examples("leakaudit compare main.json branch.json", "leakaudit compare main.json branch.json --json"),
    )(compare)


def gate(  # noqa: PLR0913 - a command: its options
    result: Stored,
    baseline: Baseline = None,
    config: Config = None,
    exit_zero: Annotated[
        bool, typer.Option("--exit-zero", help="Exit 0 whatever the gate says.", rich_help_panel=JUDGED)
    ] = False,
    output: Annotated[Path | None, written("What the gate says, as JSON.", "--output", "-o")] = None,
    junit: Annotated[Path | None, written("JUnit XML, for a CI's list of tests.", "--junit")] = None,
    sarif: Annotated[Path | None, written("SARIF 2.1.0, for code scanning.", "--sarif")] = None,
    markdown: Annotated[Path | None, written("Markdown, for a comment.", "--markdown")] = None,
    html: Annotated[Path | None, written("The report again, with the gate's checks in it.", "--html")] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print what the gate says as JSON, and nothing else.", rich_help_panel=TOLD),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose",
            "-v",
            help="Print every check with its sentence, all waivers and notes.",
            rich_help_panel=TOLD,
            allow_from_autoenv=False,
        ),
    ] = False,
) -> None:
    """Judge a stored result by [tool.leakaudit.assert] of pyproject.toml, and by a baseline. Runs no attack.

    Without assertions the preset "recommended" holds. In GitHub Actions the step summary is written as well.
    """
    from leakaudit.result.schema import load

    result, baseline = stored(result), baseline and stored(baseline)
    places = {"--output": output, "--junit": junit, "--sarif": sarif, "--markdown": markdown, "--html": html}
    apart(places, {"the result": result, "--baseline": baseline, "the configuration": config})
    loaded = load(result)
    outcome = Gating.read(read(config), baseline)(loaded, result)
    _write(loaded, outcome, {"gate": output, "junit": junit, "sarif": sarif, "markdown": markdown, "html": html})
    summarise(loaded, outcome)
    if as_json:
        from leakaudit.result.outcome import to_json

        typer.echo(to_json(outcome), nl=False)
    else:
        from rich.console import Console

        from leakaudit.reports.gate_terminal import show

        show(outcome, Console(), verbose)
    from leakaudit.result.rules import EXIT

    raise typer.Exit(0 if exit_zero else EXIT[outcome.verdict])


def compare(
    before: Annotated[Path, typer.Argument(metavar="BEFORE", help=f"What to compare with, say main's. {STORED}")],
    after: Annotated[Path, typer.Argument(metavar="AFTER", help="The same of the change.")],
    markdown: Annotated[Path | None, written("The table as Markdown.", "--markdown")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the changes as JSON.", rich_help_panel=TOLD)] = False,
) -> None:
    """Show what changed between two results of the same records and seeds, and whether chance explains it.

    Always exits 0 where the two can be compared: `gate --baseline` is what fails a build.
    """
    from dataclasses import asdict

    from leakaudit.compare.comparable import remarks
    from leakaudit.gate.decision import compare as changes_of
    from leakaudit.result.schema import load

    before, after = stored(before), stored(after)
    if markdown is not None:
        apart({"--markdown": markdown}, {"the first result": before, "the second result": after})
    first, second = load(before), load(after)
    found = changes_of(second, first, in_place(str(before), second.images))
    if markdown is not None:
        from leakaudit.files.writing import write_atomically
        from leakaudit.reports.markdown import render

        write_atomically(markdown, render(second, comparison=found))
    if as_json:
        rows: list[Any] = [{**asdict(change), "p_corrected": p} for change, p in found]
        typer.echo(json.dumps({"before": str(before), "after": str(after), "changes": rows}, indent=1, allow_nan=False))
        return
    from rich.console import Console

    from leakaudit.reports.gate_terminal import compared

    compared(found, remarks(first, second), Console())


def _write(result: AuditResult, outcome: Outcome, places: dict[str, Path | None]) -> None:
    """Write every format that was asked for; one that cannot be written does not keep the others from being."""
    from leakaudit.files.writing import write_atomically
    from leakaudit.reports import html, junit, markdown, sarif
    from leakaudit.result import outcome as outcomes
    from leakaudit.result.schema import is_private

    formats = {
        "gate": lambda: outcomes.to_json(outcome),
        "junit": lambda: junit.render(result, outcome),
        "sarif": lambda: sarif.render(result, outcome, sarif.located(result, Path.cwd())),
        "markdown": lambda: markdown.render(result, outcome),
        "html": lambda: html.render(result, outcome),
    }
    failed: list[UserError] = []
    for name, path in places.items():
        if path is not None:
            try:
                write_atomically(path, formats[name](), name == "html" and is_private(result))
            except UserError as error:
                failed.append(error)
    if failed:
        raise failed[0]
