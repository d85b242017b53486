"""What `leakaudit doctor` shows: what a target is, what was found in it, and what a scan of it would take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from leakaudit.audit.costs import Costs
from leakaudit.protocol.target import Target
from leakaudit.result.schema import Finding
from leakaudit.scene.plan import Plan

if TYPE_CHECKING:
    from rich.console import Console

BUDGETS = (60.0, 300.0, 1800.0)  # seconds, that `doctor` reckons with


def sent(plan: Plan) -> str:
    """Return what a scan would attack, in a sentence: how many updates, and what each client does before it sends."""
    from leakaudit.result.federation import in_words

    sender = plan.sender()
    summed = f", each the sum of {sender.clients} clients'" if sender.clients > 1 else ""
    count = f"{plan.victims} update{'s' * (plan.victims > 1)}{summed}"
    return f"A scan attacks {count}. A client {in_words(sender, plan.own)}."


def notice(console: Console, target: Target, findings: Sequence[Finding]) -> None:
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


def takes(console: Console, target: Target, plan: Plan, costs: Costs) -> None:
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
