"""The commands for CI: `gate` judges a stored result, `compare` shows what changed between two."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leakaudit.cli_options import EXIT, check_writable, examples
from leakaudit.errors import UserError

if TYPE_CHECKING:
    from leakaudit.outcome import Outcome
    from leakaudit.result import AuditResult

Baseline = Annotated[
    Path | None, typer.Option("--baseline", help="A result.json of the same scan before the change, say main's.")
]


def add(app: typer.Typer) -> None:
    """Register the commands of this file."""
    app.command(
        epilog=examples(
            "leakaudit gate leakaudit-out/result.json",
            "leakaudit gate result.json --baseline main.json --junit junit.xml --sarif leakaudit.sarif",
            "leakaudit gate result.json --markdown comment.md --html report.html -o gate.json",
        )
    )(gate)
    app.command(
        epilog=examples("leakaudit compare main.json branch.json", "leakaudit compare main.json branch.json --json")
    )(compare)


def gate(
    result: Annotated[Path, typer.Argument(help="A result.json written by a scan.")],
    baseline: Baseline = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="What the gate says, as JSON.")] = None,
    junit: Annotated[Path | None, typer.Option("--junit", help="JUnit XML, for a CI's list of tests.")] = None,
    sarif: Annotated[Path | None, typer.Option("--sarif", help="SARIF 2.1.0, for code scanning.")] = None,
    markdown: Annotated[Path | None, typer.Option("--markdown", help="Markdown, for a comment.")] = None,
    html: Annotated[Path | None, typer.Option("--html", help="The report again, with the gate's checks in it.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what the gate says as JSON, and nothing else.")
    ] = False,
    exit_zero: Annotated[bool, typer.Option("--exit-zero", help="Exit 0 whatever the gate says.")] = False,
) -> None:
    """Judge a stored result by [tool.leakaudit.assert] of ./pyproject.toml, and by a baseline. Runs no attack.

    Without assertions the preset "recommended" holds. In GitHub Actions the step summary is written as well.
    """
    from leakaudit.result import load

    for path in (output, junit, sarif, markdown, html):
        if path is not None:
            check_writable(path)
    loaded = load(result)
    outcome = judge(loaded, result, baseline)
    _write(loaded, outcome, {"gate": output, "junit": junit, "sarif": sarif, "markdown": markdown, "html": html})
    summarise(loaded, outcome)
    if as_json:
        from leakaudit.outcome import to_json

        typer.echo(to_json(outcome), nl=False)
    else:
        from rich.console import Console

        from leakaudit.reports.gate_terminal import show

        show(outcome, Console())
    raise typer.Exit(0 if exit_zero else EXIT[outcome.verdict])


def compare(
    before: Annotated[Path, typer.Argument(help="The result.json to compare with, say main's.")],
    after: Annotated[Path, typer.Argument(help="The result.json of the change.")],
    markdown: Annotated[Path | None, typer.Option("--markdown", help="The table as Markdown.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the changes as JSON.")] = False,
) -> None:
    """Show what changed between two results of the same records and seeds, and whether chance explains it.

    Always exits 0 where the two can be compared: `gate --baseline` is what fails a build.
    """
    from dataclasses import asdict

    from leakaudit.comparable import remarks
    from leakaudit.gate import compare as changes_of
    from leakaudit.result import load

    if markdown is not None:
        check_writable(markdown)
    first, second = load(before), load(after)
    found = changes_of(second, first, str(before))
    if markdown is not None:
        from leakaudit.reports.comparison_markdown import render
        from leakaudit.result import write_atomically

        write_atomically(markdown, render(found, str(before), str(after)))
    if as_json:
        rows: list[Any] = [{**asdict(change), "p_corrected": p} for change, p in found]
        typer.echo(json.dumps({"before": str(before), "after": str(after), "changes": rows}, indent=1, allow_nan=False))
        return
    from rich.console import Console

    from leakaudit.reports.gate_terminal import compared

    compared(found, remarks(first, second), Console())


def judge(result: AuditResult, source: Path, baseline: Path | None) -> Outcome:
    """Judge by ./pyproject.toml; UserError where it, or the baseline, cannot be used."""
    from leakaudit import assertions, waivers
    from leakaudit.configuration import read
    from leakaudit.gate import gate as judged
    from leakaudit.result import load

    configured = read()
    return judged(
        result,
        assertions.parse(configured.assertions),
        baseline=None if baseline is None else load(baseline),
        waivers=waivers.parse(configured.waivers),
        source=str(source),
        baseline_source="" if baseline is None else str(baseline),
    )


def summarise(result: AuditResult, outcome: Outcome) -> None:
    """Append the Markdown to GitHub's step summary, where there is one."""
    if os.environ.get("GITHUB_STEP_SUMMARY"):
        from leakaudit.reports import markdown

        markdown.append_step_summary(markdown.render(result, outcome))


def _write(result: AuditResult, outcome: Outcome, places: dict[str, Path | None]) -> None:
    """Write every format that was asked for; one that cannot be written does not keep the others from being."""
    from leakaudit import outcome as outcomes
    from leakaudit.reports import html, junit, markdown, sarif
    from leakaudit.result import write_atomically

    formats = {
        "gate": lambda: outcomes.to_json(outcome),
        "junit": lambda: junit.render(result, outcome),
        "sarif": lambda: sarif.render(result, outcome),
        "markdown": lambda: markdown.render(result, outcome),
        "html": lambda: html.render(result, outcome),
    }
    failed: list[UserError] = []
    for name, path in places.items():
        if path is not None:
            try:
                write_atomically(path, formats[name]())
            except UserError as error:
                failed.append(error)
    if failed:
        raise failed[0]
