"""How a command ends early: SIGINT and SIGTERM both interrupt, once, and not while its last files are written.

CI systems, Kubernetes and `timeout` send SIGTERM, some after a SIGINT: what follows the first signal within seconds is
the same wish.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

SAME = 5.0  # seconds after an interrupt within which another one means the same


@dataclass
class Ends:
    """What became of the signals that a command was sent."""

    process: int
    asked: float | None = None  # when the last interrupt was raised, on `time.monotonic`
    taken: bool = False  # whether it came through: code of others may swallow it
    closed: bool = False  # the command is ending by itself: nothing interrupts it any more


_ends: Ends | None = None


@contextmanager
def listening() -> Iterator[None]:
    """Let SIGINT and SIGTERM raise KeyboardInterrupt within; one that is ignored stays ignored (`nohup`, say)."""
    global _ends
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.getsignal(number) for number in ours}
    outer, _ends = _ends, Ends(os.getpid())
    for number, default in ours.items():
        if before[number] is default:
            signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if outer is not None and _ends is not None:  # an interrupt within is the outer's, too
            outer.asked, outer.taken = _ends.asked or outer.asked, outer.taken or _ends.taken
        _ends = outer


def _interrupt(number: int, frame: FrameType | None) -> None:
    ends = _ends
    if ends is None or ends.process != os.getpid():  # a process that was forked: it ends as any would
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return
    now = time.monotonic()
    if ends.closed or (ends.asked is not None and now - ends.asked < SAME):
        return
    ends.asked, ends.taken = now, False
    raise KeyboardInterrupt


def check() -> None:
    """Raise the interrupt again that somebody's code swallowed: long loops ask."""
    if _ends is not None and _ends.asked is not None and not (_ends.taken or _ends.closed):
        raise KeyboardInterrupt


def took() -> None:
    """Say that an interrupt came through to whoever ends the work."""
    if _ends is not None:
        _ends.taken = True


def ignore() -> None:
    """Let no signal take the exit code of a process that has one: tearing down its libraries takes a second."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def close() -> None:
    """Let nothing interrupt the command any more: what is left takes seconds, and must be whole."""
    if _ends is not None:
        _ends.closed = True


@contextmanager
def broken_pipes() -> Iterator[None]:
    """Let SIGPIPE do what it does to every program: what Python makes of it ends in exit code 1, which says a leak."""
    if not hasattr(signal, "SIGPIPE") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGPIPE, before)
