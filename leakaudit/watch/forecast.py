"""How far a scan is and how long it may still take: the pieces of work ahead, and what those behind took."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

from leakaudit.audit.pieces import Piece
from leakaudit.result.rules import FIT
from leakaudit.work.progress import Work

HEAVY = 2.0  # the weight from which a piece says how fast this machine is …
TELLING = 3  # … where so many have ended: a single one can be five times dearer or cheaper than its weight says


@dataclass
class Forecast:
    """What is known of a running scan's time.

    A piece is expected to take what the same work took under an earlier defense; where there was none, its weight
    times the seconds that a weight of one took in most heavy pieces so far (the light ones often take no time at all).
    """

    pieces: tuple[Piece, ...]
    budget: float | None = None  # seconds
    now: Callable[[], float] = time.monotonic
    took: dict[Work, float] = field(default_factory=dict)  # seconds, of finished pieces
    present: Piece | None = None
    begun: float = 0.0
    since: float = 0.0  # when the present piece began
    furthest: float = 0.0

    def __post_init__(self) -> None:
        self.begun = self.since = self.now()

    def begin(self, work: Work) -> None:
        """Note that this piece of work begins now, and so that the one before it ended."""
        self.end()
        self.present = next((p for p in self.pieces if p.work == work), None)
        if self.present is not None and self.present.attack is None and work.name != FIT:
            at = self.pieces.index(self.present)  # attacks that stand before it and never began were skipped
            behind = (p for p in self.pieces[:at] if p.attack is None or p.work in self.took)
            self.pieces = (*behind, *self.pieces[at:])
        self.since = self.now()

    def end(self) -> None:
        """Note that the present piece ended."""
        if self.present is not None:
            self.took[self.present.work] = self.now() - self.since
        self.present = None

    def elapsed(self) -> float:
        """Return the seconds since the scan began."""
        return self.now() - self.begun

    def place(self) -> tuple[int, int]:
        """Return which defense is at work, counted from 1 (0 before the first), and of how many."""
        specs = list(dict.fromkeys(p.work.defense for p in self.pieces))
        return (specs.index(self.present.work.defense) + 1 if self.present else 0), len(specs)

    def expected(self, piece: Piece) -> float | None:
        """Return the seconds a piece may take, None where nothing is known yet."""
        alike = [self.took[p.work] for p in self.pieces if p.work.name == piece.work.name and p.work in self.took]
        if alike and piece.work.name != FIT:
            return alike[-1]
        least = min(HEAVY, max((p.weight for p in self.pieces), default=0.0))
        heavy = [p for p in self.pieces if p.weight and p.weight >= least]
        telling = [self.took[p.work] / p.weight for p in heavy if p.work in self.took]
        return piece.weight * median(telling) if telling and len(telling) >= min(TELLING, len(heavy)) else None

    def left(self) -> float | None:
        """Return the seconds that the rest may take, within the budget; None where nothing is known yet."""
        ahead = [p for p in self.pieces if p.work not in self.took]
        guesses = [self.expected(p) for p in ahead if p is not self.present]
        if self.present is not None:
            whole = self.expected(self.present)
            guesses.append(None if whole is None else max(0.0, whole - (self.now() - self.since)))
        known = [g for g in guesses if g is not None]
        if len(known) < len(guesses):
            return None if self.budget is None else max(0.0, self.budget - self.elapsed())
        rest = sum(known)
        return rest if self.budget is None else max(0.0, min(rest, self.budget - self.elapsed()))

    def share(self) -> float:
        """Return how much of the scan is done, in [0, 1]; it never falls when a forecast turns out too hopeful."""
        whole = sum(p.weight for p in self.pieces)
        left = self.left()
        if left is None:
            done = sum(p.weight for p in self.pieces if p.work in self.took)
            if self.present is not None and self.present.weight:  # nothing is known of its speed: never to its end
                done += self.present.weight * -math.expm1((self.since - self.now()) / self.present.weight)
            done = done / whole if whole else 0.0
        else:
            done = self.elapsed() / max(1e-9, self.elapsed() + left)
        self.furthest = max(self.furthest, min(1.0, done))
        return self.furthest
