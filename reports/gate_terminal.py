"""What the gate says, and what changed between two results, in a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from leakaudit.compare.changes import Change
from leakaudit.gate.losses import ALPHA
from leakaudit.judge.findings import unused_mend
from leakaudit.reports.terminal_lines import STYLES, counted, paragraph, printable, shortened
from leakaudit.result.numbers import DASH
from leakaudit.result.outcome import Check, Outcome
from leakaudit.result.rules import VERDICTS
from leakaudit.result.schema import Estimate
from leakaudit.result.scores import SCORES, Score

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

CHECKS, MENDS = 8, 2  # told of those that did not pass, where it is short
NAME = 40  # columns for the id of a check, where it is short
WORDS = {"pass": "ok", "fail": "FAIL", "inconclusive": "OPEN"}


def show(outcome: Outcome, console: Console, verbose: bool = False) -> None:
    """Print the verdict, a line for each check that did not pass, and what mends them.

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
    """Print a line for each check that did not pass, how many did, what mends them, and the notes."""
    from rich.text import Text

    ordered = sorted(outcome.checks, key=_order)
    open_ = [check for check in ordered if check.status != "pass"]
    width = min(NAME, max((len(check.id) for check in open_[:CHECKS]), default=0))
    for check in open_[:CHECKS]:
        word, style = _word(check)
        name = shortened(printable(check.id, console.encoding), NAME, console.encoding)
        until = f"until {check.waiver.expires}: " if check.waiver else ""
        told = printable(f"{word:<7}{name:<{width}}  {until}{_measured(check)}", console.encoding)
        console.print(Text(shortened(told, console.width, console.encoding), style))
    if len(open_) > CHECKS:
        paragraph(console, f"       {len(open_) - CHECKS} more, which --verbose lists", "dim")
    if passed := len(ordered) - len(open_):
        paragraph(console, f"{WORDS['pass']:<7}{counted(passed, 'check')}", "dim")
    mends = dict.fromkeys(check.mend for check in open_ if check.waiver is None and check.mend)
    for mend in list(mends)[:MENDS]:
        paragraph(console, f"Next: {mend}", hanging=6, most=2)
    if outcome.waivers:
        expired = sum(state.state == "expired" for state in outcome.waivers)
        told = counted(len(outcome.waivers), "waiver") + (f", {expired} expired" if expired else "")
        paragraph(console, told, "red" if expired else "dim")
    for note in (*outcome.notes, *(() if outcome.checks else outcome.reasons)):
        paragraph(console, f"note   {note}", "dim", hanging=7, most=2)


def _measured(check: Check) -> str:
    """Return what was measured beside what is allowed, `42.5 points, at most 10 points`; else what the check says."""
    score = next((score for score in SCORES.values() if score.name == check.rule), None)
    if score is None or check.measured.value is None or check.threshold is None or not check.direction:
        return check.message
    least = {"max": "at most", "min": "at least"}[check.direction]
    return f"{score.measured(check.measured)}, {least} {score.write(check.threshold)}"


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
    words = {"fail": "failed", "inconclusive": "open"}
    told = []
    for status, word in words.items():
        ids = [c.id for c in outcome.checks if c.status == status and c.level == "error" and c.waiver is None]
        told += [f"{', '.join(ids)} {word}"] if ids else []
    expired = sum(state.state == "expired" for state in outcome.waivers)
    told += [f"{counted(expired, 'waiver')} expired"] if expired else []
    passed = sum(check.status == "pass" for check in outcome.checks)
    told.append(f"{passed} of {counted(len(outcome.checks), 'check')} passed")
    paragraph(console, f"GATE {outcome.verdict.upper()}  {'; '.join(told)}", STYLES[outcome.verdict], most=2)


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
        score = SCORES[change.metric]
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
