"""How long work reports itself and learns that its time is up, without every function carrying the arguments.

The audit installs one `Monitor` for the duration of a run; attacks, defenses and training loops call `track` around
their iterations, say with `observe` what they are at, and stop early when `expired()` says so. With no monitor
installed all three are free. What is watched must not depend on being watched: a listener gets copies, draws no random
number, and one that fails is not asked again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ParamSpec

from leakaudit.work import ends

if TYPE_CHECKING:  # the command line imports this before it knows whether anything heavy is needed
    from torch import Tensor

    from leakaudit.result.schema import AuditResult

P = ParamSpec("P")
SHOWN = 8  # victims whose pictures are copied for a listener


@dataclass(frozen=True)
class Work:
    """What a monitor is told of: a piece of work that begins, or a loop within it. As a string, what is shown of it."""

    name: str  # of an audit's piece "fit", the attack's name, or "accuracy"; of a loop what `track` was given
    defense: str = ""  # the spec of the defense whose piece it is; "" for loops and outside an audit
    tuning: bool = False  # whether an attack is tuned on the adversary's own records

    def __str__(self) -> str:
        return ": ".join(part for part in ("tuning" if self.tuning else "", self.defense, self.name) if part)


@dataclass(frozen=True)
class Sight:
    """What long work looks like now: its losses, and the pictures of a few victims. Copies, on the CPU.

    It holds no more than the attack knows: there is no truth in here.
    """

    losses: tuple[float, ...]  # of each victim in sight the best of its restarts; of training one number
    victims: int  # of the whole work; 0 where it has none, as in training
    running: int  # victims that are still worked on
    shown: tuple[int, ...] = ()  # the victims of `images`, counted from 0
    images: Tensor | None = None  # (len(shown), C, H, W) in [0, 1]: the best so far of each one's first record


Original = Callable[
    [int], "Tensor"
]  # of a victim, counted from 0, its records (B, C, H, W) or (B, C, D, H, W) in [0, 1]
Ahead = Sequence[tuple[Work, float]]  # pieces of work in their order, each with how heavy it is beside the others
See = Callable[[Callable[[], Sight]], None]  # gets what makes the sight, and calls it only if it wants to look


@dataclass(frozen=True)
class Monitor:
    """Where progress goes, and when the current piece of work must end."""

    show: Callable[[Work, int, int], None] = lambda work, done, total: None  # a total of 0 announces a piece of work
    deadline: float | None = None  # seconds on `time.monotonic`
    started: float | None = None  # when the time budget began, likewise; None: with the audit
    see: See | None = None  # None: nobody looks, and `observe` does nothing
    kept: Callable[[AuditResult], None] = lambda result: None  # the result so far, after every finished piece
    stage: Callable[[str], None] = lambda name: None  # what is done now that no loop counts
    # How to see the records that the pictures in sight are to become. It goes one way: from the audit, which knows
    # them and says whether they may be shown, past the attack, to whoever watches.
    originals: Callable[[Original], None] = lambda original: None
    ahead: Callable[[Ahead, int], None] = lambda pieces, lanes: None  # what is still to come, and how many are at it


@dataclass
class Course:
    """How far a piece of work came: for whoever must know whether what came out of it is worth anything."""

    least: float = 1.0  # of its loops that the time ended, the least share of steps that one made
    untuned: bool = False  # whether it ran at default settings, for its tuning did not end in time


_course: ContextVar[Course | None] = ContextVar("course", default=None)
_late: ContextVar[tuple[list[bool], ...]] = ContextVar("late", default=())
_monitor: ContextVar[Monitor] = ContextVar("monitor", default=Monitor())  # noqa: B039 - a frozen dataclass


@contextmanager
def monitored(monitor: Monitor) -> Iterator[None]:
    """Install a monitor for the enclosed work."""
    token = _monitor.set(monitor)
    try:
        yield
    finally:
        _monitor.reset(token)


@contextmanager
def while_tuning() -> Iterator[None]:
    """Say of the enclosed loops that they tune an attack. They get at most half of the time that is left for it."""
    outer = _monitor.get()
    deadline, now = outer.deadline, time.monotonic()
    half = None if deadline is None else now + (deadline - now) / 2
    inner = replace(
        outer,
        show=lambda work, i, n: outer.show(replace(work, tuning=True), i, n),
        stage=lambda name: outer.stage(str(Work(name, tuning=True))),
        deadline=half,
    )
    with monitored(inner), followed():
        yield


@contextmanager
def followed() -> Iterator[Course]:
    """Note how far the enclosed work comes."""
    course = Course()
    token = _course.set(course)
    try:
        yield course
    finally:
        _course.reset(token)


def note_untuned() -> None:
    """Note that the work runs at default settings, for its tuning did not end in time."""
    course = _course.get()
    if course is not None:
        course.untuned = True


def current() -> Monitor:
    """Return the installed monitor, so that a nested one can tighten its deadline."""
    return _monitor.get()


def together(*monitors: Monitor) -> Monitor:
    """Return a monitor that tells each of these the same; the deadline is the first one's."""
    looking = [m.see for m in monitors if m.see is not None]

    def show(work: Work, done: int, total: int) -> None:
        for m in monitors:
            m.show(work, done, total)

    def see(make: Callable[[], Sight]) -> None:
        for look in looking:
            look(make)

    def kept(result: AuditResult) -> None:
        for m in monitors:
            m.kept(result)

    def stage(name: str) -> None:
        for m in monitors:
            m.stage(name)

    def originals(original: Original) -> None:
        for m in monitors:
            m.originals(original)

    def ahead(pieces: Ahead, lanes: int) -> None:
        for m in monitors:
            m.ahead(pieces, lanes)

    deadline = monitors[0].deadline if monitors else None
    started = monitors[0].started if monitors else None
    looked = see if looking else None
    return Monitor(show, deadline, started, looked, kept, stage, originals, ahead)


