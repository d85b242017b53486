"""The history of a branch as one HTML file, and as a few lines in a terminal. No picture of a record is in either."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from io import StringIO
from math import sqrt
from typing import TYPE_CHECKING, Any

from leakaudit.compare.history import History, Point, Run, Series
from leakaudit.reports import view
from leakaudit.reports.figures import ACCENT, INK, MUTED, PAPER, RULE, themed
from leakaudit.reports.terminal import STYLES, printable
from leakaudit.result import numbers
from leakaudit.result.plaintext import visible
from leakaudit.result.schema import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.console import Console

SIZES = {"wide": (8.4, 3.9), "narrow": (3.9, 4.2)}  # inches of 72 px
MARKS = {"pass": "o", "fail": "X", "inconclusive": "o"}  # an inconclusive one is hollow
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
        words=[describe(series) for series in history.series],
        clause=clause,
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
        cost = "" if p.accuracy.value is None else f", accuracy {_share(p.accuracy)}"
        parts.append(f"run {p.run}: {gap}{leak} identified{cost}, limit {numbers.percent(p.limit)}, {p.verdict}")
    return visible(f"{series.name} over the runs. {'; '.join(parts)}.", 20_000)


def _share(estimate: Estimate) -> str:
    if estimate.value is None:
        return "not measured"
    spread = numbers.interval(estimate)
    return numbers.percent(estimate.value) + (f" ({spread})" if spread else "")


def _rows(history: History, series: Series) -> list[Row]:
    rows = []
    for p in series.points:
        missing = [
            f"{what} not measured: {e.reason or 'no reason was recorded'}"
            for what, e in (("identification", p.identification), ("accuracy", p.accuracy))
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
                accuracy=numbers.DASH if p.accuracy.value is None else f"{100 * p.accuracy.value:.1f}%",
                spread=numbers.interval(p.accuracy),
                seeds=str(p.accuracy.n) if p.accuracy.n else numbers.DASH,
                remark="; ".join([*changed, *missing]),
            )
        )
    return rows


def figure(history: History, series: Series, name: str, size: str) -> str:
    """Return identification (square-root scale) above accuracy over the runs as inline SVG; empty without a number.

    Bands are 95 % intervals. A line is broken where a run is missing or measured something else than the one before;
    a dotted upright line marks the latter. `name` makes the ids of the page unique.
    """
    panels = [field for field in ("identification", "accuracy") if any(_value(p, field) for p in series.points)]
    if not panels:
        return ""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": f"leakaudit-{name}-{size}",
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 9,
    }
    with mpl.rc_context(style), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        width, height = SIZES[size]
        drawn = Figure(figsize=(width, height if len(panels) == 2 else 0.6 * height), dpi=72)
        FigureCanvasSVG(drawn)
        left = 0.075 if size == "wide" else 0.14
        axes = drawn.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        drawn.subplots_adjust(left, 0.12 if len(panels) == 2 else 0.19, 0.985, 0.93, hspace=0.3)
        for each, field in zip(axes, panels, strict=True):
            _frame(each, history, series, field)
            _draw(each, series, field)
        axes[-1].set_xlabel("run", color=INK)
        buffer = StringIO()
        empty: dict[str, Any] = {"Date": None, "Creator": None, "Format": None, "Type": None}
        drawn.savefig(buffer, format="svg", transparent=True, metadata=empty)
    return themed(buffer.getvalue(), f"{name}-{size}")


def _value(point: Point, field: str) -> Estimate | None:
    estimate: Estimate = getattr(point, field)
    return estimate if estimate.value is not None else None


def _frame(axes: Axes, history: History, series: Series, field: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(0.6, len(history.runs) + 0.4)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True))
    axes.tick_params(colors=MUTED, labelcolor=INK, length=3)
    axes.grid(color=RULE, linewidth=0.6, axis="y")
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(MUTED)
    title: dict[str, Any] = {"loc": "left", "color": INK, "fontsize": 9.5, "pad": 5}
    if field == "identification":
        axes.set_title("records identified by the worst attack (√ scale)", **title)
        axes.set_ylim(-0.04, 1.04)
        axes.set_yticks([sqrt(tick) for tick in TICKS], [numbers.percent(tick) for tick in TICKS])
        for p in series.points:
            axes.plot([p.run - 0.5, p.run + 0.5], [sqrt(p.limit)] * 2, color=INK, linewidth=1, linestyle=(0, (5, 3)))
        last = series.points[-1]
        note: dict[str, Any] = {"fontsize": 8, "ha": "right", "va": "bottom", "color": INK}
        axes.text(last.run + 0.4, sqrt(last.limit) + 0.01, f"limit {numbers.percent(last.limit)}", **note)
    else:
        axes.set_title("test accuracy", **title)
        found = [e for p in series.points if (e := _value(p, field))]
        ends = [v for e in found for v in (e.value, e.low, e.high) if v is not None]
        pad = max(0.05, 0.1 * (max(ends) - min(ends)))
        axes.set_ylim(min(ends) - pad, max(ends) + pad)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
    own = {p.run for p in series.points if p.changed or (p.attacked and field == "identification")}
    for run in history.runs:
        if run.breaks or run.number in own:
            axes.axvline(run.number - 0.5, color=MUTED, linewidth=1, linestyle=(0, (1, 2)))


def _draw(axes: Axes, series: Series, field: str) -> None:
    def at(share: float) -> float:
        return sqrt(max(share, 0.0)) if field == "identification" else share

    for segment in segments(series, field):
        runs = [p.run for p in segment]
        found = [e for p in segment if (e := _value(p, field))]
        axes.plot(runs, [at(e.value or 0.0) for e in found], color=ACCENT, linewidth=1.4, zorder=3)
        spread = [(r, e.low, e.high) for r, e in zip(runs, found, strict=True)]
        bands = [(r, at(low), at(high)) for r, low, high in spread if low is not None and high is not None]
        if len(bands) == len(spread) > 1:
            xs, lows, highs = zip(*bands, strict=True)
            axes.fill_between(xs, lows, highs, color=ACCENT, alpha=0.18, linewidth=0, zorder=1)
        for r, low, high in bands:
            axes.plot([r, r], [low, high], color=ACCENT, linewidth=0.9, zorder=2)
        for p, e in zip(segment, found, strict=True):
            hollow = p.verdict == "inconclusive"
            axes.plot(
                [p.run],
                [at(e.value or 0.0)],
                MARKS[p.verdict],
                markersize=8 if p.verdict == "fail" else 6.5,
                markerfacecolor=PAPER if hollow else ACCENT,
                markeredgecolor=ACCENT if hollow else PAPER,
                markeredgewidth=1.3 if hollow else 0.8,
                zorder=4,
            )


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
    for heading in ("Defense", "Identified", "", "Accuracy", "Verdict"):
        table.add_column(heading, overflow="fold")
    unicode = "█".encode(console.encoding, "ignore") != b""
    for series in history.series:
        first, last = series.points[0], series.points[-1]
        leak = _change(first.identification, last.identification)
        verdict = text(last.verdict, STYLES[last.verdict])
        if last.run != runs[-1].number:
            verdict = text(f"not since run {last.run}", "yellow")
        line = text(spark(history, series)) if unicode else text("")
        table.add_row(text(series.name), line, text(leak), text(_change(first.accuracy, last.accuracy)), verdict)
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


def _change(first: Estimate, last: Estimate) -> str:
    if first is last:
        return _share(last)
    before = numbers.DASH if first.value is None else numbers.percent(first.value)
    after = numbers.DASH if last.value is None else _share(last)
    return f"{before} → {after}"
