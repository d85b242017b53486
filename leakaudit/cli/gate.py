"""The commands for CI: `gate` judges a stored result, `compare` shows what changed between two."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leakaudit.errors import UserError
from leakaudit.files.folder import stored
from leakaudit.files.writing import apart
from leakaudit.gate.pyproject import Configuration, read
from leakaudit.options.command import Command
from leakaudit.options.common import EPILOG, GATES, JUDGED, STORED, TOLD, Stored, examples, written
from leakaudit.options.settings import Config
from leakaudit.result.outward import in_place

if TYPE_CHECKING:
    from leakaudit.gate.assertions import Assertions
    from leakaudit.protocol.target import Target
    from leakaudit.result.outcome import Outcome
    from leakaudit.result.schema import AuditResult, Waiver
    from leakaudit.scene.plan import Plan

Baseline = Annotated[
    Path | None,
    typer.Option(
        "--baseline",
        metavar="FILE",
        help="A result.json of the same scan before the change, say main's, or its folder.",
        rich_help_panel=JUDGED,
    ),
]


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


@dataclass(frozen=True)
class Gating:
    """What a gate judges by, read and checked before the work begins."""

    assertions: Assertions
    waivers: tuple[Waiver, ...]
    baseline: AuditResult | None = None
    baseline_source: str = ""
    configured: bool = True  # whether a file says what is asked
    named: tuple[str, ...] = ()  # the defenses that a file says to scan

    @classmethod
    def read(
        cls,
        found: Configuration,
        baseline: Path | None,
        plan: Plan | None = None,
        before: AuditResult | None = None,
    ) -> Gating:
        """Read what a file asks and the baseline; UserError where one cannot be used, or the plan is unlike it.

        `before` is what stood in the baseline, where it is read already.
        """
        from leakaudit.compare.comparable import known, unlike
        from leakaudit.gate import assertions
        from leakaudit.result.schema import load

        table, named = found.assertions, found.scan.get("defense", ())
        named = (named,) if isinstance(named, str) else tuple(named) if isinstance(named, list) else ()
        with _naming(found):
            asked = assertions.parse(table)
        waivers = configured_waivers(found)
        if baseline is None:
            return cls(asked, waivers, configured=bool(table), named=named)
        before = before or load(baseline)
        other = () if plan is None else unlike(*known(before.settings, plan.settings()))
        if other:
            raise UserError(
                f"{baseline} cannot be compared with this scan: {'; '.join(other)}. Scan with its settings."
            )
        return cls(asked, waivers, before, str(baseline), configured=bool(table), named=named)

    def early(self, target: Target) -> None:
        """Refuse a target that the baseline is not of, before anything is attacked."""
        from leakaudit.compare.comparable import unlike_target
        from leakaudit.scene.fingerprint import of_records
        from leakaudit.scene.provenance import describe

        if self.baseline is None:
            return
        hashes = {name: of_records(getattr(target, name)) for name in ("private", "test", "auxiliary")}
        other = unlike_target(self.baseline, describe(target), hashes)
        if other:
            raise UserError(f"{self.baseline_source} cannot be compared with this scan: {'; '.join(other)}.")

    def __call__(self, result: AuditResult, source: Path) -> Outcome:
        """Judge a result; UserError where the baseline turns out to be of something else."""
        from leakaudit.gate.decision import gate

        said = gate(
            result,
            self.assertions,
            baseline=self.baseline,
            waivers=self.waivers,
            source=in_place(str(source), result.images),
            baseline_source=in_place(self.baseline_source, result.images),
        )
        return replace(said, notes=(*said.notes, *self._notes(result)))

    def _notes(self, result: AuditResult) -> Iterator[str]:
        """Say what is judged that the file does not speak of."""
        from leakaudit.result.rules import judged

        others = ", ".join(row.spec for row in judged(result) if row.spec not in self.named)
        if self.named and others:
            yield f"judged, too, since the result holds it: {others}; [tool.leakaudit] defense does not name it."
        if not self.configured:
            yield "no pyproject.toml has [tool.leakaudit.assert]: the preset recommended was judged."


def configured_waivers(found: Configuration) -> tuple[Waiver, ...]:
    """Return the waivers of a file; UserError, naming it, where one is malformed."""
    from leakaudit.gate.waivers import parse

    with _naming(found):
        return parse(found.waivers)


@contextmanager
def _naming(found: Configuration) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"{found.path}: ", *error.parts) from error


def summarise(result: AuditResult, outcome: Outcome) -> None:
    """Append the Markdown to GitHub's step summary, where there is one."""
    if os.environ.get("GITHUB_STEP_SUMMARY"):
        from leakaudit.reports import markdown

        try:
            markdown.append_step_summary(markdown.render(result, outcome))
        except (OSError, UserError) as error:  # a convenience: the verdict does not hang on it
            typer.echo(f"leakaudit: the step summary was not written: {error}", err=True)


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
