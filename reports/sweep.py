"""A sweep as one HTML file, and as a few lines in a terminal: a frontier for each model. No picture is in either."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import quote

from leakaudit.compare.advice import Option
from leakaudit.compare.sweep import Entry, Frontier, leak, lines, verdict
from leakaudit.judge.ranking import decisive, fruitless
from leakaudit.reports import figures, view
from leakaudit.reports.drawing import Box, Drawing, Mark, Panel
from leakaudit.reports.figures import Look, Point
from leakaudit.reports.templates import environment, writable
from leakaudit.reports.terminal_lines import STYLES, paragraph, printable
from leakaudit.result import numbers
from leakaudit.result.plaintext import visible
from leakaudit.result.schema import AuditResult, DefenseResult, Estimate, Verdict
from leakaudit.result.scores import by_measure
from leakaudit.result.tasks import spoken

if TYPE_CHECKING:
    from rich.console import Console

SIZES = {"wide": Box(46, 8, 640, 330), "narrow": Box(46, 8, 322, 262)}
TITLE = "Privacy against {measure} of {name}; the same in numbers is in the table below"
SAFE = "=."  # in an address, of what our names of folders hold
WAITING, EARLY = "not begun", "interrupted before it was attacked"
INTERRUPTED = "interrupted: what was measured so far"


@dataclass(frozen=True)
class Row:
    """A line of a frontier's table, in words; `verdict` is None where there is no result."""

    key: str  # of its point; empty where it has none
    name: str
    strengths: str
    attack: str
    identified: str
    interval: str
    accuracy: str
    spread: str
    loss: str
    loss_spread: str
    keeps: Verdict | None
    best: bool
    verdict: Verdict | None
    remark: str
    report: str  # its address from the page; empty where there is none
    state: str = ""  # why there is less of it than of others


def render(source: str, found: Sequence[Frontier]) -> str:
    """Return the page of a sweep file. The same results give the same bytes; their text is escaped throughout.

    Every scan is linked as `NAME/report.html`, beside the page.
    """
    entries = [entry for frontier in found for entry in frontier.entries]
    page = (
        environment()
        .get_template("sweep.html.j2")
        .render(
            source=source,
            found=found,
            titles=[title(frontier) for frontier in found],
            count=len(entries),
            audited=sum(entry.state == "audited" for entry in entries),
            verdict=verdict(entries),
            rows=[rows(frontier) for frontier in found],
            figures=[
                {size: figure(frontier, f"sweep-{i}", size) for size in SIZES} for i, frontier in enumerate(found, 1)
            ],
            settled=any(a.settled_by for e in entries if e.result for d in e.result.defenses for a in d.attacks),
            spoken=spoken,
        )
    )
    return writable(page)


def title(frontier: Frontier) -> str:
    """Return what a frontier is of: a model, and the moment of its training where one was named."""
    return f"{frontier.model}, {frontier.stage}" if frontier.stage else frontier.model


def figure(frontier: Frontier, name: str, size: str) -> Drawing | None:
    """Return the frontier of a model over all defenses and strengths, None where nothing can be drawn.

    Strengths of one defense are joined by a line. A filled circle passed, a cross failed, a hollow circle is
    inconclusive, each in its colour; the square is the undefended model; a ring lies around what none surpasses.
    """
    whole = frontier.whole
    if whole is None:
        return None
    drawn = [replace(point, bound=None) for point in figures.points(whole)]
    keys = {row.spec: view.key(i) for i, row in enumerate(whole.defenses)}
    verdicts = {view.key(i): row.verdict for i, row in enumerate(whole.defenses) if row.spec != "none"}
    best = {keys[spec] for spec in frontier.best if spec in keys}

    def marks(panel: Panel, points: list[Point]) -> list[Mark]:
        by_layer = sorted(points, key=lambda p: not p.control)
        rings = [Mark(*panel.at(*p.at), "ring") for p in by_layer if p.key in best]
        return [*rings, *(_mark(*panel.at(*p.at), verdicts.get(p.key)) for p in by_layer)]

    look = Look(
        name=f"{name}-{size}",
        title=visible(TITLE.format(measure=whole.measure, name=title(frontier)), 20_000),
        description=f"{figures.describe(whole)} {_told(whole, frontier)}",
        box=SIZES[size],
        marks=marks,
        joined=tuple(tuple(keys[spec] for spec in specs) for specs in lines(frontier)),
    )
    return figures.drawn_as(whole, drawn, look)


def _mark(x: float, y: float, judged: Verdict | None) -> Mark:
    if judged is None:
        return Mark(x, y, "square")
    return Mark(x, y, "cross" if judged == "fail" else "dot", judged == "inconclusive", judged)


