"""What the gate says, and what changed between two results, in a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from textwrap import shorten
from typing import TYPE_CHECKING

from leakaudit.compare.changes import Change
from leakaudit.gate.losses import ALPHA
from leakaudit.judge.findings import unused_mend
from leakaudit.judge.words import sentences
from leakaudit.reports.terminal_lines import STYLES, counted, paragraph, printable, shortened
from leakaudit.result.numbers import DASH
from leakaudit.result.outcome import Check, Outcome
from leakaudit.result.plaintext import visible
from leakaudit.result.rules import VERDICTS
from leakaudit.result.schema import Estimate
from leakaudit.result.scores import SCORES, Score, by_measure

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

ROOM, MENDS, MOST = 11, 2, 3  # where it is short: lines for checks, what mends them, and lines of one text
INDENT = 7  # columns before the name of a check
WORDS = {"pass": "ok", "fail": "FAIL", "inconclusive": "OPEN"}


def show(outcome: Outcome, console: Console, verbose: bool = False) -> None:
    """Print the verdict, each check that did not pass with its number or its reason, and what mends them.

    `verbose`: every check with its sentence and mend, all waivers, and all notes. Text is printed as it is.
    """
    from rich.text import Text

    head = Text(f"GATE {outcome.verdict.upper()}", STYLES[outcome.verdict])
    console.print(head + Text(printable(f"  {outcome.source}", console.encoding), "bold"))
    against = f"against {outcome.baseline}" if outcome.baseline else "no baseline: nothing is compared"
    asked = f"preset {', '.join(outcome.presets)}; " if outcome.presets else ""
    paragraph(console, f"{asked}{against}", "dim")
    console.print()
    (_in_full if verbose else _in_short)(outcome, console)


def _in_short(outcome: Outcome, console: Console) -> None:
    """Print each check that did not pass, how many did, what mends them, and the notes."""
    ordered = sorted(outcome.checks, key=_order)
    open_ = [check for check in ordered if check.status != "pass"]
    told = _checks(open_, console)
    if told < len(open_):
        paragraph(console, f"       {len(open_) - told} more, which --verbose lists", "dim")
    if passed := len(ordered) - len(open_):
        paragraph(console, f"{WORDS['pass']:<7}{counted(passed, 'check')}", "dim")
    mends = dict.fromkeys(check.mend for check in open_ if check.waiver is None and check.mend)
    for mend in list(mends)[:MENDS]:
        paragraph(console, f"Next: {_cut(mend, console)}", hanging=6)
    if outcome.waivers:
        expired = sum(state.state == "expired" for state in outcome.waivers)
        words = counted(len(outcome.waivers), "waiver") + (f", {expired} expired" if expired else "")
        paragraph(console, words, "red" if expired else "dim")
    for note in (*outcome.notes, *(() if outcome.checks else outcome.reasons)):
        paragraph(console, f"note   {_cut(note, console)}", "dim", hanging=7)


def _checks(checks: Sequence[Check], console: Console) -> int:
    """Print as many checks as have room, and return how many: a line for each, below it what did not fit and why.

    What several in a row have as their reason stands once, below the last of them.
    """
    from rich.text import Text

    told, used, column = 0, 0, _column(checks, console)
    for (reason, _), group in groupby(checks, key=lambda check: (_reason(check), _word(check))):
        rows = [(check, _row(check, column, console)) for check in group]
        most = ROOM - used - (1 + len(reason) // (console.width - INDENT) if reason else 0)
        fits = [rows[:n] for n in range(1, len(rows) + 1) if sum(len(lines) for _, lines in rows[:n]) <= most]
        if not fits and told:
            return told
        for check, lines in (shown := fits[-1] if fits else rows[:1]):
            for line in lines:
                console.print(Text(line, _word(check)[1]), soft_wrap=True)
        used += sum(len(lines) for _, lines in shown)
        used += paragraph(console, _cut(reason, console), indent=INDENT) if reason else 0
        told += len(shown)
        if len(shown) < len(rows):
            return told
    return told


def _column(checks: Sequence[Check], console: Console) -> int:
    """Return the columns of a name: of the longest beside which its number fits."""
    from rich.cells import cell_len

    sizes = [(cell_len(printable(c.id, console.encoding)), len(_number(c))) for c in checks]
    return max((name for name, number in sizes if INDENT + name + 2 + number <= console.width), default=0)


def _row(check: Check, column: int, console: Console) -> list[str]:
    """Return the lines of a check: its name whole, or shortened at its middle, and its number beside or below it."""
    from rich.cells import cell_len

    name = shortened(printable(check.id, console.encoding), console.width - INDENT, console.encoding)
    number = printable(_number(check), console.encoding)
    head, gap = f"{_word(check)[0]:<{INDENT}}{name}", " " * max(2, column - cell_len(name) + 2)
    if not number or cell_len(head + gap + number) <= console.width:
        return [f"{head}{gap}{number}".rstrip()]
    return [head, " " * INDENT + shortened(number, console.width - INDENT, console.encoding)]


def _number(check: Check) -> str:
    """Return what was measured beside what is allowed, `42.5 points, at most 10 points`; empty where nothing was."""
    until = f"until {check.waiver.expires}: " if check.waiver else ""
    score = by_measure(check.rule, check.measure) if check.rule in SCORES else None
    if score is None or check.measured.value is None or check.threshold is None or not check.direction:
        return until.removesuffix(": ")
    least = {"max": "at most", "min": "at least"}[check.direction]
    named = "" if check.measure == "accuracy" else f"{check.measure} "
    return f"{until}{named}{score.measured(check.measured)}, {least} {score.write(check.threshold)}"


def _reason(check: Check) -> str:
    """Return why a check did not pass, empty where its number says that; of several reasons the first."""
    low, high, limit = check.measured.low, check.measured.high, check.threshold
    if check.direction and limit is not None and low is not None and high is not None:
        allowed, beyond = (high <= limit, low > limit) if check.direction == "max" else (low >= limit, high < limit)
        if (check.status == "fail" and beyond) or (check.status == "inconclusive" and not allowed and not beyond):
            return ""
    if not check.why:
        return check.message.removeprefix(f"{check.defense}: ")
    first, *more = sentences(check.why)
    return f"{first} ({counted(len(more), 'more reason')}: --verbose)" if more else first


def _cut(words: str, console: Console) -> str:
    """Return text of a few lines; of what is longer, whole words, and where the rest is."""
    return shorten(visible(words), MOST * (console.width - INDENT), placeholder=" … (the rest: --verbose)")


def _in_full(outcome: Outcome, console: Console) -> None:
    """Print every check with its sentence and mend, waivers, and notes."""

    def line(words: str, style: str = "", indent: int = 0) -> None:
        paragraph(console, words, style, indent)

    for check in sorted(outcome.checks, key=_order):
        word, style = _word(check)
        line(f"{word:<7}{check.id}", style)
        if check.status != "pass":
            line(check.message, indent=7)
            if check.mend:
                line(check.mend, "dim", 7)
        if check.waiver is not None:
            line(f"Waived until {check.waiver.expires}: {check.waiver.reason}", "cyan", 7)
    for state in outcome.waivers:
        w = state.waiver
        who = f", by {w.by}" if w.by else ""
        what = {"expired": f"EXPIRED on {w.expires}", "unused": "covers nothing here", "in-force": "in force"}
        scope = "".join(f", {k} {v}" for k, v in (("defense", w.defense), ("attack", w.attack)) if v != "*")
        style = "red" if state.state == "expired" else "dim"
        line(f"waiver {w.rule}{scope}: {what[state.state]}; until {w.expires}{who}: {w.reason}", style)
        if state.state == "unused":
            line(unused_mend(w.rule, (check.rule for check in outcome.checks)), "dim", 7)
    for note in outcome.notes:
        line(f"note   {note}", "dim")
    for reason in outcome.reasons if outcome.verdict == "pass" or not outcome.checks else ():
        line(reason)


def in_a_line(outcome: Outcome, console: Console) -> None:
    """Print the verdict and the checks that decided it, in two lines at most."""
    paragraph(console, f"GATE {outcome.verdict.upper()}  {decided(outcome)}", STYLES[outcome.verdict], most=2)


def decided(outcome: Outcome) -> str:
    """Return which checks decided a verdict, `psnr/obscure failed; 4 of 5 checks passed`."""
    words = {"fail": "failed", "inconclusive": "open"}
    told = []
    for status, word in words.items():
        ids = [c.id for c in outcome.checks if c.status == status and c.level == "error" and c.waiver is None]
        told += [f"{', '.join(ids)} {word}"] if ids else []
    expired = sum(state.state == "expired" for state in outcome.waivers)
    told += [f"{counted(expired, 'waiver')} expired"] if expired else []
    passed = sum(check.status == "pass" for check in outcome.checks)
    told.append(f"{passed} of {counted(len(outcome.checks), 'check')} passed")
    return "; ".join(told)


def brief(outcome: Outcome, console: Console) -> None:
    """Print the verdict and its reasons, a line each."""
    from rich.text import Text

    console.print(Text(f"GATE {outcome.verdict.upper()}", STYLES[outcome.verdict]))
    for reason in outcome.reasons:
        console.print(Text(printable(reason, console.encoding)))


def compared(changes: Sequence[tuple[Change, float | None]], notes: Sequence[str], console: Console) -> None:
    """Print every change as a row: before, after, the difference with its interval, and whether chance explains it."""
    from rich.table import Table
    from rich.text import Text

    def text(words: str, style: str = "") -> Text:
        return Text(printable(words, console.encoding), style)

    last, table = "", Table()
    for change, p in changes:
        if change.defense != last:
            if last:
                console.print(table)
            last, table = change.defense, _rows()
            was = f" (was {change.was})" if change.was != change.defense else ""
            console.print(text(f"{change.defense}{was}", "bold"))
        score = by_measure(change.metric, change.measure)
        table.add_row(
            text(score.heading),
            text(_value(score, change.before)),
            text(_value(score, change.after)),
            text(DASH if change.change.value is None else score.shift(change.change.value)),
            text(score.shift_ends(change.change)),
            text(*said(change, p)),
        )
    if last:
        console.print(table)
    console.print(
        text("Shares in percent, their changes in points; PSNR in dB, of each record's closest picture.", "dim")
    )
    for note in notes:
        console.print(text(note, "dim"))


def _rows() -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("", min_width=22, overflow="fold")
    for heading, width in (("before", 6), ("after", 6), ("change", 6), ("95%", 16)):
        table.add_column(heading, justify="right", min_width=width, no_wrap=True)
    table.add_column("", no_wrap=True)
    return table


def said(change: Change, p: float | None) -> tuple[str, str]:
    """Return what to call a change, and in which style: a loss only where chance does not explain it."""
    if change.reason is not None or p is None:
        return "not compared", "yellow"
    if p <= ALPHA:
        return "LOSS", "bold red"
    if change.lost:
        return "attacks missing", "yellow"
    return "no loss shown", "dim"


def _order(check: Check) -> tuple[bool, bool, int, bool]:
    passed, waived = check.status == "pass", check.waiver is not None
    return (passed, waived, 0 if waived else VERDICTS.index(check.status), check.level != "error")


def _word(check: Check) -> tuple[str, str]:
    if check.status != "pass" and check.waiver is not None:
        return "waived", "cyan"
    if check.status != "pass" and check.level == "warn":
        return "warn", "yellow"
    return WORDS[check.status], {"pass": "dim", "fail": "bold red", "inconclusive": "bold yellow"}[check.status]


def _value(score: Score, estimate: Estimate) -> str:
    return DASH if estimate.value is None else score.write(estimate.value, unit=False)
