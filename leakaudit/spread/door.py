"""How participants on other machines come to a shelf that only one machine sees: a door there, and who knocks at it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from leakaudit.errors import UserError, first_line
from leakaudit.spread.job import Job, read
from leakaudit.spread.participant import take_part
from leakaudit.units.desk import nobody
from leakaudit.units.shelf import JOBS, Claim, Shelf

SIGN = "ray-"  # how the names of those begin who come through a door
BEAT = 1.0  # seconds between two signs of life
SILENCE = 10.0  # seconds without one after which a participant is taken for dead
STARTS = 5  # times that a participant may be begun anew without having finished a piece


class Door:
    """An actor on the machine that sees the shelf. Claims are in the main process's name here; the dead's are freed.

    Nothing that it knows must outlive it: one that is begun anew takes everybody for alive, for a while.
    """

    def __init__(self, folder: str, job: str, host: str, pid: int) -> None:
        self.shelf, self.job = Shelf(Path(folder)), Path(folder) / JOBS / f"{job}.json"
        self.host, self.pid = host, pid  # whose death ends all claims that are made here
        self.began = time.monotonic()
        self.seen: dict[str, float] = {}  # by name, when a participant last gave a sign of life
        self.places: dict[int, str] = {}  # by number, the participant that was begun last
        self.starts: dict[str | int, int] = {}  # by number, how often without a piece since
        self.freed: list[str] = []  # works that the dead left, and nobody has been told of
        self.closed = False
        self.lock = threading.Lock()

    def again(self) -> Job | None:
        """Return the scan's job as it is now; None where it is over."""
        return read(self.job)

    def begin(self, place: int, who: str) -> bool:
        """Let a participant in, in place of the one before it, who is dead; False where that happens for ever."""
        before, self.places[place] = self.places.get(place), who
        if before is not None:
            self._free(lambda name: name == before)
        self.seen[who] = time.monotonic()
        self.starts[place] = self.starts.get(place, 0) + 1
        return not self.closed and self.starts[place] <= STARTS

    def alive(self, who: str) -> None:
        """Note that a participant is alive."""
        self.seen[who] = time.monotonic()

    def sweep(self) -> list[str]:
        """Free what silent participants were at; return what was freed since this was asked last."""
        late = time.monotonic() - SILENCE
        self._free(lambda name: self.seen.get(name, self.began) < late)
        freed, self.freed = self.freed, []
        return freed

    def close(self) -> None:
        """Let nothing in any more, and free what participants were at."""
        with self.lock:  # whatever is being written is written
            self.closed = True
        self._free(lambda name: True)

    def get(self, key: str, private: bool) -> bytes | None:
        """Return an outcome, as a shelf does."""
        return self.shelf.get(key, private)

    def has(self, key: str, private: bool) -> bool:
        """Whether there is an outcome, as a shelf says."""
        return self.shelf.has(key, private)

    def put(self, key: str, data: bytes, private: bool, who: str) -> str:
        """Keep an outcome; return why that cannot be."""
        with self.lock:
            if self.closed:
                return "the scan has ended."
            try:
                self.shelf.put(key, data, private)
            except UserError as error:
                return str(error)
        for place, name in self.places.items():
            if name == who:
                self.starts[place] = 0
        return ""

    def claim(self, key: str, claim: Claim) -> bool:
        """Say that a participant is at a piece of work, as on a shelf."""
        return not self.closed and self.shelf.claim(key, replace(claim, host=self.host, pid=self.pid))

    def beat(self, key: str) -> None:
        """Say that somebody is still at a piece of work: for whoever sees the same shelf from another machine."""
        self.shelf.beat(key)

    def release(self, key: str, who: str) -> None:
        """Give a claim back, as on a shelf."""
        self.shelf.release(key, who)

    def claims(self, among: Collection[str] | None = None) -> dict[str, Claim]:
        """Return who is at which piece of work now, as a shelf does."""
        return self.shelf.claims(among)

    def _free(self, dead: Callable[[str], bool]) -> None:
        for key, claim in self.shelf.claims().items():
            if claim.who.startswith(SIGN) and (claim.host, claim.pid) == (self.host, self.pid) and dead(claim.who):
                self.shelf.release(key, claim.who)
                self.freed.append(claim.work)


@dataclass(frozen=True)
class Visitor:
    """A shelf, seen from another machine: a `Store`. What is called waits for its answer."""

    door: Any  # the handle of the actor
    who: str

    def get(self, key: str, private: bool) -> bytes | None:
        """Return an outcome."""
        found: bytes | None = _answer(self.door.get.remote(key, private))
        return found

    def has(self, key: str, private: bool) -> bool:
        """Whether there is an outcome."""
        return bool(_answer(self.door.has.remote(key, private)))

    def put(self, key: str, data: bytes, private: bool) -> None:
        """Keep an outcome; raises UserError where that cannot be."""
        trouble = _answer(self.door.put.remote(key, data, private, self.who))
        if trouble:
            raise UserError(trouble)

    def drop(self, key: str) -> None:
        """Leave it: what is private is removed by whoever gathers."""

    def claim(self, key: str, claim: Claim) -> bool:
        """Say that this participant is at a piece of work."""
        return bool(_answer(self.door.claim.remote(key, claim)))

    def beat(self, key: str) -> None:
        """Say that it is still at it."""
        _answer(self.door.beat.remote(key))

    def release(self, key: str, who: str) -> None:
        """Give a claim back."""
        _answer(self.door.release.remote(key, who))

    def claims(self, among: Collection[str] | None = None) -> dict[str, Claim]:
        """Return who is at which piece of work now."""
        found: dict[str, Claim] = _answer(self.door.claims.remote(among))
        return found


def participate(door: Any, job: Job, place: int, cuda: bool) -> str:
    """Take part in a job in a task of Ray's; return why that came to nothing, empty where it did not.

    `place` is the participant's number, the same whenever its task is begun anew.
    """
    import ray

    if not cuda:  # a machine may have a GPU that this task was not given
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    node = ray.get_runtime_context().get_node_id()
    who = f"{SIGN}{place}-{node[:8]}-{nobody()}"
    if not _answer(door.begin.remote(place, who)):
        return f"its process ended {STARTS} times before a piece was finished"
    try:
        with _living(door, who):
            take_part(job, Visitor(door, who), who, again=lambda: _answer(door.again.remote()))
    except UserError as error:
        return str(error)
    except (Exception, SystemExit) as error:  # a user's file may raise anything
        return first_line(error)
    return ""


def _answer(asked: Any) -> Any:
    """Wait for what an actor answers. Within `ray.get` Ray lends a task's processor to the next one: it stays ours."""
    return asked.future().result()


@contextmanager
def _living(door: Any, who: str) -> Iterator[None]:
    """Give signs of life, whatever is computed and however long that takes."""
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(BEAT):
            with suppress(Exception):  # a door that is begun anew
                door.alive.remote(who)

    threading.Thread(target=beat, daemon=True).start()
    try:
        yield
    finally:
        stop.set()
