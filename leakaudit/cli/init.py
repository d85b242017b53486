"""`leakaudit init`: the configuration from a first scan, and a workflow for CI."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leakaudit.errors import UserError
from leakaudit.files.folder import stored
from leakaudit.options.command import Command
from leakaudit.options.common import GATES, TARGET_HELP, examples
from leakaudit.options.settings import options, scan_of
from leakaudit.work.quantities import typed_bytes, typed_seconds

if TYPE_CHECKING:
    from leakaudit.result.schema import AuditResult

FIRST = Path("leakaudit-out/result.json")
PROJECT = Path("pyproject.toml")
WORKFLOWS = {"github": Path(".github/workflows/leakaudit.yml"), "gitlab": Path(".gitlab/leakaudit.yml")}
# Settings of a plan that `scan` has under another name or in another form; the others are options as they stand.
OTHERWISE = ("defenses", "attacks", "battery", "records", "utility", "seeds", "epochs", "budget", "memory")
FORMS = ("defense", "attack", "quick", "full", "no_utility")  # and these names
# Options of `scan` by what a result's environment calls them: kept as they were given.
GIVEN = {"data": "data", "checkpoint": "checkpoint", "lpips_weights": "lpips_weights", "device_asked": "device"}
SIMPLE = re.compile(r"[\w./:=,+-]+")  # needs quoting neither in YAML nor in a shell


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
    from leakaudit.result.plaintext import visible
    from leakaudit.result.schema import load

    result = stored(result)
    if not result.is_file():
        raise UserError(
            f"there is no {result} to take thresholds from: run `leakaudit scan {model or 'model.py'} -d obscure` "
            "first (without --quick, which is too weak to set limits by), or name another with --result."
        )
    first = load(result)
    target = model or _given(first, "target") or "model.py"
    today = dates.today()
    place = PROJECT.resolve()  # a link stays one
    existing = _existing(place)
    replaced = table(existing)
    before, dropped = _kept(replaced, set(options(scan_of(ctx)))) if force else ({}, ())
    made = start(first, _options(first, before), today)
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
        typer.echo(f"note     {visible(note, 400)}")
    _tell(first, made.outcome.verdict, made.outcome.reasons, target, github, gitlab)


def _existing(path: Path) -> str:
    from leakaudit.files.reading import TOML, text_of

    return text_of(path, TOML, "utf-8") if path.exists() else ""


def _kept(table: Mapping[str, Any], known: Set[str]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the options in a table that is replaced, by their name with underscores, and the keys that are none."""
    found = {key.replace("-", "_"): value for key, value in table.items() if key not in ("assert", "waiver")}
    plain = {k: v for k, v in found.items() if isinstance(v, str | int | float)}
    return {k: v for k, v in plain.items() if k in known}, tuple(repr(k) for k in found if k not in known)


def _options(result: AuditResult, before: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of `scan` that are not the defaults, so that the next scan measures the same.

    What the result knows is taken from there, wherever the first scan had it from; the rest from the table that is
    replaced.
    """
    from dataclasses import fields

    from leakaudit.audit.plan import Plan
    from leakaudit.result.batteries import BATTERIES
    from leakaudit.result.specs import apart

    settings, usual = result.settings, {f.name: f.default for f in fields(Plan)} | {"images": "full"}
    found: dict[str, Any] = {
        key: settings[key]
        for key, value in usual.items()
        if key not in OTHERWISE and settings.get(key) is not None and settings[key] != value
    }
    name = str(settings.get("battery"))
    if name == "full":
        found["full"] = True
    battery = BATTERIES.get(name, BATTERIES["standard"])
    attacks = settings.get("attacks")
    if isinstance(attacks, str) and attacks and apart(attacks) != list(battery.attacks):
        found["attack"] = apart(attacks)
    for key, own in (("seeds", battery.seeds), ("epochs", battery.epochs)):
        if settings.get(key) is not None and settings[key] != own:
            found[key] = settings[key]
    if settings.get("utility") is False:
        found["no_utility"] = True
    for key, written in (("budget", typed_seconds), ("memory", typed_bytes)):
        value = settings.get(key)
        if isinstance(value, int | float):
            found[key] = written(value)
    found |= {option: told for key, option in GIVEN.items() if (told := _given(result, key))}
    decided = {*usual, *FORMS} - {"images"}  # whatever the table says, which may show less than the scan did
    rest = {key: value for key, value in before.items() if key not in decided and key not in found}
    return {key.replace("_", "-"): value for key, value in (found | rest).items()}


def _given(result: AuditResult, name: str) -> str:
    """Return what the first scan was given, empty where the result does not say: of some paths it has the end alone."""
    told = str(result.environment.get(name) or "")
    return "" if told.startswith("…") else str(Path(told).expanduser()) if told.startswith("~/") else told


def workflow(name: str, target: str, defenses: tuple[str, ...], records: int) -> str:
    """Return the example workflow with this project's target, defenses and records in it."""
    for word in (target, *defenses):
        if not SIMPLE.fullmatch(word) or word.startswith("-"):
            raise UserError(f"{word!r} cannot be written into a workflow as it is: copy one from examples/workflows.")
    text = (Path(__file__).parents[1] / "workflows" / f"{name}.yml").read_text(encoding="utf-8")
    changes = {
        "github": {
            "          target: model.py\n": f"          target: {target}\n",
            "            obscure\n": "".join(f"            {spec}\n" for spec in defenses),
            "--records=64\n": f"--records={records}\n",
        },
        "gitlab": {
            "--defense=obscure": " ".join(f"--defense={spec}" for spec in defenses),
            "--records=64": f"--records={records}",
            " model.py\n": f" {target}\n",
        },
    }[name]
    for before, after in changes.items():
        if text.count(before) != 1:
            raise RuntimeError(f"the workflow {name}.yml has {text.count(before)} of {before!r}, not one")
        text = text.replace(before, after)
    return text


def _tell(result: AuditResult, verdict: str, reasons: tuple[str, ...], target: str, github: bool, gitlab: bool) -> None:
    """Say what the gate makes of the first scan, and what to do next."""
    from leakaudit.result.plaintext import visible

    typer.echo(f"gate now {verdict}: {visible(reasons[0] if reasons else '', 400)}")
    if result.settings.get("battery") == "quick":
        typer.echo("note     this was a quick scan: weak attacks set these limits. Scan without --quick, then --force.")
    if verdict != "pass":
        typer.echo(
            "note     the limits stand as they should be, not as they are met: mend the defense, or add records."
        )
    typer.echo(f"next     leakaudit scan {shlex.quote(target)} --gate")
    if github:
        typer.echo(f"next     put the owner and version of leakaudit into {WORKFLOWS['github']}, and commit it")
    if gitlab:
        typer.echo(f"next     put the owner and version of leakaudit into {WORKFLOWS['gitlab']}, and commit it")
        typer.echo(f"next     add to .gitlab-ci.yml:  include: {{ local: {WORKFLOWS['gitlab']} }}")