def _told(whole: AuditResult, frontier: Frontier) -> str:
    """Return the verdicts and what none surpasses, for readers who do not see the figure."""
    judged = [f"{view.key(i)} {row.verdict}" for i, row in enumerate(whole.defenses) if row.spec != "none"]
    best = [view.key(i) for i, row in enumerate(whole.defenses) if row.spec in frontier.best]
    return f"Verdicts: {', '.join(judged) or 'none'}. Surpassed by none: {', '.join(best) or 'none'}."


def rows(frontier: Frontier) -> list[Row]:
    """Return the lines of a frontier's table: the undefended model first, then every scan in its order."""
    whole = frontier.whole
    keys = {row.spec: view.key(i) for i, row in enumerate(whole.defenses)} if whole else {}
    measure = whole.measure if whole else "accuracy"
    control = whole.control() if whole else None
    options = {option.spec: option for option in frontier.advice.options} if frontier.advice else {}
    apart = dict(frontier.apart)
    found = []
    if control is not None and all(entry.spec for entry in frontier.entries):
        found.append(_row(Entry("", "", "", ""), control, measure, keys, None, frontier))
    for entry in frontier.entries:
        row = entry.row()
        if row is None:
            told = f"not audited: {entry.trouble}" if entry.trouble else WAITING if entry.result is None else EARLY
            found.append(_empty(entry, told))
            continue
        made = _row(entry, row, measure, {} if entry.name in apart else keys, options.get(row.spec), frontier)
        if entry.name in apart:
            made = replace(made, remark=f"not comparable with the first (“there”): {apart[entry.name]}", best=False)
        found.append(made)
    return found


def _empty(entry: Entry, told: str) -> Row:
    dash = numbers.DASH
    name = entry.spec or "none"
    return Row("", name, "", dash, dash, "", dash, "", dash, "", None, False, None, told, "", told.partition(": ")[0])


def _row(
    entry: Entry, row: DefenseResult, measure: str, keys: dict[str, str], option: Option | None, frontier: Frontier
) -> Row:
    attack, leaked, score = decisive(row), leak(row), by_measure("accuracy", measure)
    loss = option.loss if option else Estimate()
    missing = [] if leaked.value is not None else [f"identification: {leaked.reason or 'not measured'}"]
    missing += [] if row.accuracy.value is not None else [f"{measure}: {row.accuracy.reason or 'not measured'}"]
    stopped = [INTERRUPTED] if entry.state == "interrupted" else []
    many = fruitless(row)
    named = f"none of {many} attacks" if many > 1 else attack.name if attack else numbers.DASH
    return Row(
        key=keys.get(row.spec, ""),
        name=row.spec,
        strengths=numbers.pairs(entry.varied) if entry.varied else "",
        attack=named,
        identified=numbers.DASH if leaked.value is None else numbers.percent(leaked.value),
        interval=numbers.interval(leaked),
        accuracy=numbers.DASH if row.accuracy.value is None else numbers.learned(row.accuracy.value, measure),
        spread=score.ends(row.accuracy),
        loss=numbers.DASH if loss.value is None else score.shift(-loss.value),
        loss_spread=score.ends(_less(loss)),
        keeps=option.both if option else None,
        best=row.spec in frontier.best,
        verdict=row.verdict if entry.name else None,
        remark="; ".join([*stopped, *missing]),
        report=f"{quote(entry.name, safe=SAFE)}/report.html" if entry.name else "",
        state=INTERRUPTED.partition(": ")[0] if stopped else "",
    )


def _less(loss: Estimate) -> Estimate:
    """Return a loss as the change that it is."""
    if loss.value is None or loss.low is None or loss.high is None:
        return Estimate()
    return replace(loss, value=-loss.value, low=-loss.high, high=-loss.low)


def summary(found: Sequence[Frontier], console: Console) -> None:
    """Print each model with a line for every scan, and what to choose. Text is printed as it is."""
    from rich.table import Table
    from rich.text import Text

    def text(words: str, style: str = "") -> Text:
        return Text(printable(words, console.encoding), style)

    for frontier in found:
        paragraph(console, title(frontier), "bold")
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        measure = frontier.whole.measure if frontier.whole else "accuracy"
        for heading in ("Defense", "Identified", spoken("Accuracy", measure), "Verdict", ""):
            table.add_column(heading, overflow="fold")
        for row in rows(frontier):
            judged = text(row.verdict, STYLES[row.verdict]) if row.verdict else text("control" if row.key else "")
            told = row.state or ("on the frontier" if row.best else "")
            table.add_row(text(row.name), text(row.identified), text(row.accuracy), judged, text(told))
        console.print(table)
        for why in dict.fromkeys(entry.trouble for entry in frontier.entries if entry.trouble):
            paragraph(console, f"not audited: {why}", "yellow")
        for words in frontier.advice.brief if frontier.advice else ():
            paragraph(console, words)
        console.print()
