"""The history of a branch as one HTML file, and as a few lines in a terminal. No picture of a record is in either."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING

from leakaudit.compare.history import History, Point, Run, Series
from leakaudit.reports import view
from leakaudit.reports.drawing import Box, Drawing, Line, Mark, Panel, Word, percents, ticks
from leakaudit.reports.labels import first_free
from leakaudit.reports.terminal_lines import STYLES, printable
from leakaudit.result import numbers
from leakaudit.result.plaintext import visible
from leakaudit.result.schema import Estimate
from leakaudit.result.scores import by_measure
from leakaudit.result.tasks import measure_of, spoken

if TYPE_CHECKING:
    from rich.console import Console

SIZES = {
    "wide": (605, 96, "records identified by the worst attack (√ scale)"),
    "narrow": (281, 108, "records identified (√ scale)"),
}
LEFT, RIGHT, ABOVE, BELOW = 44, 6, 24, 14  # pixels around a panel
TICKS = (0, 0.05, 0.25, 0.5, 1)  # drawn at their square roots, as on the frontier
LEVELS = "▁▂▃▄▅▆▇█"
SHOWN = 24  # runs in a terminal's line


@dataclass(frozen=True)
class Row:
    """A line of a defense's table, in words."""

    point: Point
    run: Run
    identified: str
    interval: str
    records: str
    accuracy: str
    spread: str
    seeds: str
    remark: str  # why a number is missing, or what changed of the defense


def render(history: History) -> str:
    """Return the page. The same results give the same bytes; their text is escaped throughout."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("leakaudit.reports", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"visible": visible, "percent": numbers.percent, "plain": numbers.plain}
    page = environment.get_template("history.html.j2").render(
        history=history,
        heading=view.heading,
        rows=[_rows(history, series) for series in history.series],
        figures=[
            {size: figure(history, series, f"history-{i}", size) for size in SIZES}
            for i, series in enumerate(history.series)
        ],
        clause=clause,
        measures=[judged_by(series) for series in history.series],
        spoken=spoken,
    )
    return page.encode("utf-8", "replace").decode("utf-8")


def clause(text: str) -> str:
    """Return what makes two runs incomparable in the words of a history, where the other side is the run before."""
    return text.replace("the baseline has", "the run before has").replace("this result has", "this run has")


def describe(series: Series) -> str:
    """Return a defense's figure in words, for readers who do not see it."""
    parts = []
    for p in series.points:
        gap = "" if p is series.points[0] or _joins(p, "identification") else "not comparable with what precedes it: "
        leak = _share(p.identification)
        cost = "" if p.accuracy.value is None else f", {p.measure} {_share(p.accuracy, p.measure)}"
        parts.append(f"run {p.run}: {gap}{leak} identified{cost}, limit {numbers.percent(p.limit)}, {p.verdict}")
    return visible(f"{series.name} over the runs. {'; '.join(parts)}.", 20_000)


def _share(estimate: Estimate, measure: str = "accuracy") -> str:
    return by_measure("accuracy", measure).measured(estimate) or "not measured"


def _rows(history: History, series: Series) -> list[Row]:
    rows = []
    for p in series.points:
        missing = [
            f"{what} not measured: {e.reason or 'no reason was recorded'}"
            for what, e in (("identification", p.identification), (p.measure, p.accuracy))
            if e.value is None
        ]
        changed = [f"setting changed: {p.changed}"] if p.changed else []
        changed += [f"attacks changed: {p.attacked}"] if p.attacked else []
        rows.append(
            Row(
                point=p,
                run=history.runs[p.run - 1],
                identified=numbers.DASH if p.identification.value is None else numbers.percent(p.identification.value),
                interval=numbers.interval(p.identification),
                records=str(p.identification.n) if p.identification.n else numbers.DASH,
                accuracy=numbers.DASH if p.accuracy.value is None else numbers.learned(p.accuracy.value, p.measure),
                spread=by_measure("accuracy", p.measure).ends(p.accuracy),
                seeds=str(p.accuracy.n) if p.accuracy.n else numbers.DASH,
                remark="; ".join([*changed, *missing]),
            )
        )
    return rows


