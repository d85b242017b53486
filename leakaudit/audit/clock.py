"""The time budget of an audit: who gets how much of it, and what each piece of work took.

Shares come from seconds: from what each piece is expected to take, by what one unit of its work was measured to take on
this model and machine, and by what the same piece took under an earlier defense.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import InitVar, dataclass, field, replace

from leakaudit.audit.costs import NOMINAL, Costs
from leakaudit.audit.pieces import Piece
from leakaudit.result.numbers import about
from leakaudit.result.rules import UPDATES
from leakaudit.work.progress import current, monitored

FITS = 0.6  # of what is left of the budget, that fits may take together
RESERVE, MOST = 0.1, 4.0  # of the budget, and seconds at most, that are kept to judge and to write the report
SAFE = 1.3  # times what a piece is expected to take, that it is given where there is a choice
SHORT = 0.3  # seconds below which nothing is worth splitting


@dataclass
class Clock:
    """Splits the time budget over the pieces of work still to come, and remembers what each took."""

    budget: float | None
    pieces: InitVar[Iterable[Piece]]  # all that is to come
    costs: Costs = NOMINAL
    started: float = field(default_factory=time.monotonic)
    timings: dict[str, float] = field(default_factory=dict)
    ahead: list[Piece] = field(init=False)
    took: dict[str, float] = field(default_factory=dict)  # seconds of the last that ended in time, by the work's name
    dearer: dict[str, float] = field(default_factory=dict)  # by defense: an update's cost over an undefended one's

    def __post_init__(self, pieces: Iterable[Piece]) -> None:
        self.ahead = list(pieces)

    def skip(self, pieces: Iterable[Piece]) -> None:
        """Leave the time of pieces that will not be done to the others."""
        gone = {piece.work for piece in pieces}
        self.ahead = [piece for piece in self.ahead if piece.work not in gone]

    def found(self, spec: str, pieces: Sequence[Piece]) -> None:
        """Note what is now known to be done with a defense."""
        at = next((i for i, piece in enumerate(self.ahead) if piece.work.defense == spec), len(self.ahead))
        others = [piece for piece in self.ahead if piece.work.defense != spec]
        self.ahead = [*others[:at], *pieces, *others[at:]]

    def expected(self, piece: Piece) -> float:
        """Return the seconds that a piece may take."""
        amount = piece.amount
        own = self.costs.seconds(replace(amount, updates=amount.updates * self.dearer.get(piece.work.defense, 1.0)))
        known = None if piece.all_or_nothing or piece.work.name == UPDATES else self.took.get(piece.work.name)
        return own if known is None else known

    def share(self, piece: Piece) -> float:
        """Return the seconds that a piece is given of what is left: 0 where too little would come of it."""
        assert self.budget is not None
        left = self._end() - time.monotonic()
        others = [other for other in self.ahead if other.work != piece.work]
        fits = [other for other in others if other.all_or_nothing]
        if piece.all_or_nothing:
            left, others = FITS * left, fits
        elif fits:
            left, others = (1 - FITS) * left, [other for other in others if not other.all_or_nothing]
        pieces = [piece, *others]
        needs = [max(SHORT, self.expected(p)) for p in pieces]
        over = left - sum(needs)
        given = shared_out(left, needs, [p.least for p in pieces])[0]
        # Half of what is over is there for whoever takes longer than expected: what it leaves returns.
        return given + max(0.0, over) * max(needs[0] / sum(needs), 0.5)

    def _end(self) -> float:
        assert self.budget is not None
        return self.started + self.budget - min(MOST, RESERVE * self.budget)

    @contextmanager
    def piece(self, piece: Piece) -> Iterator[str]:
        """Time a piece of work and give it its share of what is left of the budget.

        Yields why it should not be begun, which is nothing where it should.
        """
        now, deadline, why = time.monotonic(), current().deadline, ""
        if self.budget is not None:
            given = self.share(piece)
            deadline = now + given if deadline is None else min(deadline, now + given)
            if not given:
                why = f"the time budget is too short for it: it would take about {about(self.expected(piece))}"
                if now >= self._end():
                    why = "the time budget was spent before it began"
        try:
            with monitored(replace(current(), deadline=deadline)):
                current().show(piece.work, 0, 0)
                yield why
        finally:
            self.skip([piece])
            self._note(piece, time.monotonic() - now, deadline)

    def forget(self, piece: Piece) -> None:
        """Expect nothing of a piece by what it took: it came to nothing, and may work under the next defense."""
        self.took.pop(piece.work.name, None)

    def _note(self, piece: Piece, took: float, deadline: float | None) -> None:
        self.timings[str(piece.work)] = round(took, 3)
        if deadline is not None and time.monotonic() >= deadline:
            return  # cut short: it says nothing of what it takes
        if piece.work.name == UPDATES and piece.amount.updates:
            usual = max(1e-6, self.costs.seconds(piece.amount))
            self.dearer[piece.work.defense] = max(1.0, took / usual)
        elif piece.work.defense != "none":  # without a defense some attacks do far less
            self.took[piece.work.name] = took


def shared_out(left: float, needs: Sequence[float], least: Sequence[float]) -> list[float]:
    """Return seconds for each of some pieces of work, of `left` in all.

    Each gets what it needs. Where that is too much in all, it gets up to `SAFE` times that, but none more than a level
    at which it is enough. One that would get less than its `least` share of what it needs gets nothing, the dearest
    first (of equals the last), and leaves its time to the others.
    """
    if left <= 0:
        return [0.0] * len(needs)
    if sum(needs) <= left:
        return list(needs)
    wanted = [SAFE * need for need in needs]
    kept = list(range(len(needs)))
    while kept:
        level = _level(left, [wanted[i] for i in kept])
        short = [i for i in kept if min(wanted[i], level) < least[i] * needs[i]]
        if not short:
            return [min(wanted[i], level) if i in kept else 0.0 for i in range(len(needs))]
        kept.remove(max(short, key=lambda i: (needs[i], i)))
    return [0.0] * len(needs)


def _level(left: float, wanted: Sequence[float]) -> float:
    """Return the level at which as much as there is is given, where nobody gets more than wanted."""
    rest, count = left, len(wanted)
    for each in sorted(wanted):
        if each * count >= rest:
            return rest / count
        rest, count = rest - each, count - 1
    return max(wanted, default=0.0)
