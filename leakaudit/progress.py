"""How long work reports itself and learns that its time is up, without every function carrying the arguments.

The audit installs one `Monitor` for the duration of a run; attacks, defenses and training loops call `track` around
their iterations and stop early when `expired()` says so. With no monitor installed both are free.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Monitor:
    """Where progress goes, and when the current piece of work must end."""

    show: Callable[[str, int, int], None] = lambda label, done, total: None
    deadline: float | None = None  # seconds on `time.monotonic`


_monitor: ContextVar[Monitor] = ContextVar("monitor", default=Monitor())  # noqa: B039 - a frozen dataclass


@contextmanager
def monitored(monitor: Monitor) -> Iterator[None]:
    """Install a monitor for the enclosed work."""
    token = _monitor.set(monitor)
    try:
        yield
    finally:
        _monitor.reset(token)


def current() -> Monitor:
    """Return the installed monitor, so that a nested one can tighten its deadline."""
    return _monitor.get()


def expired() -> bool:
    """Return whether the time budget of the current piece of work is spent."""
    deadline = _monitor.get().deadline
    return deadline is not None and time.monotonic() >= deadline


def track(label: str, total: int) -> Iterator[int]:
    """Yield 0 … total−1, showing progress; stops early when the budget is spent (the caller sees fewer steps)."""
    for i in range(total):
        if expired():
            return
        _monitor.get().show(label, i, total)
        yield i
    _monitor.get().show(label, total, total)
