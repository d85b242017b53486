"""The figures of a report, as static SVG: no JavaScript, real text, colours of the page's light or dark theme."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from io import StringIO
from math import hypot, sqrt
from typing import TYPE_CHECKING, Any

from leakaudit.judge.advice import loss_limit
from leakaudit.judge.ranking import bound, worst
from leakaudit.reports.view import key
from leakaudit.result.numbers import interval, margin, percent
from leakaudit.result.plaintext import visible
from leakaudit.result.schema import AuditResult, Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours nobody would choose, drawn by matplotlib and afterwards replaced by the page's CSS variables.
INK, MUTED, RULE, ACCENT, PAPER = "#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05"
VARIABLES = {INK: "ink", MUTED: "muted", RULE: "rule", ACCENT: "accent", PAPER: "paper"}
# Across, √share: what matters happens at the low end.
TICKS = {"wide": (0, 0.01, 0.05, 0.1, 0.25, 0.5, 1), "narrow": (0, 0.01, 0.05, 0.25, 0.5, 1)}
CAPTIONS = {
    "wide": "records identified by the worst attack (square-root scale)",
    "narrow": "records identified (√ scale)",
}
SIZES = {"wide": (8.4, 4.6), "narrow": (3.9, 4.2)}  # inches of 72 px


@dataclass(frozen=True)
class Point:
    """One defense on the frontier: shares in [0, 1]."""

    key: str
    label: str
    control: bool
    identification: Estimate
    accuracy: Estimate
    bound: Estimate | None

    @property
    def at(self) -> tuple[float, float]:
        """Where it is drawn: √identification, accuracy."""
        return sqrt(self.identification.value or 0.0), self.accuracy.value or 0.0


def points(result: AuditResult) -> list[Point]:
    """Return the defenses for which both leakage and accuracy were measured."""
    found = []
    for i, defense in enumerate(result.defenses):
        attack, limit = worst(defense), bound(defense)
        if attack is None or attack.identification.value is None or defense.accuracy.value is None:
            continue
        handed = limit.identification if limit and limit.identification.value is not None else None
        is_control = defense.spec == "none"
        found.append(Point(key(i), visible(defense.spec), is_control, attack.identification, defense.accuracy, handed))
    return found


def least_accuracy(result: AuditResult) -> float | None:
    """Return the accuracy at which the limit of its loss is reached, None without a limit or an undefended accuracy."""
    control, limit = result.control(), loss_limit(result)
    return (
        None if limit is None or control is None or control.accuracy.value is None else control.accuracy.value - limit
    )


def describe(result: AuditResult) -> str:
    """Return the frontier in words, for readers who do not see it."""
    least = least_accuracy(result)
    limits = f" Limits: {percent(result.max_identification)} identified" + (
        f", accuracy {percent(least)}." if least is not None else "."
    )
    parts = [
        f"{p.key}, {p.label}: {percent(p.identification.value or 0)} identified ({interval(p.identification)}), "
        f"accuracy {percent(p.at[1])} ({margin(p.accuracy)})"
        + (f", bound {percent(p.bound.value or 0)}" if p.bound else "")
        for p in points(result)
    ]
    return "Privacy–accuracy frontier. " + "; ".join(parts) + "." + limits


def frontier(result: AuditResult, size: str) -> str:
    """Return the frontier as inline SVG in one of `SIZES`, or an empty string where nothing can be drawn.

    x: worst identification over the attacks an adversary can run, on a square-root scale; y: accuracy; both with 95 %
    intervals. Hollow: the bound. The same result gives the same bytes.
    """
    drawn = points(result)
    if not drawn:
        return ""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": f"leakaudit-{size}",
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 10,
        "axes.unicode_minus": True,
    }
    with mpl.rc_context(style), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a glyph the layout font lacks; the reader's browser has its own
        figure = Figure(figsize=SIZES[size], dpi=72)
        FigureCanvasSVG(figure)
        axes = figure.add_axes((0.1, 0.13, 0.87, 0.83) if size == "wide" else (0.16, 0.13, 0.8, 0.84))
        _frame(axes, result, drawn, size)
        for point in drawn:
            _draw(axes, point)
        _label(axes, drawn, size == "wide", _written(axes, result))
        buffer = StringIO()
        empty: dict[str, Any] = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", transparent=True, metadata=empty)
    return themed(buffer.getvalue(), f"frontier-{size}")


def _frame(axes: Axes, result: AuditResult, drawn: list[Point], size: str) -> None:
    ys = [v for p in drawn for v in (p.accuracy.value, p.accuracy.low, p.accuracy.high) if v is not None]
    least = least_accuracy(result)
    lines = [result.chance_accuracy, *([least] if least is not None else [])]
    low, high = min([*ys, *lines]), max([*ys, *lines])
    pad = max(0.12 * (high - low), 0.05)
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(low - pad, high + pad)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
    axes.set_xticks([sqrt(tick) for tick in TICKS[size]], [percent(tick) for tick in TICKS[size]])
    axes.set_xlabel(CAPTIONS[size], color=INK)
    axes.set_ylabel("test accuracy", color=INK)
    axes.tick_params(colors=MUTED, labelcolor=INK, length=3, labelsize=9)
    axes.grid(color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(MUTED)
    axes.axhline(result.chance_accuracy, color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
    axes.axvline(sqrt(result.chance_identification), color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
    axes.axvline(sqrt(result.max_identification), color=INK, linewidth=1, linestyle=(0, (5, 3)))
    small: dict[str, Any] = {"fontsize": 8.5, "parse_math": False}
    axes.text(1.02, result.chance_accuracy, "chance", color=MUTED, ha="right", va="bottom", **small)
    if least is not None:
        axes.axhline(least, color=INK, linewidth=1, linestyle=(0, (5, 3)))
        axes.text(1.02, least, f"limit {percent(least)}", color=INK, ha="right", va="bottom", **small)
    across = axes.get_xaxis_transform()
    axes.text(
        sqrt(result.max_identification) + 0.008,
        0.01,
        f"limit {percent(result.max_identification)}",
        color=INK,
        transform=across,
        rotation=90,
        va="bottom",
        **small,
    )
    if result.chance_identification < result.max_identification:
        axes.text(
            sqrt(result.chance_identification) - 0.008,
            0.01,
            "chance",
            color=MUTED,
            transform=across,
            rotation=90,
            va="bottom",
            ha="right",
            **small,
        )


def _draw(axes: Axes, point: Point) -> None:
    x, y = point.at
    low, high = point.identification.low, point.identification.high
    if low is not None and high is not None:
        axes.plot([sqrt(max(low, 0.0)), sqrt(high)], [y, y], color=ACCENT, linewidth=1.2)
    if point.accuracy.low is not None and point.accuracy.high is not None:
        axes.plot([x, x], [point.accuracy.low, point.accuracy.high], color=ACCENT, linewidth=1.2)
    # The control is larger and lies below, so that a defense that changes nothing does not hide it.
    shape, size, layer = ("s", 10, 4) if point.control else ("o", 7, 5)
    axes.plot([x], [y], shape, markersize=size, color=ACCENT, markeredgecolor=PAPER, markeredgewidth=1, zorder=layer)
    if point.bound and point.bound.value is not None:
        axes.plot([x, sqrt(point.bound.value)], [y, y], color=ACCENT, linewidth=0.8, linestyle=(0, (1, 2)))
        hollow: dict[str, Any] = {"markerfacecolor": PAPER, "markeredgecolor": ACCENT, "markeredgewidth": 1.3}
        axes.plot([sqrt(point.bound.value)], [y], shape, markersize=7, zorder=3, **hollow)


def _written(axes: Axes, result: AuditResult) -> list[tuple[float, float, float, float]]:
    """Return the boxes, in pixels, of the words that stand at the lines of the limits and of chance."""
    box, to_pixels = axes.get_window_extent(), axes.transData.transform
    limit, chance = (to_pixels((sqrt(x), 0))[0] for x in (result.max_identification, result.chance_identification))
    across = [v for v in (result.chance_accuracy, least_accuracy(result)) if v is not None]
    heights = [to_pixels((0, value))[1] for value in across]
    upright = [(limit, box.y0, limit + 15, box.y0 + 56), (chance - 15, box.y0, chance, box.y0 + 46)]
    return upright + [(box.x1 - 62, y, box.x1, y + 12) for y in heights]


def _label(axes: Axes, drawn: list[Point], full: bool, written: list[tuple[float, float, float, float]]) -> None:
    """Put a label beside every point, at the first of a ring of places where it covers nothing."""
    to_pixels = axes.transData.transform
    box = axes.get_window_extent()
    taken = list(written)
    for p in drawn:
        handed = sqrt(p.bound.value) if p.bound and p.bound.value is not None else p.at[0]
        for share in (p.at[0], handed):
            x, y = to_pixels((share, p.at[1]))
            taken.append((x - 6, y - 6, x + 6, y + 6))
        if p.identification.low is not None and p.identification.high is not None:
            ends = [
                to_pixels((sqrt(max(share, 0.0)), p.at[1])) for share in (p.identification.low, p.identification.high)
            ]
            taken.append((ends[0][0], ends[0][1] - 1, ends[1][0], ends[1][1] + 1))
    for p in drawn:
        name = p.label if len(p.label) <= 30 else p.label[:29] + "…"
        text = f"{p.key}  {name}" if full else p.key
        width, height = 6.2 * len(text) + 2, 12.0
        x, y = to_pixels(p.at)
        places = [
            (x + 9 if right else x - 9 - width, y + reach if up else y - reach - height)
            for reach in (5, 14, 26, 40, 56, 74, 94)
            for up in (True, False)
            for right in (True, False)
        ]
        rest = [to_pixels(other.at) for other in drawn if other is not p]
        inside = [(a, b) for a, b in places if box.x0 < a and a + width < box.x1 and box.y0 < b and b + height < box.y1]
        free = [
            (a, b)
            for a, b in inside
            if not any(a < t[2] and t[0] < a + width and b < t[3] and t[1] < b + height for t in taken)
        ]
        # A label without a leader must be nearest to its own point.
        clear = [
            (a, b)
            for a, b in free
            if all(_gap(a, b, width, height, x, y) + 4 < _gap(a, b, width, height, *o) for o in rest)
        ]
        near = bool(clear) and abs(clear[0][1] + height / 2 - y) < 28
        a, b = clear[0] if near else [*free, *inside, *places][0]
        taken.append((a, b, a + width, b + height))
        leader = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 5}
        axes.annotate(
            text,
            xy=(x, y),
            xycoords="figure pixels",
            xytext=(a if a > x else a + width, b),
            textcoords="figure pixels",
            ha="left" if a > x else "right",
            va="bottom",
            color=INK,
            fontsize=10,
            parse_math=False,
            arrowprops=None if near else leader,
            zorder=6,
        )


def _gap(left: float, bottom: float, width: float, height: float, x: float, y: float) -> float:
    """Return how far (x, y) is from a box, in pixels."""
    return hypot(max(left - x, 0, x - left - width), max(bottom - y, 0, y - bottom - height))


def themed(svg: str, name: str) -> str:
    """Make the SVG part of the page: its colours, unique ids, no prolog, no global style, silent to screen readers."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    svg = svg.replace("<svg ", f'<svg class="{name}" aria-hidden="true" focusable="false" ', 1)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return re.sub(r"\n\s*", "\n", svg).strip()
