"""The commands that look before a scan: `doctor` at the set-up, `list` at what is built in.

Heavy imports wait until a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import json
from enum import Enum
from typing import Annotated

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
        from leakaudit.watch.readiness import notice, sent, takes
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
