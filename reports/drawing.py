"""A figure as a value: lines, bands, marks and words at places in pixels. `figure.svg.j2` writes it down."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil, dist, floor
from typing import Literal
from unicodedata import east_asian_width

from leakaudit.result.numbers import percent
from leakaudit.result.schema import Verdict

Place = tuple[float, float]
Kind = Literal["grid", "axis", "chance", "limit", "reach", "leader", "interval", "trend", "joined"]  # how lines look
Anchor = Literal["start", "middle", "end"]
STEPS = [float(f"{digit}e{power}") for power in range(-4, 9) for digit in (1, 2, 5)]  # between ticks


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels from the upper left corner: `bottom` is larger than `top`."""

    left: float
    top: float
    right: float
    bottom: float

    def meets_any(self, others: Iterable[Box]) -> bool:
        """Return whether the box overlaps one of others."""
        left, top, right, bottom = self.left, self.top, self.right, self.bottom
        return any(left < o.right and o.left < right and top < o.bottom and o.top < bottom for o in others)

    def holds(self, other: Box) -> bool:
        """Return whether another box lies within this one."""
        across = self.left <= other.left and other.right <= self.right
        return across and self.top <= other.top and other.bottom <= self.bottom

    def nearest(self, x: float, y: float) -> Place:
        """Return the point of the box nearest to (x, y)."""
        return min(max(x, self.left), self.right), min(max(y, self.top), self.bottom)

    def gap(self, x: float, y: float) -> float:
        """Return how far (x, y) is from the box, 0 within it."""
        return dist(self.nearest(x, y), (x, y))


@dataclass(frozen=True)
class Line:
    """A line through points, or with `Drawing.bands` the outline of an area."""

    kind: Kind
    points: tuple[Place, ...]

    @property
    def box(self) -> Box:
        """The place of a level or an upright line."""
        xs, ys = zip(*self.points, strict=True)
        return Box(min(xs) - 1, min(ys) - 1, max(xs) + 1, max(ys) + 1)


@dataclass(frozen=True)
class Mark:
    """A point that was measured, or with `hollow` one that is less than that."""

    x: float
    y: float
    shape: Literal["dot", "square", "cross", "ring"] = "dot"  # a ring lies around another mark
    hollow: bool = False
    verdict: Verdict | None = None  # whose colour it has

    @property
    def box(self) -> Box:
        """The place that it takes, with a little room."""
        far = 10 if self.shape == "ring" else 6
        return Box(self.x - far, self.y - far, self.x + far, self.y + far)


@dataclass(frozen=True)
class Word:
    """Words whose base line begins, is centred or ends at (x, y). `upright` ones run upwards from there."""

    x: float
    y: float
    text: str
    size: float = 10
    anchor: Anchor = "start"
    muted: bool = False
    upright: bool = False

    @property
    def box(self) -> Box:
        """The place that they take in most fonts."""
        length = width(self.text, self.size)
        before = {"start": 0.0, "middle": length / 2, "end": length}[self.anchor]
        up, down = 0.95 * self.size, 0.25 * self.size
        if self.upright:
            return Box(self.x - up, self.y - (length - before), self.x + down, self.y + before)
        return Box(self.x - before, self.y - up, self.x + length - before, self.y + down)


@dataclass(frozen=True)
class Drawing:
    """A figure. `name` is its class and the beginning of its ids; `title` and `description` are for who cannot see it.

    Lines are drawn by kind, marks above them in their order, words above all; `allowed` areas lie below everything.
    """

    name: str
    title: str
    description: str
    width: float
    height: float
    lines: tuple[Line, ...]
    marks: tuple[Mark, ...]
    words: tuple[Word, ...]
    bands: tuple[Line, ...] = ()
    allowed: tuple[Line, ...] = ()


@dataclass(frozen=True)
class Panel:
    """Axes: a place in pixels, and the numbers at its left and right, its bottom and top."""

    box: Box
    across: tuple[float, float]
    up: tuple[float, float]

    def at(self, x: float, y: float) -> Place:
        """Return where (x, y) is drawn."""
        box, (left, right), (low, high) = self.box, self.across, self.up
        return (
            box.left + (x - left) / (right - left) * (box.right - box.left),
            box.bottom - (y - low) / (high - low) * (box.bottom - box.top),
        )

    def level(self, kind: Kind, y: float) -> Line:
        """Return a line across the panel."""
        return Line(kind, (self.at(self.across[0], y), self.at(self.across[1], y)))

    def plumb(self, kind: Kind, x: float) -> Line:
        """Return a line from the panel's bottom to its top."""
        return Line(kind, (self.at(x, self.up[0]), self.at(x, self.up[1])))

    def frame(self) -> Line:
        """Return the two axes."""
        box = self.box
        return Line("axis", ((box.left, box.top), (box.left, box.bottom), (box.right, box.bottom)))

    def scale_across(self, ticks: Mapping[float, str]) -> list[Word]:
        """Return the words below the panel."""
        return [Word(self.at(x, 0)[0], self.box.bottom + 14, text, 9, "middle") for x, text in ticks.items()]

    def scale_up(self, ticks: Mapping[float, str]) -> list[Word]:
        """Return the words at the panel's left."""
        return [Word(self.box.left - 6, self.at(0, y)[1] + 3, text, 9, "end") for y, text in ticks.items()]


def width(text: str, size: float) -> float:
    """Return about how many pixels a text takes: as in a wide font, for nobody knows the reader's."""
    wide = sum(
        1.0 if east_asian_width(c) in "WF" or c in "MW@%mw…" else 0.8 if c.isupper() or c in "=+<>" else 0.62
        for c in text
    )
    return size * wide


def ticks(low: float, high: float, most: int, least: float = 0.0) -> list[float]:
    """Return round numbers in [low, high]: about `most` or fewer, and at least `least` apart."""
    step = next(s for s in STEPS if s >= least and (high - low) / s <= most)
    return [round(i * step, 12) for i in range(ceil(low / step), floor(high / step) + 1)]


def percents(low: float, high: float, most: int) -> dict[float, str]:
    """Return round shares within [low, high] and [0, 1], with their percentages."""
    return {t: percent(t) for t in ticks(max(low, 0.0), min(high, 1.0), most)}
