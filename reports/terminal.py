"""An audit in a terminal: the verdict, a table, the advice. All else is told ahead of the table where it is wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from leakaudit.compare import advice
from leakaudit.judge import ranking
from leakaudit.judge.caps import WEAKENED
from leakaudit.judge.findings import mend
from leakaudit.judge.verdict import reasons_of
from leakaudit.judge.words import brief, ended, grouped, named
from leakaudit.reports import captured, view
from leakaudit.reports.terminal_details import details, left_out
from leakaudit.reports.terminal_lines import STYLES, counted, height, labels, paragraph, printable, shortened
from leakaudit.result import numbers
from leakaudit.result.rules import identifies, judged
from leakaudit.result.schema import AuditResult, DefenseResult, Estimate, Mend
from leakaudit.result.scores import by_measure
from leakaudit.result.tasks import spoken

if TYPE_CHECKING:
    from rich.console import Console

GAP = 2  # columns between two columns
NAME = 8  # columns for the name of a defense, at least
# Lines of a summary that is not verbose: of the rows and what is told below them together, and of that at least.
ROWS, TOLD = 12, 6


def summary(result: AuditResult, console: Console, verbose: bool = False) -> None:
    """Print the verdict, a table of the defenses, and the advice; `verbose` what else there is to say before that.

    At 80 columns up to six rows take at most 17 lines, and each further one a line more. Text of the result is
    printed as it is: no markup is read in it, control codes are blanked, and what the terminal cannot encode is
    replaced.
    """

    def line(words: str, style: str = "", most: int | None = None) -> int:
        return paragraph(console, words, style, most=most)

    headline(result, console, console.width)
    if not result.complete:
        line("The run was interrupted: what is missing was not measured and is not safe.", "yellow")
    for words in captured.in_brief(result):
        line(words)
    console.print()
    if verbose:
        details(result, console)
        console.print()
    _table(result, console)
    line(_limits(result), "dim")
    console.print()
    if verbose:
        told_all = advice.advise(result)
        for advised in told_all.sentences[1 if told_all.silent else 0 :]:  # of no limit that nothing is known of
            line(advised)
        return
    room = max(TOLD, ROWS - len(result.defenses)) - (0 if result.complete else 1)
    told = _told(result, console, room)
    for why in told.whys:
        line(why)
    if told.left:
        line(told.left, "dim")
    line(told.advice, most=max(1, room - height(console, told.left)))


def _limits(result: AuditResult) -> str:
    """Return what is allowed, and what anybody reaches by guessing."""
    cost = None if advice.no_accuracy(result) else advice.loss_limit(result)
    allowed = numbers.percent(result.max_identification) + " identified"
    guess, majority = (
        numbers.percent(result.chance_identification),
        numbers.learned(result.chance_accuracy, result.measure),
    )
    if result.settings.get("utility") is False:
        return f"Limit: {allowed}. By chance: {guess}."
    if cost is None:
        return f"Limit: {allowed}. By chance: {guess} identified, {majority} {result.measure}."
    return f"Limits: {allowed}, {numbers.lost(cost, result.measure)}. By chance: {guess} and {majority}."


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
    """Return the attack that leaks most; where several identified nothing none of them is worse than another."""
    worst, many = ranking.decisive(defense), ranking.fruitless(defense)
    if worst and many > 1 and worst.role != "bound":
        return f"none of {counted(many, 'attack')}"
    return (worst.name + (" (a bound)" if worst.role == "bound" else "")) if worst else "none scored"


def _identified(_: AuditResult, defense: DefenseResult) -> str:
    worst = ranking.decisive(defense)
    return numbers.hits(worst.identification) if worst else numbers.DASH


def _drawn(name: str) -> Callable[[AuditResult, DefenseResult], str]:
    def cell(_: AuditResult, defense: DefenseResult) -> str:
        drawn = ranking.drawn(defense)
        return _value(name, getattr(drawn, name) if drawn else Estimate())

    return cell


def _cost(result: AuditResult, defense: DefenseResult) -> str:
    change = ranking.cost(result, defense)
    return numbers.DASH if change is None else by_measure("accuracy", result.measure).shift(change)


def _learned(result: AuditResult, defense: DefenseResult) -> str:
    return _value("accuracy", defense.accuracy, result.measure)


def _value(name: str, estimate: Estimate, measure: str = "accuracy") -> str:
    return numbers.DASH if estimate.value is None else by_measure(name, measure).write(estimate.value, unit=False)


COLUMNS = (
    Column("Verdict", lambda _, defense: defense.verdict, left=True),
    Column("Worst attack", _worst, name=NAME, left=True),
    Column("Identified", _identified),
    Column("PSNR", _drawn("psnr"), name=20),
    Column("SSIM", _drawn("ssim"), name=80),
    Column("Accuracy", _learned, name=14),
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
    widths = {
        column: max(map(cell_len, (spoken(column.heading, result.measure), *cells[column]))) + GAP for column in COLUMNS
    }
    control = None if result.control() in judged(result) else result.control()
    specs = [defense.spec + (" (control)" if defense is control else "") for defense in result.defenses]
    longest = max(NAME, *(cell_len(printable(spec, console.encoding)) for spec in specs))
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

    line("Defense", [spoken(column.heading, result.measure) for column in shown], ["dim"] * (len(shown) + 1))
    if room < longest:  # what a name is beside it goes before a part of a name
        specs = [defense.spec for defense in result.defenses]
    names = labels(specs, room, console.encoding)
    for i, ((name, *more), defense) in enumerate(zip(names, result.defenses, strict=True)):
        styles = [STYLES[defense.verdict] if column is COLUMNS[0] else "" for column in shown]
        line(name, [cells[column][i] for column in shown], ["", *styles])
        for rest in more:
            console.print(Text(rest), soft_wrap=True)


def _unseen(result: AuditResult) -> tuple[list[str], list[str]]:
    """Return why the verdicts are what they are that a row of the table does not explain, each reason once.

    Those come first that the whole scan gave, with what to do about it, which no advice says.

    A fail is explained by a worst attack that identified more than the limit. Nobody asks why something passed.
    """
    found: dict[tuple[bool, str], list[str]] = {}
    for defense in result.defenses:
        worst = ranking.worst(defense)
        plain = defense.verdict == "fail" and worst is not None and identifies(worst, result.max_identification)
        why = grouped(reasons_of(result, defense))
        if why and defense.requested and defense.verdict != "pass" and not plain:
            first = why[0][0].id
            todo = f" {mend(Mend(first))}" if first in WEAKENED else ""
            found.setdefault((bool(todo), f"{brief(why[0])}.{todo}"), []).append(defense.spec)
    overall = [] if found else [*view.reasons(result)] if result.complete else []
    asked = sum(defense.requested for defense in result.defenses)
    told = [(weak, f"{named(specs, asked)}: {words}") for (weak, words), specs in found.items()]
    return [words for weak, words in told if weak], [*overall, *(words for weak, words in told if not weak)]


@dataclass(frozen=True)
class Told:
    """What stands below the table: why a verdict is what it is, what is left out, and what to do."""

    whys: tuple[str, ...]
    left: str
    advice: str


def _told(result: AuditResult, console: Console, room: int) -> Told:
    """Return the sentences that there is room for, each of them whole; those left out are counted.

    First comes the answer, then what to do about accuracies that say nothing and the next step, then why rows are
    undecided, then what else is advised.
    """
    said, (weak, others) = advice.advise(result), _unseen(result)
    first, *more = [words for words in said.brief if words != said.silent]
    ranked = [words for words in (first, said.silent, *weak, *more[:1], *others, *more[1:]) if words]

    def with_(kept: Sequence[str]) -> Told:
        advised = [words for words in (first, said.silent, *more) if words in kept]
        return Told(
            tuple(w for w in (*weak, *others) if w in kept), _left(result, len(ranked) - len(kept)), " ".join(advised)
        )

    kept = ranked[:1]
    for words in ranked[1:]:
        told = with_([*kept, words])
        lines = sum(height(console, each) for each in (*told.whys, told.left, told.advice))
        kept += [words] if lines <= room else []
    return with_(kept)


def _left(result: AuditResult, sentences: int = 0) -> str:
    """Return what the summary leaves out, counted, some `sentences` too; empty where that is nothing to worry about."""
    left = left_out(result)
    lost = sum(n for _, n in left.lost)
    how = ended(", ".join(f"{n} {status}" for status, n in left.lost))
    parts = (
        counted(sentences, "sentence") if sentences else "",
        counted(lost, "attack") + f" without a score ({how})" if lost else "",
        counted(left.partly, "attack") + " scored in part or cut short" if left.partly else "",
        counted(left.warnings, "warning") if left.warnings else "",
        counted(left.waivers, "waiver") if left.waivers else "",
        counted(left.notes, "note") if left.notes else "",
        counted(left.skipped, "attack") + " skipped once a verdict was settled" if left.skipped else "",
    )
    told = [part for part in parts if part]
    return f"Not told here: {', '.join(told)}; see the report, or --verbose." if told else ""
