"""What the main participant learns of the others while it waits for them, and says: it never waits in silence."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType

from leakaudit.spread.glance import notes
from leakaudit.spread.job import Job
from leakaudit.units.shelf import Shelf

EVERY, ASKED = 2.0, 20.0  # seconds between two looks for notes, and between two questions to whoever starts others
ALONE = 60.0  # seconds without anybody at work after which that is said once


@dataclass
class Waiting:
    """Who is waited for: `executor` is the module that started them, `say` what shows a line."""

    shelf: Shelf
    job: Job
    executor: ModuleType
    say: Callable[[str], None]
    _known: set[str] = field(default_factory=set)  # notes that were said
    _looked: float = 0.0
    _asked: float = 0.0
    _warned: bool = False
    _told: str = "waiting for others to take part"

    def look(self, alone: float) -> str:
        """Say what is new; return what is waited for, where nobody has been at work for `alone` seconds.

        Raises UserError where nobody will come any more.
        """
        now = time.monotonic()
        if now - self._looked >= EVERY:
            self._looked = now
            self.said()
        if alone and now - self._asked >= ASKED:
            self._asked = now
            self._told = self._of("waiting") or self._told
        if alone > ALONE and not self._warned:
            self._warned = True
            failed = f"; {len(self._known)} could not take part" if self._known else ""
            self.say(
                f"warning: nobody has been at work for a minute{failed}: start leakaudit worker "
                f"{shlex.quote(str(self.shelf.folder))} where that folder is seen, or interrupt this and go on later"
            )
        return self._told

    def said(self) -> None:
        """Say which participants could not take part, and why, each once."""
        for name, note in notes(self.shelf, self.job.id, self.job.attempt):
            if name not in self._known:
                self._known.add(name)
                self.say(f"warning: a participant on {note.where} could not take part: {note.told}")

    @contextmanager
    def started(self, workers: int) -> Iterator[bool]:
        """Start participants; yield whether the main one takes part."""
        with self.executor.started(self.shelf, self.job, workers) as takes_part:
            self.tell("begun")
            yield takes_part

    def tell(self, moment: str) -> None:
        """Say what the executor says of itself when it has `begun`, or is `left` before the scan is finished."""
        if told := self._of(moment):
            self.say(told)

    def _of(self, moment: str) -> str:
        tell = getattr(self.executor, moment, None)
        return "" if tell is None else str(tell(self.shelf, self.job))
