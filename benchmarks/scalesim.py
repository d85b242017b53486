"""A simulation of participants that share out pieces of scans through one folder, as `leakaudit worker` does.

A participant starts, goes to a scan, loads its target, and walks over its units in their order: what has an outcome or
is claimed it passes over, the first other one it claims and computes. Where there is none it goes on to another scan,
or waits and looks again. What an outcome would make needless (`unless`) is left out once that outcome is there; an
attack that may turn out so (`maybe`) comes last while another one on the same defense is not finished, and may be
computed in vain. The same arguments give the same run.
"""

from __future__ import annotations

import heapq
import math
import random
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

WINDOW = 10.0  # seconds over which operations on the folder are counted together
WORK, VAIN, AGAIN, LOST = "work", "in vain", "again", "lost"
START, LOAD, CLAIM, FITS, TAIL = "start", "load", "claims", "waiting", "tail"
# How participants go from scan to scan. "one": all to the first that is not complete, and stay until it is; "alone":
# each to the next that nobody is at, and stays; "drawn": each to one drawn at random, and stays; "turn": from the first
# on, and on where it has nothing for them; "taken": to the next that nobody is at, then in turn.
Order = Literal["one", "alone", "drawn", "turn", "taken"]
STAYS = ("one", "alone", "drawn")
CAUSES = (WORK, VAIN, AGAIN, LOST, START, LOAD, CLAIM, FITS, TAIL)  # of a participant's seconds


@dataclass(frozen=True)
class Unit:
    """One piece of a scan's work; two scans with the same key share its outcome."""

    key: str
    seconds: float
    needs: tuple[str, ...] = ()  # keys of outcomes without which it cannot begin
    unless: str = ""  # key of the outcome that makes it needless
    maybe: bool = False  # whether an outcome may make it needless, as far as anybody knows before
    held: str = ""  # what every participant that takes it computes for itself first, once for all that name it …
    first: float = 0.0  # … and the seconds of that


@dataclass(frozen=True)
class Scan:
    """The units of a scan in their order, and the seconds of loading its target and setting its scene."""

    units: tuple[Unit, ...]
    load: float = 0.0
    model: str = ""


@dataclass(frozen=True)
class Fixed:
    """Seconds of what is no unit."""

    start: float = 0.0  # of a process, with its imports
    claim: float = 0.0  # to claim a unit and to store its outcome
    poll: float = 1.0  # between two looks of a participant that found nothing
    stale: float = 60.0  # after which the claim of a participant that is gone is taken over
    assemble: float = 0.0  # of the main process for each scan that is complete: one after the other


@dataclass(frozen=True)
class Loss:
    """Participants that are gone from a moment on, with what they had claimed."""

    at: float
    workers: frozenset[int]


@dataclass(frozen=True)
class Run:
    """What came of a simulation."""

    makespan: float  # seconds until every scan is complete
    assembled: float  # until the main process has assembled all of them
    spent: dict[str, float]  # participants' seconds until then by cause: together, all that they were there
    claims: int
    looks: int  # at outcomes and claims
    busiest: float  # operations (looks, claims, stores) in a second, over the busiest seconds
    loads: int  # targets that were loaded

    @property
    def idle(self) -> float:
        """The share of all seconds in which nothing was computed that a single process would compute, too."""
        return 1 - self.spent[WORK] / max(1e-12, sum(self.spent.values()))


def bound(scans: Sequence[Scan], workers: int, fixed: Fixed = Fixed()) -> tuple[float, float]:
    """Return the seconds below which no order comes: all work shared evenly, and the longest chain of one scan."""
    work, ends = 0.0, dict[str, float]()
    seen: set[str] = set()
    longest = 0.0
    for scan in scans:
        for unit in scan.units:
            if unit.unless:
                continue
            if unit.key not in seen:
                work += unit.seconds + (0.0 if unit.held in seen else unit.first)
                seen |= {unit.key, unit.held} - {""}
            ends[unit.key] = max((ends[n] for n in unit.needs), default=0.0) + unit.first + unit.seconds + fixed.claim
            longest = max(longest, fixed.start + scan.load + ends[unit.key])
    return work / workers, longest


@dataclass
class _Worker:
    place: int  # the scan it is at, by number …
    loaded: bool = False  # … and whether it has loaded its target
    tried: int = 0  # scans in a row that had nothing for it
    held: str = ""
    seen: set[str] = field(default_factory=set)  # outcomes that it has read in this scan
    lost: str = ""  # the unit that it was at when it was lost
    slept: tuple[float, str, int] | None = None  # since when it waits, for what, and the files of each look