def figure(history: History, series: Series, name: str, size: str) -> Drawing | None:
    """Return identification (square-root scale) above accuracy over the runs, None without a number.

    Bands are 95 % intervals. A line is broken where a run is missing or measured something else than the one before;
    a dotted upright line marks the latter. `name` makes the ids of the page unique.
    """
    fields = [field for field in ("identification", "accuracy") if any(_value(p, field) for p in series.points)]
    if not fields:
        return None
    width, height, caption = SIZES[size]
    lines: list[Line] = []
    bands: list[Line] = []
    marks: list[Mark] = []
    words: list[Word] = []
    for i, field in enumerate(fields):
        top = ABOVE + i * (height + ABOVE + BELOW)
        panel = Panel(Box(LEFT, top, width - RIGHT, top + height), (0.6, len(history.runs) + 0.4), _up(series, field))
        words.append(Word(LEFT, top - 9, caption if field == "identification" else f"test {judged_by(series)}", 9.5))
        drawn, shaded, placed = _draw(panel, series, field)
        framed, said = _frame(panel, history, series, field, placed)
        lines, bands, marks, words = [*lines, *framed, *drawn], [*bands, *shaded], [*marks, *placed], [*words, *said]
    words += panel.scale_across({run: f"{run:g}" for run in ticks(*panel.across, 12, least=1)})
    bottom = panel.box.bottom + 30
    words.append(Word((LEFT + width) / 2, bottom, "run", anchor="middle"))
    return Drawing(
        name=f"{name}-{size}",
        title=visible(f"{series.name} over the runs; the same in numbers is in the table below", 20_000),
        description=describe(series),
        width=width,
        height=bottom + 6,
        lines=tuple(lines),
        marks=tuple(marks),
        words=tuple(words),
        bands=tuple(bands),
    )


def _value(point: Point, field: str) -> Estimate | None:
    estimate: Estimate = getattr(point, field)
    return estimate if estimate.value is not None else None


def _up(series: Series, field: str) -> tuple[float, float]:
    """Return the numbers at the bottom and the top of a panel."""
    if field == "identification":
        return -0.04, 1.04
    found = [e for p in series.points if (e := _value(p, field))]
    ends = [v for e in found for v in (e.value, e.low, e.high) if v is not None]
    pad = max(0.05, 0.1 * (max(ends) - min(ends)))
    return min(ends) - pad, max(ends) + pad


def judged_by(series: Series) -> str:
    """Return by what the models of a defense were judged, all of its names where runs differ."""
    return " or ".join(dict.fromkeys(p.measure for p in series.points))


def _scale(panel: Panel, series: Series) -> dict[float, str]:
    if all(measure_of(p.measure).percent for p in series.points):
        return percents(*panel.up, 4)
    return {tick: numbers.significant(tick) for tick in ticks(panel.up[0], min(panel.up[1], 1.0), 4)}


def _frame(
    panel: Panel, history: History, series: Series, field: str, marks: list[Mark]
) -> tuple[list[Line], list[Word]]:
    """Return a panel's axes, the limit and the breaks, and the words at them, on no mark where that can be."""
    leaks = field == "identification"
    up = {sqrt(tick): numbers.percent(tick) for tick in TICKS} if leaks else _scale(panel, series)
    lines, words = [*(panel.level("grid", y) for y in up), panel.frame()], panel.scale_up(up)
    if leaks:
        low, high = panel.across
        limits = [(max(p.run - 0.5, low), min(p.run + 0.5, high), sqrt(p.limit)) for p in series.points]
        lines += [Line("limit", (panel.at(left, y), panel.at(right, y))) for left, right, y in limits]
        x, y = panel.at(*limits[-1][1:])
        said = f"limit {numbers.percent(series.points[-1].limit)}"
        places = [Word(x, y + below, said, 8, "end") for below in (-3, 9)]
        words.append(first_free(places, panel.box, [mark.box for mark in marks], []))
    own = {p.run for p in series.points if p.changed or (p.attacked and leaks)}
    broken = [run.number for run in history.runs if run.breaks or run.number in own]
    return [*lines, *(panel.plumb("chance", number - 0.5) for number in broken)], words


