"""How far a scan is and how long it may still take: the pieces of work ahead, and what those behind took."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field
from statistics import median

from leakaudit.audit.pieces import Piece
from leakaudit.result.rules import FIT
from leakaudit.work.progress import Ahead, Work

HEAVY = 2.0  # the weight from which a piece says how fast this machine is …
TELLING = 3  # … where so many have ended: a single one can be five times dearer or cheaper than its weight says


@dataclass
class Forecast:
    """What is known of a running scan's time.

    A piece is expected to take what the same work took under an earlier defense; where there was none, its weight
    times the seconds that a weight of one took in most heavy pieces so far (the light ones often take no time at all).
    """

    pieces: InitVar[tuple[Piece, ...]]  # all that is to come, until the scan says what is
    budget: float | None = None  # seconds
    now: Callable[[], float] = time.monotonic
    lanes: int = 1  # how many work on the pieces at once, as the scan says
    took: dict[Work, float] = field(default_factory=dict)  # seconds, of finished pieces, the last one last
    weights: dict[Work, float] = field(init=False)
    ahead: list[Work] = field(init=False)  # what has not begun
    specs: list[str] = field(init=False)  # of the defenses
    present: Work | None = None
    begun: float = 0.0
    since: float = 0.0  # when the present piece began
    furthest: float = 0.0

    def __post_init__(self, pieces: tuple[Piece, ...]) -> None:
        self.begun = self.since = self.now()
        self.weights, self.ahead, self.specs = {}, [], []
        self.revise([(piece.work, piece.weight) for piece in pieces])

    def revise(self, pieces: Ahead, lanes: int = 1) -> None:
        """Take in what is still to come, for so many at once: what is known, or will not be done, is not among it."""
        self.lanes = lanes
        self.weights |= dict(pieces)
        self.ahead = [work for work, _ in pieces if work != self.present]
        self.specs = list(dict.fromkeys([*self.specs, *(work.defense for work, _ in pieces)]))

    def begin(self, work: Work) -> None:
        """Note that this piece of work begins now, and so that the one before it ended."""
        self.end()
        if work in self.ahead:
            self.ahead = [other for other in self.ahead if other != work]
            self.present = work
        self.since = self.now()

    def end(self) -> None:
        """Note that the present piece ended."""
        if self.present is not None:
            self.took.pop(self.present, None)  # it may have been tried before: this was the last
            self.took[self.present] = self.now() - self.since
        self.present = None

    def elapsed(self) -> float:
        """Return the seconds since the scan began."""
        return self.now() - self.begun

    def place(self) -> tuple[int, int]:
        """Return which defense is at work, counted from 1 (0 before the first), and of how many."""
        present = self.present
        return (self.specs.index(present.defense) + 1 if present else 0), len(self.specs)

    def expected(self, work: Work) -> float | None:
        """Return the seconds a piece may take, None where nothing is known yet."""
        took, present = dict(self.took), self.present  # whoever draws asks while the scan goes on
        alike = [seconds for done, seconds in took.items() if done.name == work.name]
        if alike and work.name != FIT:
            return alike[-1]
        every = [*took, *self.ahead, *([present] if present else [])]
        least = min(HEAVY, max((self.weights[each] for each in every), default=0.0))
        heavy = [each for each in every if self.weights[each] and self.weights[each] >= least]
        telling = [took[each] / self.weights[each] for each in heavy if each in took]
        known = telling and len(telling) >= min(TELLING, len(heavy))
        return self.weights[work] * median(telling) if known else None

    def left(self) -> float | None:
        """Return the seconds that the rest may take, within the budget; None where nothing is known yet."""
        guesses, present = [self.expected(work) for work in self.ahead], self.present
        if present is not None:
            whole = self.expected(present)
            guesses.append(None if whole is None else max(0.0, whole - (self.now() - self.since)))
        known = [g for g in guesses if g is not None]
        if len(known) < len(guesses):
            return None if self.budget is None else max(0.0, self.budget - self.elapsed())
        rest = sum(known) / self.lanes
        return rest if self.budget is None else max(0.0, min(rest, self.budget - self.elapsed()))

    def share(self) -> float:
        """Return how much of the scan is done, in [0, 1]; it never falls when a forecast turns out too hopeful."""
        left = self.left()
        if left is None:
            present = self.present
            done = sum(self.weights[work] for work in dict(self.took))
            own = self.weights[present] if present else 0.0
            whole = done + own + sum(self.weights[work] for work in self.ahead)
            if own:  # nothing is known of its speed: never to its end
                done += own * -math.expm1((self.since - self.now()) / own)
            done = done / whole if whole else 0.0
        else:
            done = self.elapsed() / max(1e-9, self.elapsed() + left)
        self.furthest = max(self.furthest, min(1.0, done))
        return self.furthest
