"""An audit in a terminal of 80 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from leakaudit.plaintext import visible
from leakaudit.reports import view
from leakaudit.reports.standing import in_brief
from leakaudit.result import AuditResult, DefenseResult, Estimate, Verdict

if TYPE_CHECKING:
    from rich.console import Console

STYLES: dict[Verdict, str] = {"pass": "bold green", "fail": "bold red", "inconclusive": "bold yellow"}
REASONS = 2  # shown for each defense; the report has them all
FALLBACKS = {
    view.MINUS: "-",
    view.DASH: "-",
    "–": "-",
    "±": "+-",
    "x̃": "x~",
    "’": "'",
    "ε": "epsilon",
    "δ": "delta",
    "ρ": "rho",
}


def summary(result: AuditResult, console: Console) -> None:
    """Print the verdict, a table of the defenses, the reasons, and what the reader must not overlook.

    Text of the result is printed as it is: no markup is read in it, control codes are blanked, and what the terminal
    cannot encode is replaced.
    """
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    def text(words: str, style: str = "") -> Text:
        return Text(printable(words, console.encoding), style)

    headline(result, console)
    if not result.complete:
        console.print(text("The run was interrupted: what is missing was not measured and is not safe.", "yellow"))
    for reason in view.reasons(result):
        console.print(text(reason))

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("Defense\n  worst attack", overflow="fold", ratio=1)
    for heading in ("Identified\n95 %", "PSNR\ndB", "SSIM", f"Accuracy\n{printable('±', console.encoding)}", "Cost"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("Verdict", no_wrap=True)
    for defense in result.defenses:
        lines = _lines(result, defense)
        cells = [text(first) + "\n" + text(second, "dim") for first, second in lines]
        table.add_row(*cells, text(defense.verdict, STYLES[defense.verdict]))
    console.print()
    console.print(table)
    chances = (
        f"{view.percent(result.chance_identification)} identified, {view.percent(result.chance_accuracy)} accuracy"
    )
    limit = view.percent(result.max_identification)
    console.print(text(f"Chance: {chances}. Limit: {limit} identified.", "dim"))
    console.print(text("PSNR, SSIM: medians of the closest pictures any attack drew. Cost: points of accuracy.", "dim"))
    for sentence in (view.training(result), view.no_cost(result)):
        if sentence:
            console.print(text(sentence, "dim"))

    console.print()
    for defense in result.defenses:
        console.print(text(f"{defense.spec}: {defense.verdict}", "bold"))
        for reason in defense.reasons[:REASONS]:
            console.print(Padding(text(reason), (0, 0, 0, 2)))
        if len(defense.reasons) > REASONS:
            console.print(text(f"  {len(defense.reasons) - REASONS} more in the report", "dim"))
        if brief := in_brief(result, defense):
            console.print(Padding(text(brief, "dim"), (0, 0, 0, 2)))
    for (attack, why), specs in _unscored(result).items():
        console.print(text(f"not scored: {attack} on {', '.join(specs)} ({why})", "yellow"))
    for (attack, what), specs in _noted(result).items():
        console.print(text(f"note: {attack} on {', '.join(specs)} {what}", "dim"))
    for finding in result.findings:
        if finding.severity != "info":
            console.print(text(f"{finding.severity}: ", "yellow") + text(finding.message))


def headline(result: AuditResult, console: Console) -> None:
    """Print the verdict and what was audited, in one line."""
    from rich.text import Text

    verdict = Text(result.verdict.upper(), STYLES[result.verdict])
    name = printable(view.plain(result.target.get("name")), console.encoding)
    console.print(verdict + Text("" if result.complete else " so far", "bold") + Text(f"  {name}", "bold"))


def _unscored(result: AuditResult) -> dict[tuple[str, str], list[str]]:
    """Return, by attack and what became of it, the defenses on which it was not scored."""
    found: dict[tuple[str, str], list[str]] = {}
    for defense in result.defenses:
        for attack in defense.attacks:
            if view.scored(attack)[0] == 0:
                why = f"{view.statuses(attack)}: {view.remarks(attack) or 'no reason was recorded'}"
                found.setdefault((attack.name, why), []).append(defense.spec)
    return found


def _noted(result: AuditResult) -> dict[tuple[str, str], list[str]]:
    """Return, by scored attack and how it ran, the defenses on which it did."""
    found: dict[tuple[str, str], list[str]] = {}
    for defense in result.defenses:
        for attack in defense.attacks:
            if attack.notes and view.scored(attack)[0]:
                found.setdefault((attack.name, f"({'; '.join(attack.notes)})"), []).append(defense.spec)
    return found


def _lines(result: AuditResult, defense: DefenseResult) -> list[tuple[str, str]]:
    """Return the cells of a row, each of two lines."""
    worst, limit, change = view.worst(defense), view.bound(defense), view.cost(result, defense)
    none, drawn = Estimate(), view.drawn(defense)
    share = worst.identification if worst else none
    below = f"  {worst.name}" if worst else "  no attack scored"
    if limit and limit.identification.value is not None:
        below += f"; bound {view.percent(limit.identification.value)}"
    return [
        (defense.spec, below),
        (view.DASH if share.value is None else view.percent(share.value), view.interval(share)),
        (_value(drawn.psnr if drawn else none, 1), ""),
        (_value(drawn.ssim if drawn else none, 2), ""),
        (
            view.DASH if defense.accuracy.value is None else f"{100 * defense.accuracy.value:.1f}%",
            view.margin(defense.accuracy),
        ),
        (view.DASH if change is None else view.points(change), view.cost_note(result, defense)),
    ]


def _value(estimate: Estimate, digits: int) -> str:
    return view.DASH if estimate.value is None else view.number(estimate.value, digits)


def printable(words: str, encoding: str) -> str:
    """Return third-party text as a terminal may show it: nothing hidden in it, nothing its encoding lacks."""
    cleaned = visible(words)
    try:
        cleaned.encode(encoding)
    except UnicodeEncodeError:
        for fancy, simple in FALLBACKS.items():
            cleaned = cleaned.replace(fancy, simple)
        cleaned = cleaned.encode(encoding, "replace").decode(encoding)
    return cleaned
