"""The frontier of a report: a point for each defense, leakage across and accuracy up, with intervals and limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import sqrt

from leakaudit.compare.advice import loss_limit, no_accuracy
from leakaudit.judge.ranking import bound, worst
from leakaudit.reports.drawing import Anchor, Box, Drawing, Line, Mark, Panel, Word, percents, ticks
from leakaudit.reports.labels import Label, beside, first_free
from leakaudit.reports.view import key
from leakaudit.result.numbers import around, called, interval, learned, percent, significant
from leakaudit.result.plaintext import visible
from leakaudit.result.schema import AuditResult, Estimate
from leakaudit.result.tasks import measure_of

PANEL = Box(46, 8, 322, 232)
TICKS = (0, 0.01, 0.05, 0.25, 0.5, 1)  # at their square roots: what matters happens at the low end
ACROSS = "identified by the worst attack (√ scale)"
TITLE = "Privacy against accuracy; the same in numbers is in the table of every defense against every attack"
SMALL = 8.5  # pixels: the words at the limits
LONGEST = 30  # characters of a defense's name beside its point


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
    """Return the accuracy at which the limit of its loss is reached.

    None without a limit, and where the undefended accuracy is unknown or no better than chance: nothing can be lost.
    """
    control, limit = result.control(), loss_limit(result)
    if limit is None or control is None or control.accuracy.value is None or no_accuracy(result):
        return None
    return control.accuracy.value - limit


def describe(result: AuditResult) -> str:
    """Return the frontier in words, for readers who do not see it."""
    least = least_accuracy(result)
    limits = f" Limits: {percent(result.max_identification)} identified" + (
        f", {called(least, result.measure)}." if least is not None else "."
    )
    parts = [
        f"{p.key}, {p.label}: {percent(p.identification.value or 0)} identified ({interval(p.identification)}), "
        f"{called(p.at[1], result.measure)} ({around(p.accuracy, result.measure)})"
        + (f", bound {percent(p.bound.value or 0)}" if p.bound else "")
        for p in points(result)
    ]
    return f"Privacy–{result.measure} frontier. " + "; ".join(parts) + "." + limits


@dataclass(frozen=True)
class Look:
    """How a frontier is drawn: its name, which begins its ids and stands once in a page, its words, its place."""

    name: str
    title: str
    description: str
    box: Box
    marks: Callable[[Panel, list[Point]], list[Mark]]
    joined: tuple[tuple[str, ...], ...] = ()  # keys of points that a line joins, in its order


def frontier(result: AuditResult, name: str = "frontier") -> Drawing | None:
    """Return the frontier, None where nothing can be drawn; `name` begins its ids, which a page has once.

    x: worst identification over the attacks an adversary can run, on a square-root scale; y: accuracy; both with 95 %
    intervals. Hollow: the bound. What both limits allow is shaded; nothing where accuracy says nothing. The same result
    gives the same drawing.
    """
    return drawn_as(result, points(result), Look(name, TITLE, describe(result), PANEL, _marks))


def drawn_as(result: AuditResult, drawn: list[Point], look: Look) -> Drawing | None:
    """Return points of a result within its limits, each with its key, and its name where all names have room."""
    if not drawn:
        return None
    least, box = least_accuracy(result), look.box
    ys = [v for p in drawn for v in (p.accuracy.value, p.accuracy.low, p.accuracy.high) if v is not None]
    ys += [result.chance_accuracy, *([least] if least is not None else [])]
    pad = max(0.12 * (max(ys) - min(ys)), 0.05)
    panel = Panel(box, (-0.03, 1.03), (min(ys) - pad, max(ys) + pad))
    axes, scales = _axes(panel, result.measure)
    spread, marks = [line for p in drawn for line in _intervals(panel, p)], look.marks(panel, drawn)
    limits, said = _limits(panel, result, [mark.box for mark in marks], [line.box for line in spread])
    taken = [*(mark.box for mark in marks), *(word.box for word in said)]
    crossed = [line.box for line in spread]
    keys = [Label(*panel.at(*p.at), p.key) for p in drawn]
    names = [replace(label, text=f"{p.key} {_short(p.label)}") for p, label in zip(drawn, keys, strict=True)]
    words, leaders = beside(names, box, taken, crossed, reach=60)
    if len(words) < len(drawn):
        words, leaders = beside(keys, box, taken, crossed, reach=400)
    at = {p.key: panel.at(*p.at) for p in drawn}
    trends = [Line("joined", tuple(at[key] for key in each if key in at)) for each in look.joined]
    return Drawing(
        name=look.name,
        title=look.title,
        description=look.description,
        width=box.right + 10,
        height=box.bottom + 45,
        lines=(*axes, *limits, *(line for line in trends if line.points), *spread, *leaders),
        marks=tuple(marks),
        words=(*scales, *said, *words),
        allowed=() if no_accuracy(result) else _allowed(panel, result, least),
    )


def _allowed(panel: Panel, result: AuditResult, least: float | None) -> tuple[Line, ...]:
    """Return the outline of where both limits are kept, never below chance: such a model is of no use to anybody."""
    low = max(result.chance_accuracy, panel.up[0] if least is None else least)
    left, right, high = panel.across[0], sqrt(result.max_identification), panel.up[1]
    corners = ((left, low), (right, low), (right, high), (left, high))
    return (Line("limit", tuple(panel.at(*corner) for corner in corners)),)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"


def _axes(panel: Panel, measure: str) -> tuple[list[Line], list[Word]]:
    across, up, box = {sqrt(tick): percent(tick) for tick in TICKS}, _scale(panel, measure), panel.box
    lines = [*(panel.plumb("grid", x) for x in across), *(panel.level("grid", y) for y in up), panel.frame()]
    names = [
        Word((box.left + box.right) / 2, box.bottom + 34, ACROSS, anchor="middle"),
        Word(11, (box.top + box.bottom) / 2, f"test {measure}", anchor="middle", upright=True),
    ]
    return lines, [*panel.scale_across(across), *panel.scale_up(up), *names]


def _scale(panel: Panel, measure: str) -> dict[float, str]:
    """Return the ticks of a measure: percent of a share, else numbers."""
    of, (low, high) = measure_of(measure), panel.up
    if of.percent:
        return percents(low, high, 8)
    return {tick: significant(tick) for tick in ticks(max(low, of.least), min(high, 1.0), 8)}


def _limits(panel: Panel, result: AuditResult, marks: list[Box], spread: list[Box]) -> tuple[list[Line], list[Word]]:
    """Return the lines of the limits and of chance, and a word at each, where it covers no mark and no other word."""
    chance, limit = sqrt(result.chance_identification), sqrt(result.max_identification)
    least = least_accuracy(result)
    lines = [panel.plumb("limit", limit), panel.plumb("chance", chance), panel.level("chance", result.chance_accuracy)]
    wanted = [_along(panel, limit, f"limit {percent(result.max_identification)}", upright=True)]
    if chance < limit:
        wanted.append(_along(panel, chance, "chance", upright=True))
    wanted.append(_along(panel, result.chance_accuracy, "chance", upright=False))
    if least is not None:
        lines.append(panel.level("limit", least))
        wanted.append(_along(panel, least, f"limit {learned(least, result.measure)}", upright=False))
    words: list[Word] = []
    for places in wanted:
        taken = [*marks, *(word.box for word in words)]
        words.append(first_free(places, panel.box, taken, [*(line.box for line in lines), *spread]))
    return lines, words


def _along(panel: Panel, value: float, text: str, upright: bool) -> list[Word]:
    """Return the places of a word at a line across or up the panel: on both sides of it, at both ends."""
    box, (x, y), muted = panel.box, panel.at(value, value), text == "chance"
    if upright:
        ends: tuple[tuple[float, Anchor], ...] = ((box.top + 3, "end"), (box.bottom - 3, "start"))
        sides = (-4, SMALL + 2) if muted else (SMALL + 2, -4)  # where both lines are near each other, outside of them
        return [Word(x + by, end, text, SMALL, at, muted, upright) for end, at in ends for by in sides]
    ends = ((box.right - 3, "end"), (box.left + 3, "start"))
    return [Word(end, y + by, text, SMALL, at, muted) for end, at in ends for by in (-3.5, SMALL + 1)]


def _intervals(panel: Panel, point: Point) -> list[Line]:
    """Return the lines through a point: its intervals, and the way to its bound."""
    (x, y), of, up = point.at, point.identification, point.accuracy
    lines = []
    if of.low is not None and of.high is not None:
        lines.append(Line("interval", (panel.at(sqrt(max(of.low, 0.0)), y), panel.at(sqrt(of.high), y))))
    if up.low is not None and up.high is not None:
        lines.append(Line("interval", (panel.at(x, up.low), panel.at(x, up.high))))
    if point.bound and point.bound.value is not None:
        lines.append(Line("reach", (panel.at(x, y), panel.at(sqrt(point.bound.value), y))))
    return lines


def _marks(panel: Panel, drawn: list[Point]) -> list[Mark]:
    """Return the bounds, the control, then the others: a defense that changes nothing does not hide the control."""
    bounds = [
        Mark(*panel.at(sqrt(p.bound.value), p.at[1]), "square" if p.control else "dot", hollow=True)
        for p in drawn
        if p.bound and p.bound.value is not None
    ]
    by_layer = sorted(drawn, key=lambda p: not p.control)
    return bounds + [Mark(*panel.at(*p.at), "square" if p.control else "dot") for p in by_layer]
