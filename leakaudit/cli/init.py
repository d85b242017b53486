"""`leakaudit init`: the configuration from a first scan, and a workflow for CI."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leakaudit.errors import UserError
from leakaudit.files.folder import stored
from leakaudit.options.again import again, given, kept
from leakaudit.options.command import Command
from leakaudit.options.common import GATES, TARGET_HELP, examples
from leakaudit.options.settings import options, scan_of
from leakaudit.options.workflows import WORKFLOWS, workflow

if TYPE_CHECKING:
    from leakaudit.gate.initialise import Start
    from leakaudit.result.schema import AuditResult

FIRST = Path("leakaudit-out/result.json")
PROJECT = Path("pyproject.toml")


def add(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        cls=Command,
        rich_help_panel=GATES,
        short_help="Write the gate's configuration from a first scan, and CI workflows.",
        epilog=examples(
            "leakaudit scan model.py -d obscure && leakaudit init",
            "leakaudit init model.py --result out/result.json --github",
            "leakaudit init --gitlab --force",
        ),
    )(init)


def init(
    ctx: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL", help=f"What CI will scan: {TARGET_HELP} Default: what the first scan was given."
        ),
    ] = None,
    result: Annotated[
        Path, typer.Option("--result", metavar="FILE", help="The first scan's result.json, or its folder.")
    ] = FIRST,
    github: Annotated[bool, typer.Option("--github", help=f"Write {WORKFLOWS['github']}, too.")] = False,
    gitlab: Annotated[bool, typer.Option("--gitlab", help=f"Write {WORKFLOWS['gitlab']}, too.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the table [tool.leakaudit], and nothing else, where there is one.")
    ] = False,
) -> None:
    """Write [tool.leakaudit] to ./pyproject.toml, with thresholds that a first scan supports. Runs no attack.

    What was measured is rounded to the looser side, on the bounds of 95 % intervals; a defense that leaks is not given
    a limit that it meets. No file and no table is overwritten.
    """
    from leakaudit.files.writing import write_atomically
    from leakaudit.gate.initialise import start
    from leakaudit.gate.pyproject import inserted, table
    from leakaudit.result import dates
    from leakaudit.result.schema import load

    result = stored(result)
    if not result.is_file():
        raise UserError(
            f"there is no {result} to take thresholds from: run `leakaudit scan {model or 'model.py'} -d obscure` "
            "first (without --quick, which is too weak to set limits by), or name another with --result."
        )
    first = load(result)
    target = model or given(first, "target") or "model.py"
    today = dates.today()
    place = PROJECT.resolve()  # a link stays one
    existing = _existing(place)
    replaced = table(existing)
    before, dropped = kept(replaced, set(options(scan_of(ctx)))) if force else ({}, ())
    made = start(first, again(first, before), today)
    texts = {place: inserted(existing, made.block, force)}
    for name, wanted in (("github", github), ("gitlab", gitlab)):
        if wanted:
            if WORKFLOWS[name].exists():
                raise UserError(f"{WORKFLOWS[name]} exists: remove it, or leave --{name} out.")
            texts[WORKFLOWS[name]] = workflow(name, target, made.defenses, made.records)
    for path, text in texts.items():
        write_atomically(path, text)
        typer.echo(f"wrote    {PROJECT if path == place else path}")
    lost = f"left out of the table, since scan has no such setting: {', '.join(dropped)}."
    waivers = replaced.get("waiver") if force else None
    count = len(waivers) if isinstance(waivers, list) else 0
    gone = f"the table had {count} waiver{'' if count == 1 else 's'}: put back what still holds."
    for note in (*([lost] if dropped else ()), *([gone] if count else ()), *made.notes):
        _line("note", note)
    _tell(first, result, made)
    _next(target, github, gitlab)


def _existing(path: Path) -> str:
    from leakaudit.files.reading import TOML, text_of

    return text_of(path, TOML, "utf-8") if path.exists() else ""


def _tell(first: AuditResult, result: Path, made: Start) -> None:
    """Say what the gate makes of the first scan, and where of all that it holds it says something else."""
    from leakaudit.reports.gate_terminal import decided

    verdict, alone = made.outcome.verdict, f", of {', '.join(made.defenses)} alone" if made.left else ""
    _line(f"gate now {verdict}:", f"{decided(made.outcome)}{alone}.")
    if made.whole.verdict != verdict:
        left = ", ".join(made.left)
        _line(
            "note",
            f"leakaudit gate {result} says {made.whole.verdict}: it judges all that a result holds, so {left}, too, "
            "which the table leaves out; the next scan will not hold that.",
        )
    if first.settings.get("battery") == "quick":
        _line("note", "this was a quick scan: weak attacks set these limits. Scan without --quick, then --force.")
    if verdict != "pass":
        _line("note", "the limits stand as they should be, not as they are met: mend the defense, or add records.")


def _next(target: str, github: bool, gitlab: bool) -> None:
    """Say what to do next: commands as they are typed, in a line each."""
    typer.echo(f"next     leakaudit scan {shlex.quote(target)} --gate")
    if github:
        _line("next", f"put the owner and version of leakaudit into {WORKFLOWS['github']}, and commit it")
    if gitlab:
        _line("next", f"put the owner and version of leakaudit into {WORKFLOWS['gitlab']}, and commit it")
        typer.echo(f"next     add to .gitlab-ci.yml:  include: {{ local: {WORKFLOWS['gitlab']} }}")


def _line(head: str, words: str) -> None:
    """Print words after their head, wrapped below where they begin."""
    from rich.console import Console

    from leakaudit.reports.terminal_lines import paragraph

    paragraph(Console(), f"{head:<8} {words}", hanging=9)
