"""An audit in a terminal, from 60 columns on."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

from leakaudit.gate.waivers import is_over
from leakaudit.judge import ranking
from leakaudit.judge.findings import mend_of
from leakaudit.judge.verdict import UNFINISHED, reasons_of
from leakaudit.judge.words import brief, grouped, notes_of, sentence
from leakaudit.reports import costs, examined, view
from leakaudit.reports.standing import in_brief
from leakaudit.result import numbers
from leakaudit.result.plaintext import visible
from leakaudit.result.schema import AuditResult, DefenseResult, Estimate, Verdict
from leakaudit.result.scores import SCORES

if TYPE_CHECKING:
    from rich.console import Console

STYLES: dict[Verdict, str] = {"pass": "bold green", "fail": "bold red", "inconclusive": "bold yellow"}
NAME = 18  # columns for a defense's name, at least
REASONS = 2  # shown for each defense; the report has them all
FALLBACKS = {
    numbers.MINUS: "-",
    numbers.DASH: "-",
    "–": "-",
    "±": "+-",
    "x̃": "x~",
    "’": "'",
    "ε": "epsilon",
    "δ": "delta",
    "ρ": "rho",
}


def summary(result: AuditResult, console: Console) -> None:
    """Print the verdict, a table of the defenses, the advice, the reasons, and what the reader must not overlook.

    Text of the result is printed as it is: no markup is read in it, control codes are blanked, and what the terminal
    cannot encode is replaced.
    """
    from leakaudit.judge.advice import sentences

    def line(words: str, style: str = "", indent: int = 0, hanging: int = 0) -> None:
        paragraph(console, words, style, indent, hanging)

    headline(result, console)
    if not result.complete:
        line("The run was interrupted: what is missing was not measured and is not safe.", "yellow")
    for reason in view.reasons(result):
        line(reason)
    console.print()
    _table(result, console)
    guess, majority = numbers.percent(result.chance_identification), numbers.percent(result.chance_accuracy)
    limit = numbers.percent(result.max_identification)
    line(f"Chance: {guess} identified, {majority} accuracy. Limit: {limit} identified.", "dim")
    line("PSNR, SSIM: medians of the closest pictures any attack drew. Cost: points of accuracy.", "dim")
    if any(ranking.bound(d) for d in result.defenses):
        line("Handed x̃: what an attack finds that is given the replaced records themselves, not an update.", "dim")
    for note in (view.training(result), ranking.no_cost(result)):
        if note:
            line(note, "dim")
    console.print()
    for advised in sentences(result):
        line(advised)
    if took := costs.in_brief(result):
        line(took, "dim")
    console.print()
    told: dict[str, str] = {}  # sentences by the defense that gave them first
    for defense in result.defenses:
        line(f"{defense.spec}: {defense.verdict}", "bold", hanging=4)
        why = grouped(reasons_of(result, defense))
        for together in why[:REASONS]:
            said = sentence(together)
            first = told.setdefault(said, defense.spec)
            line(said if first == defense.spec else f"{brief(together)}, as under {first}.", indent=2)
        if len(why) > REASONS:
            line(f"{len(why) - REASONS} more in the report", "dim", indent=2)
        for words in filter(None, (in_brief(result, defense), examined.in_brief(defense))):
            line(words, "dim", indent=2)
    for (attack, ended), specs in _unscored(result).items():
        line(f"not scored: {attack} on {', '.join(specs)} ({ended})", "yellow", hanging=2)
    for (attack, what), specs in _noted(result).items():
        line(f"note: {attack} on {', '.join(specs)} {what}", "dim", hanging=2)
    for name, words in examined.controls(result):
        line(f"{name}: {words}", "dim", hanging=2)
    for finding in result.findings:
        if finding.severity != "info":
            line(f"{finding.severity}: {finding.message}", "yellow", hanging=2)
            line(f"mend: {finding.mend or mend_of(finding.id)}", indent=2, hanging=2)
    for waiver in result.waivers:
        where = ", ".join([waiver.defense, *([f"attack {waiver.attack}"] if waiver.attack != "*" else [])])
        by = f" by {waiver.by}" if waiver.by else ""
        over = "waiver, expired" if is_over(waiver, dt.date.today()) else "waiver"
        line(f"{over}: {waiver.rule} on {where}, until {waiver.expires}{by}: {waiver.reason}", "yellow", hanging=2)


def paragraph(console: Console, words: str, style: str = "", indent: int = 0, hanging: int = 0) -> None:
    """Print a sentence wrapped to the terminal: `indent` columns in, and `hanging` more from its second line on."""
    from rich.text import Text

    text = Text(printable(words, console.encoding), style)
    first, *rest = text.wrap(console, max(20, console.width - indent)) or [text]
    if rest and hanging:
        begun = len(text.plain) - len(text.plain[len(first) :].lstrip())
        rest = list(text[begun:].wrap(console, max(20, console.width - indent - hanging)))
    for i, part in enumerate([first, *rest]):
        part.rstrip()
        console.print(Text(" " * (indent + (hanging if i else 0))) + part, soft_wrap=True)


def _table(result: AuditResult, console: Console) -> None:
    """Print a row for each defense: its spec and worst attack, and what that attack found."""
    from rich.table import Table
    from rich.text import Text

    def cell(*lines: str) -> Text:
        """Return lines below each other, all but the first dimmed."""
        first, *rest = (printable(words, console.encoding) for words in lines)
        return Text(first) + Text("".join(f"\n{words}" for words in rest), "dim")

    rows = [(defense, _cells(result, defense)) for defense in result.defenses]
    headings = [("Identified", "95%"), ("PSNR", "dB"), ("SSIM", ""), ("Accuracy", "±"), ("Cost", "")]
    widths = [max(map(len, (*pair, *(c for _, cells in rows for c in cells[i])))) for i, pair in enumerate(headings)]
    taken = max(map(len, ["Verdict", *(d.verdict for d in result.defenses)])) + 2 + sum(widths) + 2 * len(widths)
    columns = list(range(len(headings)))
    for extra in (2, 1, 4):  # SSIM, PSNR and cost go first where there is no room; the report has them
        if console.width - taken < NAME:
            columns.remove(extra)
            taken -= widths[extra] + 2
    left = max(NAME, min(60, console.width - taken))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("Defense\n  worst attack", no_wrap=True, overflow="crop")
    for i in columns:
        table.add_column(cell(*headings[i]), justify="right", no_wrap=True)
    table.add_column("Verdict", no_wrap=True)
    for defense, cells in rows:
        worst, handed = ranking.worst(defense), ranking.bound(defense)
        specs = folded(printable(defense.spec, console.encoding), left, 4)
        attacks = folded("  " + (worst.name if worst else "no attack scored"), left, 4)
        shown = [[value, note] for value, note in cells]
        if handed and handed.identification.value is not None:
            attacks.append("  handed x̃")
            shown[0] += [*[""] * (len(specs) + len(attacks) - 3), numbers.percent(handed.identification.value)]
        name = Text("\n".join(specs)) + Text(
            "".join("\n" + printable(line, console.encoding) for line in attacks), "dim"
        )
        table.add_row(name, *(cell(*shown[i]) for i in columns), Text(defense.verdict, STYLES[defense.verdict]))
    console.print(table)


def folded(words: str, width: int, hanging: int) -> list[str]:
    """Return a spec in lines of at most `width` columns, broken after a comma or a colon where it can be.

    Lines but the first are indented by `hanging` columns.
    """
    lines, rest, indent = [], words, ""
    while len(rest) > (room := max(8, width - len(indent))):
        cut = max(rest.rfind(mark, 0, room) for mark in ",:-") + 1
        cut = cut if cut > len(rest) - len(rest.lstrip()) + 1 else room
        lines.append(indent + rest[:cut])
        rest, indent = rest[cut:], " " * hanging
    return [*lines, indent + rest]


def headline(result: AuditResult, console: Console) -> None:
    """Print the verdict and what was audited, in one line."""
    from rich.text import Text

    verdict = Text(result.verdict.upper(), STYLES[result.verdict])
    name = printable(numbers.plain(result.target.get("name")), console.encoding)
    console.print(verdict + Text("" if result.complete else " so far", "bold") + Text(f"  {name}", "bold"))


def _unscored(result: AuditResult) -> dict[tuple[str, str], list[str]]:
    """Return, by attack and what became of it, the defenses on which it was not scored, but where a reason told it."""
    found: dict[tuple[str, str], list[str]] = {}
    for defense in result.defenses:
        shown = [reason for together in grouped(reasons_of(result, defense))[:REASONS] for reason in together]
        named = {reason.attack for reason in shown if reason.id == UNFINISHED}
        for attack in defense.attacks:
            if ranking.scored(attack)[0] == 0 and not (attack.reason and attack.name in named):
                why = f"{ranking.statuses(attack)}: {ranking.how_it_ended(attack) or 'no reason was recorded'}"
                found.setdefault((attack.name, why), []).append(defense.spec)
    return found


def _noted(result: AuditResult) -> dict[tuple[str, str], list[str]]:
    """Return, by scored attack and how it ran or what a plug-in's metric says, the defenses on which it did."""
    found: dict[tuple[str, str], list[str]] = {}
    for defense in result.defenses:
        for attack in defense.attacks:
            if (notes := notes_of(attack)) and ranking.scored(attack)[0]:
                found.setdefault((attack.name, f"({'; '.join(notes)})"), []).append(defense.spec)
            for words in ranking.further(attack):
                found.setdefault((attack.name, f"by a plug-in: {words}"), []).append(defense.spec)
    return found


def _cells(result: AuditResult, defense: DefenseResult) -> list[tuple[str, str]]:
    """Return the numbers of a row, each with a note that goes below it."""
    worst, change, drawn, none = (
        ranking.worst(defense),
        ranking.cost(result, defense),
        ranking.drawn(defense),
        Estimate(),
    )
    share = worst.identification if worst else none
    return [
        (_value("identification", share), numbers.interval(share)),
        (_value("psnr", drawn.psnr if drawn else none), ""),
        (_value("ssim", drawn.ssim if drawn else none), ""),
        (_value("accuracy", defense.accuracy), numbers.margin(defense.accuracy)),
        (numbers.DASH if change is None else numbers.shift(change), ranking.cost_note(result, defense)),
    ]


def _value(name: str, estimate: Estimate) -> str:
    return numbers.DASH if estimate.value is None else SCORES[name].write(estimate.value, unit=False)


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
