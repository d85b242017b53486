"""The time budget of an audit: who gets how much of it, and what each piece of work took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from leakaudit.work.progress import current, monitored


@dataclass
class Clock:
    """Splits the time budget over the pieces of work still to come, and remembers what each took."""

    budget: float | None
    left: float  # weight of the work still to come
    started: float = field(default_factory=time.monotonic)
    timings: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def piece(self, label: str, weight: float) -> Iterator[None]:
        """Time a piece of work and give it its share of what is left of the budget."""
        now = time.monotonic()
        deadline = None
        if self.budget is not None:
            remaining = max(0.0, self.started + self.budget - now)
            deadline = now + remaining * weight / max(self.left, weight)
        shown = current()
        try:
            with monitored(replace(shown, deadline=deadline, show=lambda inner, i, n: shown.show(inner, i, n))):
                shown.show(label, 0, 0)
                yield
        finally:
            self.left -= weight
            self.timings[label] = round(time.monotonic() - now, 3)
