"""How the pieces of a scan are kept, taken up and shared out: what the command line asks for, made a desk."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from leakaudit.errors import Setting, Unfinished, Untouched, UserError
from leakaudit.spread.glance import place
from leakaudit.spread.job import Job, Request, differing, finish, job_of, known, read, unfinished, write
from leakaudit.spread.waiting import Waiting
from leakaudit.units import desk
from leakaudit.units.desk import Desk, nobody
from leakaudit.units.shelf import JOBS, PRIVATE, Shelf, host, lives, opened, usual
from leakaudit.work import freememory

# By name, the modules whose `started(shelf, job, workers)` starts participants; the main one's desk is installed then.
# `check`, where there is one, raises Untouched for a request that it cannot serve. Where others compute all, functions
# `begun`, `waiting` and `left` of shelf and job say what somebody must know who waits for them.
EXECUTORS: Mapping[str, str] = {
    "local": "leakaudit.spread.local",
    "folder": "leakaudit.spread.folder",
    "slurm": "leakaudit.spread.slurm",
    "ray": "leakaudit.spread.ray",
}
MOST = 100  # attempts at a scan that are known by name
FORGOTTEN = 7 * 86_400.0  # seconds after which private outcomes of scans that nobody went on with are removed


@dataclass
class Among:
    """Several scans of one command: what one of them computed is known to the next, even where all is `fresh`."""

    attempt: str = field(default_factory=nobody)
    private: set[str] = field(default_factory=set)  # keys of private outcomes, which are removed after the last scan
    attempts: set[str] = field(default_factory=set)  # by which private outcomes were left, those are removed as well
    interrupted: bool = False  # before the last one: they stay, so that the same scans go on


@dataclass(frozen=True)
class Sharing:
    """What a command asks for: where outcomes are kept, what is taken up, and who takes part."""

    cache: Path | None = None  # None: the usual one
    workers: int = 1
    executor: str = "local"
    fresh: bool = False
    resume: bool = False
    keeps: bool = False  # private outcomes, when the scan ends
    among: Among | None = None  # the scans of which this is one

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise UserError(Setting("workers"), " must be at least 1.")
        if self.executor not in EXECUTORS:
            raise UserError(Setting("executor"), f" must be one of {', '.join(EXECUTORS)}.")
        if self.fresh and self.resume:
            raise UserError(Setting("fresh"), " and ", Setting("resume"), " exclude each other: give one.")


@contextmanager
def sharing(asked: Sharing, request: Request, say: Callable[[str], None]) -> Iterator[Desk | None]:
    """Install a desk for a scan, and start whoever takes part in it; what they leave stays for the next one.

    `say` is told where a scan goes on that was not finished. When the scan ends, what is private of it is removed, and
    its job with it; where an interrupt ends it, both stay. Raises UserError where the folder takes nothing, or
    there is nothing to resume.
    """
    shelf = _shelf(asked, say)
    if shelf is None:
        yield None
        return
    _forget(shelf)
    before = read(place(shelf, request.id))
    if asked.resume and before is None:
        raise Untouched(_nothing(shelf, request))
    module = importlib.import_module(EXECUTORS[asked.executor])
    refuses: Callable[[Request], None] = getattr(module, "check", lambda request: None)
    refuses(request)
    job = _job(asked, request, before)
    if before is not None and not asked.fresh:
        say(_going_on(before))
    own = Desk(shelf, attempt=job.attempt, fresh=job.fresh, keeps=asked.keeps, lanes=job.lanes)
    own.noticed = lambda facts: _noted(shelf, job, before, facts, asked, say)
    if asked.workers > 1 or asked.executor != "local":
        write(shelf, job)  # by which the others are told
    else:
        with suppress(UserError):  # a full disk: the scan goes on, and says at its end that it could not keep all
            write(shelf, job)
    others = Waiting(shelf, job, module, say)
    own.attended, own.say = others.look, say
    try:
        with freememory.shared(job.beside), desk.at(own), others.started(asked.workers) as takes_part:
            own.idle = not takes_part
            yield own
    except KeyboardInterrupt:
        others.tell("left")
        raise
    except (Untouched, Unfinished):
        raise
    except UserError:  # it cannot be audited as it was asked for: nobody goes on with it, but with what was before
        if before is None:
            finish(shelf, job)
        else:
            with suppress(UserError):
                write(shelf, before)
        raise
    others.said()
    if own.finished:
        _end(shelf, job, asked, own)
    else:
        others.tell("left")


def _job(asked: Sharing, request: Request, before: Job | None) -> Job:
    """Return the job of a scan that begins now, or goes on with one that did not come to its end."""
    beside = asked.workers if asked.executor == "local" else 1
    job = replace(job_of(request, fresh=asked.fresh), beside=beside, lanes=asked.workers, began=time.time())
    if asked.fresh and asked.among is not None:
        job = replace(job, attempt=asked.among.attempt)
    if before is None:
        return job
    job = replace(job, earlier=tuple(dict.fromkeys((*before.earlier, before.attempt)))[-MOST:])
    if before.fresh and not asked.fresh:  # what it computed anew stays what counts
        job = replace(job, attempt=before.attempt, fresh=True)
    return job


def _going_on(before: Job) -> str:
    if before.host == host() and before.pid != os.getpid() and lives(before.pid):
        return f"taking part in a scan that runs already (process {before.pid})"
    began = datetime.fromtimestamp(before.began, UTC).astimezone()
    return f"going on with the scan that was begun on {began:%Y-%m-%d at %H:%M} and not finished"


def _end(shelf: Shelf, job: Job, asked: Sharing, own: Desk) -> None:
    """Remove the job of a scan that is finished, and what is private of it, but for scans that follow."""
    finish(shelf, job)  # first: who sees that it is over removes his own
    attempts = {job.attempt, *job.earlier}  # an earlier one left what this one did not ask for any more
    if asked.among is not None:
        asked.among.private.update(own.private)
        asked.among.attempts.update(attempts)
    elif not asked.keeps:
        own.close()
        shelf.drop_of(attempts)


@contextmanager
def together(asked: Sharing) -> Iterator[Sharing]:
    """Yield what is asked for of each of several scans, one after another; at the end what is private is removed."""
    among = Among()
    yield replace(asked, among=among)
    if asked.keeps or among.interrupted or not among.attempts:
        return
    shelf = _shelf(asked, lambda told: None)
    if shelf is not None:
        for key in sorted(among.private):
            shelf.drop(key)
        shelf.drop_of(among.attempts)


def _shelf(asked: Sharing, say: Callable[[str], None]) -> Shelf | None:
    if asked.cache is not None:
        return opened(asked.cache)
    try:
        return opened(usual())
    except UserError as error:
        if asked.resume or asked.workers > 1 or asked.executor != "local":
            raise
        say(f"nothing is kept for a later scan: {error}")
        return None


def _noted(
    shelf: Shelf,
    job: Job,
    before: Job | None,
    facts: Mapping[str, str],
    asked: Sharing,
    say: Callable[[str], None],
) -> None:
    """Write down what is audited; say, or refuse, where an unfinished scan audited something else."""
    if before is not None and before.facts and not asked.fresh:
        other = [name for name in facts if before.facts.get(name) != facts[name]]
        if other and asked.resume:
            with suppress(UserError):
                write(shelf, before)
            raise Untouched(
                f"there is nothing to resume: the scan that was not finished had another {other[0]}; leave out ",
                Setting("resume"),
                " to begin anew.",
            )
        if other:
            say(f"the scan that was not finished had another {other[0]}: what depends on that is computed anew")
    with suppress(UserError):
        write(shelf, known(job, facts))


def _nothing(shelf: Shelf, request: Request) -> str:
    """Say why there is nothing to resume, by the latest unfinished scan of the same target."""
    alike = [job for job in unfinished(shelf) if job.request.target == request.target]
    told = differing(request, alike[-1].request) if alike else ""
    other = f"; one of {request.target} that is not finished had {told}" if told else ""
    return f"there is no unfinished scan of these settings in {shelf.folder}{other}: leave out --resume to begin one."


def _forget(shelf: Shelf) -> None:
    """Remove private outcomes that nobody came back for, and what stands beside jobs that are finished."""
    with suppress(OSError):
        for path in (shelf.folder / JOBS).iterdir():
            if not place(shelf, path.name.partition(".")[0]).exists() and _age(path) > FORGOTTEN:
                path.unlink(missing_ok=True)
    for path in (shelf.folder / PRIVATE).glob("*/*"):
        with suppress(OSError):
            if _age(path) > FORGOTTEN:
                path.unlink()


def _age(path: Path) -> float:
    return time.time() - path.stat().st_mtime
