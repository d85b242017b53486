"""What is being computed now: the piece of an audit's work, the loop or the stage within it, and since when."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from leakaudit.result.outward import in_place
from leakaudit.result.plaintext import visible
from leakaudit.result.rules import ACCURACY, FIT, UPDATES, WEAKENED
from leakaudit.work.progress import Work

NOTHING = Work("")
PIECES = {  # what the pieces are called that are no attack
    FIT: "fitting the defense",
    UPDATES: "computing what clients send",
    WEAKENED: "attacking it at less than its strength",
    ACCURACY: "training for accuracy",
}


@dataclass
class Present:
    """Where the work is, as it tells of itself; paths in it as others may read them."""

    images: str = "full"  # the level that decides how
    now: Callable[[], float] = time.monotonic
    piece: Work = Work("starting")  # noqa: RUF009 - frozen
    loop: Work = NOTHING
    stage: str = ""  # what is done that no loop counts; empty within a loop
    done: int = 0
    total: int = 0  # of the loop; 0 where there is none
    since: float = 0.0  # when the loop, the stage or else the piece began

    def __post_init__(self) -> None:
        self.since = self.now()

    def show(self, work: Work, done: int, total: int) -> bool:
        """Take in where the work is, a total of 0 begins a piece; return whether something else is done now."""
        work = replace(work, defense=in_place(work.defense, self.images))
        new = total == 0 or work != self.loop or done < self.done
        if new:
            self.since = self.now()
        if total == 0:
            self.piece, self.loop = work, NOTHING
        else:
            self.loop = work
        self.done, self.total, self.stage = done, total, ""
        return new

    def enter(self, stage: str) -> None:
        """Take in that a stage begins."""
        self.stage, self.loop, self.done, self.total, self.since = stage, NOTHING, 0, 0, self.now()

    def elapsed(self) -> float:
        """Return the seconds since the loop, the stage or else the piece began."""
        return self.now() - self.since

    def what(self) -> str:
        """Return the piece of work in words: `prune: masked-matching`, `none, the control: training for accuracy`."""
        defense = "none, the control" if self.piece.defense == "none" else self.piece.defense
        name = PIECES.get(self.piece.name, self.piece.name) if defense else self.piece.name
        return visible(str(replace(self.piece, defense=defense, name=name)))

    def within(self) -> str:
        """Return what of the piece is done, in words; empty where that is its own loop, or nothing is known."""
        own = self.loop.name == self.piece.name
        return visible(self.stage or str(replace(self.loop, name="") if own else self.loop))
