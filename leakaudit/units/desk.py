"""The desk that hands out pieces of work: what is known is taken from a shelf, what is not is computed and kept there.

Whoever audits installs a `Desk`; `done` below finds it. With none installed everything is computed, and nothing kept.
Several participants of one scan, in as many processes, each have a desk at the same shelf. Each runs the whole audit:
what another one is at raises `Elsewhere`, and the audit comes back to it later. All compute the same, so whoever
gathers the outcomes at the end has the same result as one who computed all of them alone.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from leakaudit.errors import UserError
from leakaudit.units.packing import Unreadable, header_of, packed, unkept, unpacked
from leakaudit.units.shelf import PART, PRIVATE, Claim, host
from leakaudit.units.unit import Elsewhere, Unit
from leakaudit.work import ends
from leakaudit.work.progress import current as current_monitor
from leakaudit.work.progress import timed

T = TypeVar("T")
BEAT = 5.0  # seconds between two signs of life
LOOK = 0.3  # seconds between two looks for what another participant is at


class Store(Protocol):
    """Where outcomes and claims are: a `Shelf`, or whatever leads to one."""

    def get(self, key: str, private: bool) -> bytes | None:
        """Return an outcome, None where there is none."""
        ...

    def has(self, key: str, private: bool) -> bool:
        """Whether there is an outcome, without reading it."""
        ...

    def put(self, key: str, data: bytes, private: bool) -> None:
        """Keep an outcome; raises UserError where that cannot be."""
        ...

    def drop(self, key: str) -> None:
        """Remove a private outcome."""
        ...

    def claim(self, key: str, claim: Claim) -> bool:
        """Say that somebody is at a piece of work from now on; False where somebody else is."""
        ...

    def beat(self, key: str) -> None:
        """Say that whoever claimed a piece of work is still at it."""
        ...

    def release(self, key: str, who: str) -> None:
        """Give a claim back."""
        ...

    def claims(self, among: Collection[str] | None = None) -> dict[str, Claim]:
        """Return who is at which piece of work now, by its key; `among` are the keys that are asked about."""
        ...


def nobody() -> str:
    """Return a name that no participant and no run of a scan had before."""
    return secrets.token_hex(8)


@dataclass
class Desk:
    """Where one participant takes outcomes from and leaves them.

    `attempt` names the run of the scan, the same for all of its participants. `fresh`: nothing that another run
    computed is taken up. `keeps`: private outcomes stay when the scan ends.
    """

    store: Store
    attempt: str = field(default_factory=nobody)
    fresh: bool = False
    keeps: bool = False
    idle: bool = False  # it computes no pieces itself: it waits for what others leave
    lanes: int = 1  # participants in all
    gathers: bool = True  # it is the one who puts the outcomes together
    finished: bool = False  # the result is there
    noticed: Callable[[Mapping[str, str]], None] = lambda facts: None  # told what is audited, when that is known
    # Asked while it waits, with the seconds that nobody has been at work: says what for; may raise UserError.
    attended: Callable[[float], str] = lambda alone: "waiting for somebody to take part"
    say: Callable[[str], None] = lambda told: None  # tells the user what becomes of those who take part
    lost: str = ""  # why nobody is left who computes
    who: str = field(default_factory=nobody)
    known: dict[str, Any] = field(default_factory=dict)  # outcomes by key, as they were read or computed
    took: dict[str, float] = field(default_factory=dict)  # seconds by what is shown of the work, wherever it was done
    found: set[str] = field(default_factory=set)  # keys that another run had computed
    computed: set[str] = field(default_factory=set)  # keys computed here
    private: set[str] = field(default_factory=set)  # keys of private outcomes that were met
    late: set[str] = field(default_factory=set)  # keys of what the time budget ended early in this run
    anew: bool = False  # whether that is computed again
    unkept: set[str] = field(default_factory=set)  # keys whose outcomes cannot be written: everybody makes his own
    missing: dict[str, bool] = field(default_factory=dict)  # keys that others are at, and whether those are private
    held: list[str] = field(default_factory=list)  # keys that are claimed here, the outermost first
    trouble: str = ""  # why something could not be kept
    told: Callable[[str, float], None] = lambda work, seconds: None  # of what was computed here, and how long it took
    _stop: threading.Event | None = None

    def done(self, unit: Unit, kind: type[T], compute: Callable[[], T], *, wait: bool, begin: bool) -> T:
        """Return the outcome of a unit, see `done` below."""
        key = unit.key
        while not (found := self._look(unit, kind)):
            if not begin:
                return compute()
            if self.held or key in self.unkept:
                return self._computed(unit, kind, compute)
            if (wait or not self.idle) and self.store.claim(key, Claim(self.who, host(), os.getpid(), unit.work)):
                return self._computed(unit, kind, compute)
            if not wait:
                self.missing[key] = unit.private
                raise Elsewhere(unit.work)
            ends.check()
            time.sleep(LOOK)
        outcome: T = found[0]
        return outcome

    def _computed(self, unit: Unit, kind: type[T], compute: Callable[[], T]) -> T:
        key = unit.key
        self.held.append(key)
        try:
            with self._beating():
                if len(self.held) == 1 and (found := self._look(unit, kind)):  # finished between a look and the claim
                    known: T = found[0]
                    return known
                begun = time.monotonic()
                with timed() as late:
                    outcome = compute()
                self.took[unit.work] = seconds = time.monotonic() - begun
                self.computed.add(key)
                (self.late.add if late else self.late.discard)(key)
                if late and len(self.held) > 1:  # a part of what time ended early: that is done again
                    return outcome
                if not self._kept(unit, outcome, seconds, bool(late)) or not unit.private:
                    self.known[key] = outcome  # what is private may be large
                if len(self.held) == 1:
                    self.told(unit.work, seconds)
            return outcome
        finally:
            self.held.pop()
            if not self.held:
                self.store.release(key, self.who)

    def _look(self, unit: Unit, kind: type[Any]) -> tuple[Any, ...]:
        """Return the outcome of a unit, as the one element of a tuple; an empty one where it is not known."""
        key = unit.key
        if unit.private:
            self.private.add(key)
        if self.anew and key in self.late:
            return ()
        if key in self.known:
            return (self.known[key],)
        data = self.store.get(key, unit.private)
        if data is None:
            return ()
        try:
            header, body = header_of(data, key)
            if header.attempt != self.attempt and (self.fresh or header.late or header.unkept):
                return ()
            if header.unkept:
                self.unkept.add(key)
                return ()
            outcome = unpacked(body, kind)
        except Unreadable:
            return ()
        if header.late:
            self.late.add(key)
            if self.anew:
                return ()
        self.took[unit.work] = header.seconds
        if not unit.private:
            self.known[key] = outcome
        if header.attempt != self.attempt:
            self.found.add(key)
        return (outcome,)

    def _kept(self, unit: Unit, outcome: object, seconds: float, late: bool) -> bool:
        try:
            data = packed(unit, outcome, seconds=seconds, attempt=self.attempt, late=late)
        except Exception:  # an object of somebody's own that cannot be written
            data = unkept(unit, self.attempt)
            self.unkept.add(unit.key)
        try:
            self.store.put(unit.key, data, unit.private)
        except UserError as error:  # a full disk: the work goes on, and what cannot be kept is computed again
            self.trouble = self.trouble or str(error)
            return False
        return unit.key not in self.unkept

    def has(self, unit: Unit, whole: bool) -> bool:
        """Return whether the outcome of a unit would be taken up now; it is not read."""
        if unit.key in self.known:
            return not (whole and unit.key in self.late)
        data = self.store.get(unit.key, unit.private)
        try:
            header = None if data is None else header_of(data, unit.key)[0]
        except Unreadable:
            return False
        if header is None or header.unkept:
            return False
        own = header.attempt == self.attempt
        return not (header.late and (whole or not own)) and (own or not self.fresh)

    @contextmanager
    def _beating(self) -> Iterator[None]:
        """Show signs of life while something is computed, however long that takes."""
        if self._stop is not None:
            yield
            return
        self._stop = stop = threading.Event()

        def beat() -> None:
            while not stop.wait(BEAT):
                for key in self.held[:1]:
                    with suppress(Exception):  # a store that is away for a moment
                        self.store.beat(key)

        threading.Thread(target=beat, daemon=True).start()
        try:
            yield
        finally:
            stop.set()
            self._stop = None

    def close(self) -> None:
        """Remove what is private of a scan that ended, unless it is to stay."""
        for key in () if self.keeps else sorted(self.private):
            self.store.drop(key)


_desk: ContextVar[Desk | None] = ContextVar("desk", default=None)


@contextmanager
def at(desk: Desk | None) -> Iterator[Desk | None]:
    """Install a desk for the enclosed work; None: nothing is taken up or kept within."""
    token = _desk.set(desk)
    try:
        yield desk
    finally:
        _desk.reset(token)


def current() -> Desk | None:
    """Return the desk that is installed."""
    return _desk.get()


def done(unit: Unit | None, kind: type[T], compute: Callable[[], T], *, wait: bool = False, begin: bool = True) -> T:
    """Return the outcome of a unit, an object of the class `kind`: as it is known, else computed now and kept.

    Raises `Elsewhere` where another participant is at it, unless this is to `wait`. With `begin` False what is not
    known is computed and not kept: there is a reason not to begin it. Within a unit others are no one else's business.
    What the time budget ended early holds for this run of the scan alone. None as `unit`: it has no name, and is
    computed.
    """
    desk = _desk.get()
    if desk is None or unit is None:
        return compute()
    return desk.done(unit, kind, compute, wait=wait, begin=begin)


def is_known(unit: Unit | None, *, whole: bool = False) -> bool:
    """Return whether the outcome of a unit is there; where the `whole` is asked for, not if time ended it early."""
    desk = _desk.get()
    return desk is not None and unit is not None and desk.has(unit, whole)


@contextmanager
def anew() -> Iterator[None]:
    """Compute within what the time budget ended early once more: this is its second try."""
    desk = _desk.get()
    if desk is None:
        yield
        return
    desk.anew = True
    try:
        yield
    finally:
        desk.anew = False


def is_main() -> bool:
    """Return whether this participant puts the outcomes together, as one alone does."""
    desk = _desk.get()
    return desk is None or desk.gathers


def place_beside(unit: Unit) -> Path | None:
    """Return a file for the finished stages of a unit at work; None where there is no folder for it.

    In a run that computes all anew it is that run's own.
    """
    desk = _desk.get()
    folder: Path | None = getattr(desk.store, "folder", None) if desk is not None else None
    if desk is None or folder is None:
        return None
    name = f"{unit.key}.{desk.attempt}{PART}" if desk.fresh else f"{unit.key}{PART}"
    return folder / PRIVATE / unit.key[:2] / name


def note(facts: Mapping[str, str]) -> None:
    """Tell whoever installed the desk what is audited: the first time, which is that of the scan itself."""
    desk = _desk.get()
    if desk is not None:
        desk.noticed, told = (lambda facts: None), desk.noticed
        told(facts)


def wait_for_others() -> None:
    """Wait until something that others were at is finished, or left; raises UserError where nobody can be at it."""
    desk = _desk.get()
    if desk is None:
        return
    missing, desk.missing = desk.missing, {}
    show, shown, since = current_monitor().stage, "", time.monotonic()
    while missing:
        if desk.lost:
            raise UserError(desk.lost)
        at_work = desk.store.claims(None if desk.idle else missing)
        found = any(desk.store.has(key, private) for key, private in missing.items())
        if found or not (desk.idle or missing.keys() <= at_work.keys()):
            time.sleep(LOOK)  # what is there and cannot be read must not be looked for without a pause
            return
        works = sorted({claim.work for claim in at_work.values()})
        since = time.monotonic() if works else since
        told = desk.attended(time.monotonic() - since)
        told = f"waiting for {', '.join(works)}" if works else told
        if told != shown:  # its clock goes on
            show(told)
        shown = told
        ends.check()
        time.sleep(LOOK)
