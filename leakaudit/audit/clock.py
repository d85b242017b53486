"""The time budget of an audit: who gets how much of it, and what each piece of work took.

Shares come from seconds: from what each piece is expected to take, by what one unit of its work was measured to take on
this model and machine, and by what the same work took under an earlier defense. Where there are too few, what a verdict
rests on comes before what only tells more of it (`leakaudit.audit.pieces.rank`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import InitVar, dataclass, field, replace

from leakaudit.audit.costs import NOMINAL, Costs
from leakaudit.audit.pieces import Piece, rank
from leakaudit.audit.shares import SHORT, share_of
from leakaudit.result.numbers import about
from leakaudit.result.rules import UPDATES, WEAKENED
from leakaudit.units import desk
from leakaudit.units.unit import Elsewhere
from leakaudit.work.progress import Work, current, monitored

RESERVE, MOST = 0.1, 4.0  # of the budget, and seconds at most, that are kept to judge and to write the report
LONGER = 1.5  # times as long as before, that a piece must be given to be tried again …
HOPE = 0.35  # … and the share of what it is expected to take: nothing waits for its time any more


@dataclass
class Clock:
    """Splits the time budget over the pieces of work still to come, and remembers what each took."""

    budget: float | None
    pieces: InitVar[Iterable[Piece]]  # all that is to come
    costs: Costs = NOMINAL
    started: float = field(default_factory=time.monotonic)
    lanes: int = 1  # how many work on the pieces at once
    timings: dict[str, float] = field(default_factory=dict)
    ahead: list[Piece] = field(init=False)
    # By the work's name: what the last took over what was reckoned, and how much dearer an update was there.
    pace: dict[str, tuple[float, float]] = field(default_factory=dict)
    dearer: dict[str, float] = field(default_factory=dict)  # by defense: an update's cost over an undefended one's
    shelved: set[Work] = field(default_factory=set)  # what is known already, and takes no time
    short: dict[Work, tuple[Piece, float]] = field(default_factory=dict)  # left out or cut short, and seconds it had
    had: dict[Work, float] = field(default_factory=dict)  # the seconds that each was given last

    def __post_init__(self, pieces: Iterable[Piece]) -> None:
        self._expect(pieces)

    def _expect(self, pieces: Iterable[Piece]) -> None:
        """Set what is still to come, and tell whoever watches."""
        self.ahead = list(pieces)
        current().ahead([(piece.work, self.costs.seconds(piece.amount)) for piece in self.ahead], self.lanes)

    def skip(self, pieces: Iterable[Piece]) -> None:
        """Leave the time of pieces that will not be done to the others."""
        gone = {piece.work for piece in pieces}
        self._expect(piece for piece in self.ahead if piece.work not in gone)
        self.short = {work: short for work, short in self.short.items() if work not in gone}

    def known(self, pieces: Iterable[Piece]) -> None:
        """Note that the outcomes of pieces are there already: they take no time, and tell nothing of others'."""
        found = tuple(pieces)
        self.shelved |= {piece.work for piece in found}
        self.skip(found)

    def found(self, spec: str, pieces: Sequence[Piece]) -> None:
        """Note what is now known to be done with a defense."""
        at = next((i for i, piece in enumerate(self.ahead) if piece.work.defense == spec), len(self.ahead))
        others = [piece for piece in self.ahead if piece.work.defense != spec]
        own = [piece for piece in pieces if piece.work not in self.shelved]
        self._expect([*others[:at], *own, *others[at:]])

    def expected(self, piece: Piece) -> float:
        """Return the seconds that a piece may take."""
        dearer, amount = self.dearer.get(piece.work.defense, 1.0), piece.amount
        known = None if piece.all_or_nothing or piece.work.name == UPDATES else self.pace.get(piece.work.name)
        pace, then = known or (1.0, 1.0)
        return pace * self.costs.seconds(replace(amount, updates=amount.updates * _told(dearer / then)))

    def share(self, piece: Piece) -> float:
        """Return the seconds that a piece is given of what is left: 0 where too little would come of it."""
        pieces = [piece, *(other for other in self.ahead if other.work != piece.work)]
        return share_of(self.left(), pieces, [self.expected(p) for p in pieces], self.lanes)

    def left(self) -> float:
        """Return the seconds that are left for pieces of work."""
        return self._end() - time.monotonic()

    def again(self) -> Piece | None:
        """Return what to try again of what was left out or cut short: None where no time is left that would help.

        What says most goes first, then what takes least. One is tried again only with far more time than it had, so
        that this ends.
        """
        if self.budget is None:
            return None
        left, found = self.left(), []
        for piece, had in self.short.values():
            least = max(SHORT, LONGER * had, min(HOPE, piece.least) * self.expected(piece))
            if left >= least:
                found.append((rank(piece), max(least, self.expected(piece)), piece))
        return min(found, key=lambda each: each[:2])[2] if found else None

    def _end(self) -> float:
        assert self.budget is not None
        return self.started + self.budget - min(MOST, RESERVE * self.budget)

    @contextmanager
    def piece(self, piece: Piece, *, last: bool = False) -> Iterator[str]:
        """Time a piece of work and give it its share of what is left of the budget, or all where it is the `last`.

        Yields why it should not be begun, which is nothing where it should.
        """
        now, deadline, given = time.monotonic(), current().deadline, 0.0
        why, shelved = "", piece.work in self.shelved
        if self.budget is not None and not shelved:
            given = max(0.0, self.left()) if last else self.share(piece)
            deadline = now + given if deadline is None else min(deadline, now + given)
            if not given:
                why = f"the time budget is too short for it: it would take about {about(self.expected(piece))}"
                if now >= self._end():
                    why = "the time budget was spent before it began"
        if piece not in self.ahead and not shelved:
            self._expect([piece, *self.ahead])
        elsewhere, computed = False, _computed()
        again = str(piece.work) in self.timings and not last  # known since another round: it takes no time
        try:
            with monitored(replace(current(), deadline=deadline)):
                if not again:
                    current().show(piece.work, 0, 0)
                yield why
        except Elsewhere:  # it is still to be done, and this says nothing of what it takes
            elsewhere = True
            raise
        finally:
            if not elsewhere:
                self.skip([piece])
                self.had[piece.work] = given
                self._note(piece, time.monotonic() - now, deadline, here=computed != _computed())

    def cut(self, piece: Piece) -> None:
        """Note that a piece is to be tried again where time is left: for want of it there is less than it may give."""
        if self.budget is not None:
            self.short[piece.work] = (piece, self.had.get(piece.work, 0.0))

    def forget(self, piece: Piece) -> None:
        """Expect nothing of a piece by what it took: it came to nothing, and may work under the next defense."""
        self.pace.pop(piece.work.name, None)

    def _note(self, piece: Piece, took: float, deadline: float | None, here: bool) -> None:
        """Note what a piece took, unless its outcome was known: `here` says whether a desk had it computed."""
        there, name = desk.current(), piece.work.name
        self.timings[str(piece.work)] = round(took + self.timings.get(str(piece.work), 0.0), 3)
        if piece.work in self.shelved or (there is not None and not here and name != UPDATES):
            known = None if there is None else there.took.get(str(piece.work))
        elif deadline is not None and time.monotonic() >= deadline:
            self.cut(piece)  # and what it took says nothing of what it takes
            return
        else:
            known = took
        if name == UPDATES:
            usual = max(1e-6, self.costs.seconds(piece.amount))
            self.dearer[piece.work.defense] = max(self.dearer.get(piece.work.defense, 1.0), took / usual)
        elif known is not None and piece.work.defense != "none" and piece.role != WEAKENED:
            # Without a defense some do far less; what is weakened is tried until something is seen.
            then = self.dearer.get(piece.work.defense, 1.0)
            self.pace[name] = known / max(1e-6, self.costs.seconds(piece.amount)), then


def _told(ratio: float) -> float:
    """Return a ratio of two updates' costs but for a factor of two, which says nothing: they are measured in a moment.

    What is reckoned too dear may be left out, and what is reckoned too cheap has half of what is over.
    """
    return max(1.0, ratio / 2) if ratio > 1 else min(1.0, ratio * 2)


def _computed() -> int:
    there = desk.current()
    return 0 if there is None else len(there.computed)
