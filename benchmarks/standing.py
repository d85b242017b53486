"""Which defenses lie above obscure's frontier: accuracy at no more leakage, compared seed by seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.rows import Row
from benchmarks.tables import OTHER, accuracy, marked, rate, table
from leakaudit.stats import intervals

UNLIKELY = 0.05  # that guessing finds as many, over all attacks on a defense together
OURS = "obscure"


@dataclass(frozen=True)
class Point:
    """A defense at one strength: its worst attack, and how likely guessing is to do as well as any of its attacks."""

    worst: Row
    by_guessing: float  # at most: the least probability of as many hits, times how many attacks there are

    @property
    def at_chance(self) -> bool:
        """Whether no attack was shown to find more than guessing does."""
        return self.by_guessing >= UNLIKELY


@dataclass(frozen=True)
class Standing:
    """One defense beside the most accurate point of obscure's that leaks no more."""

    point: Point
    beside: Point
    difference: float | None  # of accuracy, the mean over the same seeds; None where seeds are not the same
    low: float | None
    high: float | None

    @property
    def verdict(self) -> str:
        """Say where it lies."""
        if self.difference is None:
            return "not compared"
        if self.low is None or self.high is None:
            return "above, one seed" if self.difference > 0 else "below, one seed"
        if self.low > 0:
            return "above"
        return "below" if self.high < 0 else "not told apart"


def points(rows: Sequence[Row], dataset: str, setting: str = "private-only") -> list[Point]:
    """Return every defense that was attacked on a data set, in the order of the rows."""
    from scipy.stats import binom

    here = [row for row in marked(rows) if row.dataset == dataset and row.setting == setting]
    found = []
    for worst in (row for row in here if row.kind == "worst"):
        chances = [
            float(binom.sf(round(row.identification * row.records) - 1, row.records, row.chance or 0.0))
            for row in here
            if row.kind == "attack" and row.spec == worst.spec and row.identification is not None
        ]
        found.append(Point(worst, min(1.0, min(chances, default=1.0) * len(chances))))
    return found


def frontier(found: Sequence[Point]) -> list[Point]:
    """Return obscure's points of which none other is as accurate and leaks no more, by leakage.

    Points at chance leak alike, whatever their samples came to.
    """
    ours = [p for p in found if p.worst.defense == OURS and p.worst.accuracy is not None]
    ours.sort(key=lambda p: (_leak(p), -(p.worst.accuracy or 0.0)))
    kept: list[Point] = []
    for point in ours:
        if not kept or (point.worst.accuracy or 0.0) > (kept[-1].worst.accuracy or 0.0):
            kept.append(point)
    return kept


def _leak(point: Point) -> float:
    return 0.0 if point.at_chance else point.worst.identification or 0.0


def standings(rows: Sequence[Row], dataset: str) -> list[Standing]:
    """Return where every other defense stands that was trained on private records alone."""
    found = points(rows, dataset)
    line = frontier(found)
    compared = []
    for point in found:
        below = [p for p in line if _leak(p) <= _leak(point)]
        if point.worst.defense == OURS or not below:
            continue
        beside = below[-1]
        ours, theirs = beside.worst.accuracies, point.worst.accuracies
        gaps = [b - a for a, b in zip(ours, theirs, strict=False)] if len(ours) == len(theirs) else []
        gap = intervals.mean(gaps, least=1 / max(1, point.worst.tested))
        compared.append(Standing(point, beside, gap.value, gap.low, gap.high))
    return compared


def check(rows: Sequence[Row], dataset: str) -> str:
    """Return what is above obscure's frontier at chance leakage, and the table of all defenses beside it.

    Seeds fix initial weights and the order of batches, so accuracies are compared in pairs: Student's 95 % interval of
    the mean difference.
    """
    compared = standings(rows, dataset)
    if not compared:
        return ""
    safe = [s for s in compared if s.point.at_chance]
    above = [_named(s) for s in safe if s.verdict.startswith("above")]
    open_ = [_named(s) for s in safe if s.verdict == "not told apart"]
    first = f"At chance leakage, above {OURS}'s frontier on {dataset}: {', '.join(above) or 'none'}"
    if open_:
        first += f"; not told apart from it: {', '.join(open_)}"
    first += f" (of {len(safe)} that no attack finds more often than a guess does)."
    lines = [
        [s.point.worst.spec + (OTHER if "other code" in s.point.worst.facts else ""), accuracy(s.point.worst),
         rate(s.point.worst), "yes" if s.point.at_chance else "no", s.beside.worst.spec, _gap(s), s.verdict]
        for s in compared
    ]  # fmt: skip
    head = ("defense", "accuracy", "worst attack finds", "at chance", "beside", "points more", "it lies")
    return f"{first}\n\n{table(head, lines)}"


def _named(standing: Standing) -> str:
    return f"{standing.point.worst.spec} by {_gap(standing)}"


def _gap(standing: Standing) -> str:
    if standing.difference is None:
        return "–"
    value = f"{100 * standing.difference:+.1f}"
    if standing.low is None or standing.high is None:
        return value
    return f"{value} ({100 * standing.low:+.1f} to {100 * standing.high:+.1f})"
