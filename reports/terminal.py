"""An audit in a terminal: the verdict, a table, the advice. All else is told ahead of the table where it is wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from leakaudit.judge import advice, ranking
from leakaudit.judge.verdict import reasons_of
from leakaudit.judge.words import brief, grouped, named
from leakaudit.reports import view
from leakaudit.reports.terminal_details import details, left_out
from leakaudit.reports.terminal_lines import STYLES, counted, labels, paragraph, printable, shortened
from leakaudit.result import numbers
from leakaudit.result.rules import identifies
from leakaudit.result.schema import AuditResult, DefenseResult, Estimate
from leakaudit.result.scores import SCORES

if TYPE_CHECKING:
    from rich.console import Console

GAP = 2  # columns between two columns
NAME = 8  # columns for the name of a defense, at least
# Lines of a summary that is not verbose: why, what it leaves out and what to do, and all three together.
WHY, LEFT, ADVICE, TOLD = 2, 2, 3, 6


def summary(result: AuditResult, console: Console, verbose: bool = False) -> None:
    """Print the verdict, a table of the defenses, and the advice; `verbose` what else there is to say before that.

    At 80 columns up to six defenses take at most 17 lines, and each further one a line more. Text of the result is
    printed as it is: no markup is read in it, control codes are blanked, and what the terminal cannot encode is
    replaced.
    """

    def line(words: str, style: str = "", most: int | None = None) -> int:
        return paragraph(console, words, style, most=most)

    headline(result, console, console.width)
    if not result.complete:
        line("The run was interrupted: what is missing was not measured and is not safe.", "yellow")
    console.print()
    if verbose:
        details(result, console)
        console.print()
    _table(result, console)
    line(_limits(result), "dim")
    console.print()
    if verbose:
        for advised in advice.sentences(result):
            line(advised)
        return
    room = WHY
    for why in _unseen(result):
        room -= line(why, most=room) if room else 0
    taken = WHY - room + (0 if result.complete else 1)
    if left := _left(result):
        taken += line(left, "dim", most=LEFT)
    line(" ".join(advice.advise(result).brief), most=min(ADVICE, TOLD - taken))


def _limits(result: AuditResult) -> str:
    """Return what is allowed, and what anybody reaches by guessing."""
    cost = advice.loss_limit(result)
    allowed = numbers.percent(result.max_identification) + " identified"
    guess, majority = numbers.percent(result.chance_identification), numbers.percent(result.chance_accuracy)
    if cost is None:
        return f"Limit: {allowed}. By chance: {guess} identified, {majority} accuracy."
    return f"Limits: {allowed}, {numbers.points(cost)} of accuracy. By chance: {guess} and {majority}."


def headline(result: AuditResult, console: Console, width: int | None = None) -> None:
    """Print the verdict and what was audited, in one line; within a `width` the name is visibly shortened."""
    from rich.text import Text

    verdict = Text(result.verdict.upper(), STYLES[result.verdict])
    verdict += Text("" if result.complete else " so far", "bold")
    name = printable(numbers.plain(result.target.get("name")), console.encoding)
    if width is not None:
        name = shortened(name, max(8, width - len(verdict) - GAP), console.encoding)
    console.print(verdict + Text(f"{' ' * GAP}{name}", "bold"))


@dataclass(frozen=True)
class Column:
    """One column of the table beside that of the defenses' names: its heading, and a defense's cell."""

    heading: str
    cell: Callable[[AuditResult, DefenseResult], str]
    name: int = 0  # columns that the longest name is left, or it goes; the one that asks for most goes first
    left: bool = False  # whether its cells are words


def _worst(_: AuditResult, defense: DefenseResult) -> str:
    worst = ranking.worst(defense)
    return worst.name if worst else "none scored"


def _identified(_: AuditResult, defense: DefenseResult) -> str:
    worst = ranking.worst(defense)
    return numbers.hits(worst.identification) if worst else numbers.DASH


def _drawn(name: str) -> Callable[[AuditResult, DefenseResult], str]:
    def cell(_: AuditResult, defense: DefenseResult) -> str:
        drawn = ranking.drawn(defense)
        return _value(name, getattr(drawn, name) if drawn else Estimate())

    return cell


def _cost(result: AuditResult, defense: DefenseResult) -> str:
    change = ranking.cost(result, defense)
    return numbers.DASH if change is None else numbers.shift(change)


def _value(name: str, estimate: Estimate) -> str:
    return numbers.DASH if estimate.value is None else SCORES[name].write(estimate.value, unit=False)


COLUMNS = (
    Column("Verdict", lambda _, defense: defense.verdict, left=True),
    Column("Worst attack", _worst, name=NAME, left=True),
    Column("Identified", _identified),
    Column("PSNR dB", _drawn("psnr"), name=20),
    Column("SSIM", _drawn("ssim"), name=80),
    Column("Accuracy", lambda _, defense: _value("accuracy", defense.accuracy), name=14),
    Column("Cost", _cost, name=70),
)


def _table(result: AuditResult, console: Console) -> None:
    """Print a row for each defense with the columns that there is room for."""
    from rich.cells import cell_len, set_cell_size
    from rich.text import Text

    if not result.defenses:
        paragraph(console, "Nothing was measured.")
        return
    cells = {
        column: [printable(column.cell(result, defense), console.encoding) for defense in result.defenses]
        for column in COLUMNS
    }
    widths = {column: max(map(cell_len, (column.heading, *cells[column]))) + GAP for column in COLUMNS}
    longest = max(NAME, *(cell_len(printable(defense.spec, console.encoding)) for defense in result.defenses))
    shown = list(COLUMNS)
    for column in sorted(COLUMNS, key=lambda column: -column.name):
        if console.width - sum(widths[c] for c in shown) < min(longest, column.name):
            shown.remove(column)
    room = max(NAME, min(longest, console.width - sum(widths[c] for c in shown)))

    def line(name: str, words: Sequence[str], styles: Sequence[str]) -> None:
        row = Text(set_cell_size(name, room), styles[0])
        for column, cell, style in zip(shown, words, styles[1:], strict=True):
            fill = " " * (widths[column] - GAP - cell_len(cell))
            row += Text(" " * GAP) + Text(cell + fill if column.left else fill + cell, style)
        row.rstrip()
        console.print(row, soft_wrap=True)

    line("Defense", [column.heading for column in shown], ["dim"] * (len(shown) + 1))
    names = labels([defense.spec for defense in result.defenses], room, console.encoding)
    for i, ((name, *more), defense) in enumerate(zip(names, result.defenses, strict=True)):
        styles = [STYLES[defense.verdict] if column is COLUMNS[0] else "" for column in shown]
        line(name, [cells[column][i] for column in shown], ["", *styles])
        for rest in more:
            console.print(Text(rest), soft_wrap=True)


def _unseen(result: AuditResult) -> list[str]:
    """Return why the verdicts are what they are that a row of the table does not explain, each reason once.

    A fail is explained by a worst attack that identified more than the limit. Nobody asks why something passed.
    """
    found: dict[str, list[str]] = {}
    for defense in result.defenses:
        worst = ranking.worst(defense)
        plain = defense.verdict == "fail" and worst is not None and identifies(worst, result.max_identification)
        why = grouped(reasons_of(result, defense))
        if why and defense.requested and defense.verdict != "pass" and not plain:
            found.setdefault(brief(why[0]), []).append(defense.spec)
    overall = [] if found else [*view.reasons(result)] if result.complete else []
    asked = sum(defense.requested for defense in result.defenses)
    return [*overall, *(f"{named(specs, asked)}: {words}." for words, specs in found.items())]


def _left(result: AuditResult) -> str:
    """Return what the summary leaves out, counted; empty where that is nothing to worry about."""
    left = left_out(result)
    lost = sum(n for _, n in left.lost)
    how = ", ".join(f"{n} {status}" for status, n in left.lost)
    parts = (
        counted(lost, "attack") + f" without a score ({how})" if lost else "",
        counted(left.partly, "attack") + " scored in part or cut short" if left.partly else "",
        counted(left.warnings, "warning") if left.warnings else "",
        counted(left.waivers, "waiver") if left.waivers else "",
        counted(left.notes, "note") if left.notes else "",
    )
    told = [part for part in parts if part]
    return f"Not told here: {', '.join(told)}; see the report, or --verbose." if told else ""
