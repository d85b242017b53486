"""The commands that look before a scan: `doctor` at the set-up, `list` at what is built in.

Heavy imports wait until a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import json
from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from leakaudit.errors import UserError
from leakaudit.options import names
from leakaudit.options.command import Command
from leakaudit.options.common import (
    AUDIT,
    MODEL,
    USAGE,
    BatchSize,
    Checkpoint,
    ClientMode,
    ClientSpec,
    Data,
    Device,
    Mode,
    Records,
    Seed,
    Target,
    examples,
    name_what_was_left_out,
    named,
    tell_where,
)
from leakaudit.options.settings import FROM_ENVIRONMENT, Config

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from leakaudit.audit.costs import Costs
    from leakaudit.protocol.target import Target as Loaded
    from leakaudit.result.schema import Finding
    from leakaudit.scene.plan import Plan

BUDGETS = (60.0, 300.0, 1800.0)  # seconds, that `doctor` reckons with


class Kind(str, Enum):  # noqa: UP042 - typer shows the values
    """What `list` can list."""

    attacks = "attacks"
    defenses = "defenses"
    metrics = "metrics"


def add(app: typer.Typer) -> None:
    """Register the commands of this file."""
    app.command(
        cls=Command,
        context_settings=FROM_ENVIRONMENT,
        rich_help_panel=AUDIT,
        short_help="Check the set-up before a long run.",
        epilog=examples(
            "leakaudit doctor",
            "leakaudit doctor model.py --mode train --batch-size 8",
            "leakaudit doctor model.py --client fedavg:epochs=1:batch=8",
            settings=True,
        ),
    )(doctor)
    app.command(
        cls=Command,
        name="list",
        rich_help_panel=AUDIT,
        short_help="List attacks, defenses and metrics: built in, and of plug-ins.",
        epilog=examples(
            "leakaudit list attacks",
            "leakaudit list attacks --defense obscure",
            "leakaudit list defenses --json",
            "leakaudit list metrics",
        ),
    )(list_)


def doctor(  # noqa: PLR0913 - a command: its options
    target: Target = MODEL,
    data: Data = None,
    checkpoint: Checkpoint = None,
    records: Records = 16,
    batch_size: BatchSize = 1,
    client: ClientSpec = "",
    mode: ClientMode = Mode.eval,
    device: Device = "auto",
    seed: Seed = 0,
    config: Config = None,
) -> None:
    """Check the set-up before a long run: ranges, labels, modes, gradients, memory, and what a scan would take.

    Ends with "ready", or exits 2 on an error.
    """
    named(target)
    tell_where(config)
    from rich.console import Console

    from leakaudit.watch.console import working

    with working("loading libraries") as stage:
        from leakaudit.audit.costs import measured
        from leakaudit.audit.rehearsing import rehearsed
        from leakaudit.load.loading import load_target
        from leakaudit.load.preflight import preflight
        from leakaudit.load.units import with_units
        from leakaudit.scene.plan import Plan
        from leakaudit.watch.rehearsal import failures, show_rehearsed

        plan = Plan(mode=mode.value, records=records, batch_size=batch_size, client=client, seed=seed)
        stage("loading the model and the data")
        loaded = with_units(load_target(target, data=data, checkpoint=checkpoint, device=device, seed=seed))
        stage("checking the model and the data")
        plan = plan.settled(loaded.client, len(loaded.private))
        sizes = {"batch_size": plan.batch_size, "records": plan.records}
        findings = preflight(loaded, mode=plan.mode, costs=True, **sizes)
    console = Console()
    notice(console, loaded, findings)
    console.print(f"[dim]client [/] {sent(plan)}", highlight=False)
    errors, warnings = (sum(finding.severity == kind for finding in findings) for kind in ("error", "warning"))
    if errors:
        console.print(f"[red]not ready[/]: mend {'the error' if errors == 1 else f'the {errors} errors'} above.")
        raise typer.Exit(USAGE)
    with working("measuring what a scan would take") as stage:
        costs = measured(loaded, plan)
        tried = rehearsed(loaded, plan, lambda name: stage(f"trying {name}"))
    show_rehearsed(console, tried)
    takes(console, loaded, plan, costs)
    told = f" but for {'the warning' if warnings == 1 else f'the {warnings} warnings'} above" if warnings else ""
    told += f"{' and' if told else ' but for'} what fails above" if failures(tried) else ""
    console.print(f"[green]ready[/]{told}", highlight=False)


def sent(plan: Plan) -> str:
    """Return what a scan would attack, in a sentence: how many updates, and what each client does before it sends."""
    from leakaudit.result.federation import in_words

    sender = plan.sender()
    summed = f", each the sum of {sender.clients} clients'" if sender.clients > 1 else ""
    count = f"{plan.victims} update{'s' * (plan.victims > 1)}{summed}"
    return f"A scan attacks {count}. A client {in_words(sender, plan.own)}."


def notice(console: Console, target: Loaded, findings: Sequence[Finding]) -> None:
    """Print what a target is, what was found, and how to mend it."""
    from rich.markup import escape

    from leakaudit.judge.findings import mend_of
    from leakaudit.result.plaintext import visible
    from leakaudit.result.shapes import in_words as sizes_in_words
    from leakaudit.result.tasks import in_words

    def shown(words: str) -> str:
        return escape(visible(words))

    console.print(
        f"[bold]{shown(target.name)}[/]: {shown(type(target.model.network).__name__)}, {sizes_in_words(target.sizes)}, "
        f"{in_words(target.task.described, len(target.classes))}; {len(target.private)} private, "
        f"{len(target.test)} test, {len(target.auxiliary)} auxiliary records on {target.device}",
        highlight=False,
    )
    colours = {"error": "red", "warning": "yellow", "info": "cyan"}
    for finding in findings:
        mark = f"[{colours[finding.severity]}]{finding.severity:<7}[/]"
        console.print(f"{mark} {shown(finding.message)} [dim]({finding.id})[/]", highlight=False)
        if finding.severity != "info":
            console.print(f"[dim]mend   [/] {shown(finding.mend or mend_of(finding.id))}", highlight=False)
    for note in target.notes:
        console.print(f"[dim]note   [/] {shown(note)}", highlight=False)


def takes(console: Console, target: Loaded, plan: Plan, costs: Costs) -> None:
    """Print what every battery would take here, and what a time budget buys of the standard one."""
    from rich.table import Table

    from leakaudit.result.numbers import about
    from leakaudit.result.rules import FIT
    from leakaudit.watch.estimate import SAMPLE, bought, estimates
    from leakaudit.work.quantities import typed_seconds

    table = Table("a scan of", "undefended", *(f"and {spec}" for spec in SAMPLE), title_justify="left", box=None)
    table.title = "On this machine, about"
    for found in estimates(target, plan, costs):
        table.add_row(found.battery, about(found.control), *(f"+ {about(each)}" for each in found.more.values()))
    console.print(table)
    for budget in BUDGETS:
        buys = bought(target, plan, costs, budget)
        parts = (f"{buys.whole} pieces in full", f"{len(buys.cut)} cut short", f"{len(buys.left_out)} not begun")
        unfitted = any(name.endswith(f": {FIT}") for name in buys.left_out)
        told = ", ".join(parts) + (f"; {SAMPLE[-1]} would not be fitted" if unfitted else "")
        first = f"--budget {typed_seconds(budget)}"
        console.print(f"{first:<13} of a standard scan with {SAMPLE[-1]}: {told}", highlight=False)


def list_(
    kind: Annotated[Kind, typer.Argument(metavar="KIND", help="attacks, defenses or metrics.")],
    defense: Annotated[
        str | None,
        typer.Option(
            "--defense",
            "-d",
            metavar="SPEC",
            help="With attacks: which of them a scan would run on this defense, and why.",
            autocompletion=names.defenses,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """List what is built in and what plug-ins bring, with settings and sources."""
    if defense is not None and kind is not Kind.attacks:
        raise UserError("--defense says which attacks run on it: leakaudit list attacks --defense NAME.")
    from leakaudit.options.listing import against, rows, show, show_against
    from leakaudit.protocol.registry import parse_defense

    found = None if defense is None else parse_defense(defense)
    listed = rows(kind.value) if found is None else against(found)
    name_what_was_left_out()
    if as_json:
        typer.echo(json.dumps(listed, indent=1))
    elif found is None:
        show(listed)
    else:
        show_against(str(defense), found)
