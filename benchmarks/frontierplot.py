"""The figure of `benchmarks.obscure`: accuracy against the worst attack's identification, a panel per data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.rows import Row
from benchmarks.standing import OURS, Point, frontier, points

# Okabe and Ito's colours, told apart by markers too, so that neither alone has to do it; each is readable on white and
# on the dark of a page, as are the greys: there is no background.
COLOURS = ("#d55e00", "#0a84c6", "#cc79a7", "#009e73", "#a88a00", "#4a90d9", "#8c8c8c")
MARKERS = "osD^v<>Pp*Xhd8H"
FIRST = (OURS, "none", "class-conditional", "dp-sgd")  # keep their looks whatever else is there
INK, FAINT = "#7f7f7f", "#7f7f7f40"
TITLES = {"cifar10": "CIFAR-10", "mnist": "MNIST", "lfw": "LFW faces"}


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw the rows of defenses that see private records alone as SVG, a panel per data set; nothing without any.

    Identification is logarithmic; what is below half of chance is drawn there. The line is obscure's frontier
    (`standing.frontier`), and a filled marker is a defense of which no attack finds more than a guess does.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    panels = {d: found for d in dict.fromkeys(r.dataset for r in rows) if (found := points(rows, d))}
    panels = {d: panels[d] for d in sorted(panels, key=lambda d: [*TITLES, d].index(d))}
    if not panels:
        return
    present = {p.worst.defense for found in panels.values() for p in found}
    names = [n for n in FIRST if n in present] + sorted(present - set(FIRST))
    looks = {n: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, n in enumerate(names)}
    look = {"text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK}
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "obscure", "font.size": 10, **look}):
        figure = Figure(figsize=(4.4 * len(panels) + 0.4, 5.2), layout="constrained")
        figure.patch.set_alpha(0)
        FigureCanvasSVG(figure)
        every = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (dataset, found) in zip(every, panels.items(), strict=True):
            _panel(axes, found, looks)
            axes.set_title(TITLES.get(dataset, dataset))
            axes.set_xlabel("identified by the worst attack, in % (log)")
        every[0].set_ylabel("test accuracy in %")
        handles: dict[str, Any] = {}
        for axes in every:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                handles.setdefault(label, handle)
        order = sorted(handles, key=lambda label: names.index(label) if label in names else -1)
        columns = min(len(order), 2 * len(panels) + 1)
        figure.legend(
            [handles[n] for n in order], order, loc="outside lower center", ncols=columns, frameon=False, labelcolor=INK
        )
        figure.savefig(path, format="svg", metadata={"Date": None}, transparent=True)


def _panel(axes: Any, found: Sequence[Point], looks: dict[str, tuple[str, str]]) -> None:
    chance = next((p.worst.chance for p in found if p.worst.chance), 0.01)
    floor = 50 * chance
    axes.axvline(100 * chance, color=INK, linewidth=1, dashes=(4, 2), label="chance (filled: no attack finds more)")
    _frontier(axes, frontier(found), floor, looks)
    for name, (colour, marker) in looks.items():
        mine = [p for p in found if p.worst.defense == name and p.worst.accuracy is not None]
        for i, point in enumerate(sorted(mine, key=lambda p: p.worst.identification or 0)):
            row = point.worst
            x, y = _place(point, floor)
            first = name in FIRST
            axes.errorbar(
                [x],
                [y],
                xerr=[[r] for r in _reach(x, row.identification_low, row.identification_high, floor)],
                yerr=[[r] for r in _reach(y, row.accuracy_low, row.accuracy_high, 0)],
                color=colour,
                marker=marker,
                markersize=9 if first else 6,
                markerfacecolor=colour if point.at_chance else "none",
                markeredgewidth=1.2,
                linestyle="none",
                elinewidth=0.7,
                zorder=4 if first else 3,
                label=name if i == 0 else None,
            )
    axes.set_xscale("log")
    axes.set_xlim(floor * 0.85, 125)
    low = min(100 * (p.worst.accuracy or 0.0) for p in found)
    high = max(100 * (p.worst.accuracy or 0.0) for p in found)
    room = max(2.0, 0.08 * (high - low))
    axes.set_ylim(max(0.0, low - 2 * room), min(101.0, high + room))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda value, _: "")
    axes.grid(linewidth=0.5, color=FAINT)
    axes.patch.set_alpha(0)
    axes.spines[["top", "right"]].set_visible(False)


def _frontier(axes: Any, line: Sequence[Point], floor: float, looks: dict[str, tuple[str, str]]) -> None:
    """Draw the frontier as a staircase: at so much leakage, the accuracy of the best point of no more."""
    if not line:
        return
    places = [_place(p, floor) for p in line]
    places[0] = (floor * 0.85, places[0][1])  # what is at chance is there wherever its sample came to
    xs, ys = [p[0] for p in places], [p[1] for p in places]
    axes.plot(
        [*xs, 125], [*ys, ys[-1]], drawstyle="steps-post", color=looks[OURS][0], linewidth=1.4, zorder=2,
        label=f"frontier of {OURS}",
    )  # fmt: skip


def _place(point: Point, floor: float) -> tuple[float, float]:
    return max(floor, 100 * (point.worst.identification or 0)), 100 * (point.worst.accuracy or 0)


def _reach(value: float, low: float | None, high: float | None, floor: float) -> tuple[float, float]:
    """Return how far an interval of shares reaches below and above a value in per cent."""
    if low is None or high is None:
        return 0.0, 0.0
    return max(0.0, value - max(floor, 100 * low)), max(0.0, 100 * high - value)