def _draw(panel: Panel, series: Series, field: str) -> tuple[list[Line], list[Line], list[Mark]]:
    """Return the lines, the bands and the marks of a panel."""

    def at(run: int, share: float) -> tuple[float, float]:
        return panel.at(run, sqrt(max(share, 0.0)) if field == "identification" else share)

    lines: list[Line] = []
    bands: list[Line] = []
    marks: list[Mark] = []
    for segment in segments(series, field):
        found = [(p, e) for p in segment if (e := _value(p, field))]
        places = [at(p.run, e.value or 0.0) for p, e in found]
        ends = [(at(p.run, e.low), at(p.run, e.high)) for p, e in found if e.low is not None and e.high is not None]
        lines += [Line("trend", tuple(places)), *(Line("interval", pair) for pair in ends)]
        if len(ends) == len(found) > 1:
            bands.append(Line("interval", (*(low for low, _ in ends), *(high for _, high in reversed(ends)))))
        for (p, _), (x, y) in zip(found, places, strict=True):
            marks.append(Mark(x, y, "cross" if p.verdict == "fail" else "dot", hollow=p.verdict == "inconclusive"))
    return lines, bands, marks


def segments(series: Series, field: str) -> list[list[Point]]:
    """Return the measured points in pieces within which runs follow each other and are comparable."""
    pieces: list[list[Point]] = []
    joined = False
    for p in series.points:
        if _value(p, field) is None:
            joined = False
            continue
        if _joins(p, field) and joined:
            pieces[-1].append(p)
        else:
            pieces.append([p])
        joined = True
    return pieces


def _joins(point: Point, field: str) -> bool:
    """Return whether a point continues the line of the one before: other attacks leave the accuracy as it was."""
    return point.follows and not (point.attacked and field == "identification")


def spark(history: History, series: Series) -> str:
    """Return the identification of the last runs as one character each (√ scale), `|` before an incomparable one."""
    by_run = {p.run: p for p in series.points}
    drawn = ""
    for run in history.runs[-SHOWN:]:
        p = by_run.get(run.number)
        if drawn and (run.breaks or (p is not None and (p.changed or p.attacked))):
            drawn += "|"
        value = None if p is None else p.identification.value
        drawn += "·" if value is None else LEVELS[min(len(LEVELS) - 1, int(sqrt(value) * len(LEVELS)))]
    return drawn


def summary(history: History, console: Console) -> None:
    """Print one line for each defense, first run to last, and what cannot be compared. Text is printed as it is."""
    from rich.table import Table
    from rich.text import Text

    def text(words: str, style: str = "") -> Text:
        return Text(printable(words, console.encoding), style)

    runs = history.runs
    ends = runs[0].path if len(runs) == 1 else f"{runs[0].path} … {runs[-1].path}"
    console.print(
        text(f"{len(runs)} run{'s' if len(runs) != 1 else ''} in {history.folder}", "bold") + text(f"  {ends}")
    )
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    measures = dict.fromkeys(judged_by(series) for series in history.series)
    named = spoken("Accuracy", " or ".join(measures))
    for heading in ("Defense", "Identified", "", named, "Verdict"):
        table.add_column(heading, overflow="fold")
    unicode = "█".encode(console.encoding, "ignore") != b""
    for series in history.series:
        first, last = series.points[0], series.points[-1]
        leak = _change(first.identification, last.identification)
        verdict = text(last.verdict, STYLES[last.verdict])
        if last.run != runs[-1].number:
            verdict = text(f"not since run {last.run}", "yellow")
        line = text(spark(history, series)) if unicode else text("")
        table.add_row(
            text(series.name), line, text(leak), text(_change(first.accuracy, last.accuracy, last.measure)), verdict
        )
    console.print(table)
    for run in runs:
        if run.breaks:
            more = f"; {len(run.breaks) - 3} more in the page" if len(run.breaks) > 3 else ""
            why = "; ".join(map(clause, run.breaks[:3]))
            console.print(
                text(f"run {run.number} is not comparable with run {run.number - 1} (there): {why}{more}", "yellow")
            )
    for series in history.series:
        for p in series.points:
            if p.attacked:
                told = f"run {p.run}, {series.name}: identification is not comparable with what precedes it (there): "
                console.print(text(told + p.attacked, "yellow"))
    if history.skipped:
        console.print(text(skipped(history), "dim"))


def skipped(history: History) -> str:
    """Return one line that names the files which are no results."""
    some = ", ".join(history.skipped[:5])
    more = f" and {len(history.skipped) - 5} more" if len(history.skipped) > 5 else ""
    return f"left out, no results of a scan: {some}{more}"


def _change(first: Estimate, last: Estimate, measure: str = "accuracy") -> str:
    if first is last:
        return _share(last, measure)
    before = numbers.DASH if first.value is None else numbers.learned(first.value, measure)
    after = numbers.DASH if last.value is None else _share(last, measure)
    return f"{before} → {after}"