def harmless(call: Callable[P, None]) -> Callable[P, None]:
    """Return `call` as one that never raises an Exception: after the first it does nothing any more.

    A terminal that went away or a full disk must not become the failure of the attack that was being watched.
    """
    broken = False

    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        nonlocal broken
        if broken:
            return
        try:
            call(*args, **kwargs)
        except Exception:
            broken = True

    return guarded


def paced(see: Callable[[Sight], None], every: float) -> See:
    """Return a listener that looks at most once in `every` seconds."""
    last = -every

    def look(make: Callable[[], Sight]) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= every:
            last = now
            see(make())

    return look


def stage(name: str) -> None:
    """Say what is done from now on, until a loop or a piece of work begins, or the next such name."""
    _monitor.get().stage(name)


def expired() -> bool:
    """Return whether the time budget of the current piece of work is spent."""
    deadline = _monitor.get().deadline
    late = deadline is not None and time.monotonic() >= deadline
    if late:
        note_passing()
    return late


def note_passing() -> None:
    """Note that what comes of the enclosing work holds for this run alone, as what its time ended does."""
    for noted in _late.get():
        noted.append(True)


@contextmanager
def timed() -> Iterator[list[bool]]:
    """Note whether the enclosed work was told that its time is up: the list is empty where it was not."""
    late: list[bool] = []
    token = _late.set((*_late.get(), late))
    try:
        yield late
    finally:
        _late.reset(token)


def track(label: str, total: int) -> Iterator[int]:
    """Yield 0 … total−1, showing progress; stops early when the budget is spent (the caller sees fewer steps)."""
    work = Work(label)
    for i in range(total):
        ends.check()
        if expired():
            course = _course.get()
            if course is not None:
                course.least = min(course.least, i / total)
            return
        _monitor.get().show(work, i, total)
        yield i
    _monitor.get().show(work, total, total)


def observe(
    losses: Tensor,
    images: Tensor | None = None,
    victims: Tensor | None = None,
    running: Tensor | None = None,
    of: int | None = None,
) -> None:
    """Let whoever listens see the work as it is now; does nothing where nobody does.

    `losses` (T,) of the trials, or () or (B,) of a training step; `images` (T, B, C, H, W) or (T, C, H, W), the best so
    far; `victims` (T,) whose trial each is, by default trial t is victim t's; `running` the trials (n,) still worked
    on, by default all; `of` how many victims there are, where they are not all here. Training gives `losses` alone.
    """
    see = _monitor.get().see
    if see is not None:
        see(lambda: _sight(losses, images, victims, running, of))


def _sight(
    losses: Tensor, images: Tensor | None, victims: Tensor | None, running: Tensor | None, of: int | None
) -> Sight:
    values: list[float] = losses.detach().flatten().tolist()
    if images is None and victims is None:
        return Sight(losses=(sum(values) / max(1, len(values)),), victims=0, running=0)
    owners: list[int] = list(range(len(values))) if victims is None else victims.tolist()
    best: dict[int, int] = {}
    for trial, owner in enumerate(owners):  # the first of equals, as the attack itself chooses
        if owner not in best or values[trial] < values[best[owner]]:
            best[owner] = trial
    going = set(owners) if running is None else {owners[t] for t in running.tolist()}
    shown, pictures = tuple(best)[:SHOWN], None
    if images is not None:
        chosen = images.detach()[[best[v] for v in shown]]
        pictures = chosen.reshape(len(shown), -1, *images.shape[-3:])[:, 0].float().clamp(0, 1).cpu().clone()
    return Sight(
        losses=tuple(values[t] for t in best.values()),
        victims=max(of or 0, max(best, default=-1) + 1),
        running=len(going),
        shown=shown if images is not None else (),
        images=pictures,
    )
