"""The time budget of an audit: who gets how much of it, and what each piece of work took."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import InitVar, dataclass, field, replace

from leakaudit.audit.pieces import Piece
from leakaudit.work.progress import current, monitored


@dataclass
class Clock:
    """Splits the time budget over the pieces of work still to come, and remembers what each took."""

    budget: float | None
    pieces: InitVar[Iterable[Piece]]  # all that is to come
    left: float = field(init=False)  # their weight
    started: float = field(default_factory=time.monotonic)
    timings: dict[str, float] = field(default_factory=dict)

    def __post_init__(self, pieces: Iterable[Piece]) -> None:
        self.left = sum(piece.weight for piece in pieces)

    def skip(self, pieces: Iterable[Piece]) -> None:
        """Leave the time of pieces that will not be done to the others."""
        self.left -= sum(piece.weight for piece in pieces)

    @contextmanager
    def piece(self, piece: Piece) -> Iterator[None]:
        """Time a piece of work and give it its share of what is left of the budget."""
        now = time.monotonic()
        deadline = None
        if self.budget is not None:
            remaining = max(0.0, self.started + self.budget - now)
            deadline = now + remaining * piece.weight / max(self.left, piece.weight)
        try:
            with monitored(replace(current(), deadline=deadline)):
                current().show(piece.work, 0, 0)
                yield
        finally:
            self.skip([piece])
            self.timings[str(piece.work)] = round(time.monotonic() - now, 3)
