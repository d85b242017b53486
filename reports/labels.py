"""Where the words of a figure stand: each beside what it names, on no other word and on no mark."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from leakaudit.reports.drawing import Anchor, Box, Line, Word

# Where a label may stand from its point, the best side first, to the right and up. No function of the machine's
# mathematics library is in them, so that every machine draws the same.
SIDES = [(0.8, 0.6), (0.8, -0.6), (-0.8, 0.6), (-0.8, -0.6), (0.0, 1.0), (0.0, -1.0), (1.0, 0.0), (-1.0, 0.0)]
SIDES += [(x, y) for a, b in ((0.92, 0.38), (0.38, 0.92)) for x in (a, -a) for y in (b, -b)]
BESIDE, STEP = 7, 6  # pixels from a point's middle to the nearest label, and to the next ring of places
CROSSING, LEADER = 66, 12  # how many pixels farther a label goes to lie on no line, or to need no leader


@dataclass(frozen=True)
class Label:
    """A text for the point at (x, y)."""

    x: float
    y: float
    text: str


def first_free(places: Sequence[Word], within: Box, taken: Sequence[Box], lines: Sequence[Box]) -> Word:
    """Return the first of some places inside a box that lies on nothing, else on no `taken` one, else the first."""
    inside = [word for word in places if within.holds(word.box)]
    for avoided in ([*taken, *lines], taken):
        for word in inside:
            if not word.box.meets_any(avoided):
                return word
    return (inside or places)[0]


def beside(
    labels: Sequence[Label], within: Box, taken: Sequence[Box], lines: Sequence[Box], reach: float
) -> tuple[list[Word], list[Line]]:
    """Return a word for each label and a leader for those that are not plainly their point's.

    A label that finds no place inside a box, on no `taken` one and no other label, within `reach` pixels is left out.
    """
    words: list[Word] = []
    leaders: list[Line] = []
    full = list(taken)
    for label in labels:
        others = [other for other in labels if (other.x, other.y) != (label.x, label.y)]
        best: tuple[float, Word, Box] | None = None
        for far, word in _places(label, reach):
            if best and far >= best[0]:
                break
            box = word.box
            if not within.holds(box) or box.meets_any(full):
                continue
            cost = far + CROSSING * box.meets_any(lines) + LEADER * _strays(box, label, others)
            if best is None or cost < best[0]:
                best = cost, word, box
        if best is None:
            continue
        words.append(best[1])
        full.append(best[2])
        if _strays(best[2], label, others):
            leaders.append(Line("leader", (best[2].nearest(label.x, label.y), (label.x, label.y))))
    return words, leaders


def _places(label: Label, reach: float) -> Iterator[tuple[float, Word]]:
    """Yield the places for a label, the nearest first, with how far each is."""
    box = Word(0, 0, label.text).box
    for ring in range(int((reach - BESIDE) / STEP) + 1):
        far = BESIDE + ring * STEP
        for right, up in SIDES:
            x, y = label.x + far * right, label.y - far * up
            anchor: Anchor = "start" if right > 0.5 else "end" if right < -0.5 else "middle"
            drop = -box.bottom if up > 0.5 else -box.top if up < -0.5 else -(box.top + box.bottom) / 2
            yield far, Word(x, y + drop, label.text, anchor=anchor)


def _strays(box: Box, label: Label, others: Sequence[Label]) -> bool:
    """Return whether a word is too far from its point, or another is about as near."""
    gap = box.gap(label.x, label.y)
    return gap > 4 * STEP or any(box.gap(other.x, other.y) < gap + 4 for other in others)