class _Simulation:
    """The state of a simulation, and what happens next."""

    def __init__(self, scans: Sequence[Scan], workers: int, fixed: Fixed, order: Order, loss: Loss) -> None:
        self.scans, self.fixed, self.way, self.loss = scans, fixed, order, loss
        self.workers = [_Worker(0) for _ in range(workers)]
        self.untaken = list(range(len(scans)))[::-1]  # where nobody has been, the first of them last
        self.draws = random.Random(0)
        self.used: dict[str, list[int]] = defaultdict(list)  # by key, the scans that it may complete
        for number, scan in enumerate(scans):
            for key in sorted({k for u in scan.units for k in (u.key, u.unless) if k}):
                self.used[key].append(number)
        self.needed = {key for scan in scans for unit in scan.units for key in unit.needs}
        self.open = list(range(len(scans)))  # not complete, in their order
        self.done: set[str] = set()
        self.claimed: set[str] = set()
        self.computed: set[str] = set()  # of what participants hold, by anybody
        self.spans: list[tuple[str, float, float, int]] = []  # cause, from, to, participant
        self.ends: list[float] = []  # of scans, as they are complete
        self.ticks: Counter[int] = Counter()  # operations by window
        self.claims = self.looks = self.loads = 0
        self.heap: list[tuple[float, int, int, str]] = []  # when, order, participant (-1 - who: is stale), its key
        self.order = 0

    def run(self) -> None:
        """Let everything happen."""
        for who in range(len(self.workers)):
            self.spend(who, START, 0.0, self.fixed.start)
            self.push(self.fixed.start, who)
        for who in sorted(self.loss.workers):
            self.push(self.loss.at + self.fixed.stale, -1 - who)
        while self.open:
            now, _, who, key = heapq.heappop(self.heap)
            if who < 0:  # what a lost one claimed is taken over
                self.claimed.discard(self.workers[-1 - who].lost)
                self.untaken.append(self.workers[-1 - who].place)
                self.wake(now)
                continue
            if key:
                self.finish(key, now)
            if self.open and now < self.left(who):
                self.step(who, now)

    def left(self, who: int) -> float:
        """Return when a participant is lost."""
        return self.loss.at if who in self.loss.workers else math.inf

    def push(self, when: float, who: int, key: str = "") -> None:
        """Note what happens when."""
        self.order += 1
        heapq.heappush(self.heap, (when, self.order, who, key))

    def spend(self, who: int, cause: str, since: float, until: float) -> float:
        """Note for what a participant's seconds go; return until when."""
        self.spans.append((cause, since, until, who))
        return until

    def free(self, number: int) -> Unit | None:
        """Return the unit of a scan that is to be begun next, if any can be."""
        busy: set[str] = set()
        spare = None
        for unit in self.scans[number].units:
            if {unit.key, unit.unless} & self.done or not all(need in self.done for need in unit.needs):
                continue
            if unit.key in self.claimed:
                busy.add(unit.held)
            elif unit.maybe and unit.held in busy:
                spare = spare or unit
            else:
                return unit
        return spare

    def step(self, who: int, now: float) -> None:
        """Let a participant that has nothing to do look for it: here, then in the next scan; else it waits."""
        worker = self.workers[who]
        if worker.loaded:
            unit = self.free(worker.place)
            self.look(worker, unit, now)
            if unit is not None:
                worker.tried = 0
                self.begin(who, unit, now)
                return
        stays = self.way in STAYS and worker.loaded and worker.place in self.open
        place = None if stays else self.following(worker)
        if place is None:
            blocked = any(self.blocked(number) for number in self.open)
            mine = sum(unit.key in self.claimed for unit in self.scans[worker.place].units)
            files = mine + 2 * len(self.claimed)  # each look: is it done, and of every claim whose it is, and how old
            ended = self.way == "alone" and worker.place not in self.open  # a process that looks at nothing any more
            worker.slept = now, FITS if blocked else TAIL, 0 if ended else files
            return
        scan = self.scans[place]
        worker.place, worker.loaded, worker.held, worker.seen = place, True, "", set()
        self.loads += 1
        self.push(self.spend(who, LOAD, now, now + scan.load), who)

    def following(self, worker: _Worker) -> int | None:
        """Return the next scan that is not complete; None where all were tried."""
        if self.way in ("one", "drawn"):
            return self.open[0] if self.way == "one" else self.draws.choice(self.open)
        while self.way in ("alone", "taken") and self.untaken:
            place = self.untaken.pop()
            if place in self.open:
                return place
        if self.way == "alone":
            return None
        first = bisect_left(self.open, worker.place + worker.loaded)
        for k in range(len(self.open) - worker.tried):
            worker.tried += 1
            place = self.open[(first + k) % len(self.open)]
            if not worker.loaded or place != worker.place:
                return place
        return None

    def blocked(self, number: int) -> bool:
        """Return whether something of a scan is still to be begun by anybody."""
        units = self.scans[number].units
        return any(not {u.key, u.unless} & self.done and u.key not in self.claimed for u in units)

    def look(self, worker: _Worker, until: Unit | None, now: float) -> None:
        """Count the files that are looked at on the way to a unit, or to the end of the scan."""
        looked = 0
        for unit in self.scans[worker.place].units:
            if unit.key not in worker.seen:
                looked += 1
                if unit.key in self.done:
                    worker.seen.add(unit.key)
            if unit is until:
                break
        self.looks += looked
        self.ticks[int(now // WINDOW)] += looked

    def begin(self, who: int, unit: Unit, now: float) -> None:
        """Let a participant claim a unit and compute it; if it is lost before the end, the claim gets stale."""
        worker = self.workers[who]
        again = bool(unit.held) and unit.held in self.computed
        first = 0.0 if unit.held == worker.held else unit.first
        end = now + self.fixed.claim + first + unit.seconds
        self.claims += 1
        self.claimed.add(unit.key)
        self.ticks[int(now // WINDOW)] += 2
        if end > self.left(who):
            self.spend(who, LOST, now, end)
            worker.lost = unit.key
            return
        if unit.held:
            worker.held = unit.held
            self.computed.add(unit.held)
        now = self.spend(who, CLAIM, now, now + self.fixed.claim)
        now = self.spend(who, AGAIN if again else WORK, now, now + first)
        self.push(self.spend(who, VAIN if unit.unless else WORK, now, now + unit.seconds), who, unit.key)

    def finish(self, key: str, now: float) -> None:
        """Store an outcome, which may complete scans and let others begin."""
        self.claimed.discard(key)
        self.done.add(key)
        complete = False
        for number in self.used[key]:
            at = bisect_left(self.open, number)
            if self.open[at : at + 1] == [number] and not any(
                not {u.key, u.unless} & self.done for u in self.scans[number].units
            ):
                self.open.pop(at)
                self.ends.append(now)
                complete = True
        if key in self.needed or (complete and self.way in STAYS):
            self.wake(now)

    def wake(self, now: float) -> None:
        """Let those who wait look again, each at its next look after now."""
        for who in range(len(self.workers)):
            if self.workers[who].slept is not None:
                self.push(self.slept(who, now), who)

    def slept(self, who: int, now: float) -> float:
        """End the wait of a participant, with all the files that it looked at; return when it looks next."""
        worker = self.workers[who]
        since, cause, files = worker.slept or (now, TAIL, 0)
        worker.slept, worker.tried = None, 0
        looks = math.ceil((now - since) / self.fixed.poll)
        first, last = (int(t // WINDOW) for t in (since, now))
        for window in range(first, last + 1):
            self.ticks[window] += looks * files // (last + 1 - first)
        self.looks += looks * files
        return self.spend(who, cause, since, max(now, since + looks * self.fixed.poll))


def simulate(
    scans: Sequence[Scan], workers: int, fixed: Fixed | None = None, order: Order = "taken", loss: Loss | None = None
) -> Run:
    """Return what comes of scans that so many participants share out."""
    fixed = fixed or Fixed()
    state = _Simulation(scans, workers, fixed, order, loss or Loss(math.inf, frozenset()))
    state.run()
    end = max(state.ends, default=0.0)
    for who, worker in enumerate(state.workers):
        if worker.slept is not None:
            state.slept(who, end)
    spent = dict.fromkeys(CAUSES, 0.0)
    for cause, since, until, who in state.spans:
        spent[cause] += max(0.0, min(until, end, state.left(who)) - since)
    there = sum(min(end, state.left(who)) for who in range(workers))
    spent[TAIL] += max(0.0, there - sum(spent.values()))  # of those who still wait when the last scan is complete
    main = 0.0
    for each in state.ends:
        main = max(main, each) + fixed.assemble
    busiest = max(state.ticks.values(), default=0) / WINDOW
    return Run(end, main, spent, state.claims, state.looks, busiest, state.loads)
