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

from leakaudit.errors import Setting, UserError
from leakaudit.spread.job import Job, Request, differing, finish, job_of, known, read, unfinished, write
from leakaudit.units import desk
from leakaudit.units.desk import Desk, nobody
from leakaudit.units.shelf import JOBS, PRIVATE, Shelf, host, lives, opened
from leakaudit.work import freememory

# By name, the modules whose `started(shelf, job, workers)` starts participants.
EXECUTORS: Mapping[str, str] = {
    "local": "leakaudit.spread.local",
    "folder": "leakaudit.spread.folder",
    "slurm": "leakaudit.spread.slurm",
    "ray": "leakaudit.spread.ray",
}
FORGOTTEN = 7 * 86_400.0  # seconds after which private outcomes of scans that nobody went on with are removed


@dataclass
class Among:
    """Several scans of one command: what one of them computed is known to the next, even where all is `fresh`."""

    attempt: str = field(default_factory=nobody)
    private: set[str] = field(default_factory=set)  # keys of private outcomes, which are removed after the last scan
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


def usual() -> Path:
    """Return the folder in which outcomes are kept where nobody names another."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "leakaudit"


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
    before = read(shelf.folder / JOBS / f"{request.id}.json")
    if asked.resume and before is None:
        raise UserError(_nothing(shelf, request))
    job = replace(job_of(request, fresh=asked.fresh), beside=asked.workers if asked.executor == "local" else 1)
    job = replace(job, lanes=asked.workers, began=time.time())
    if asked.fresh and asked.among is not None:
        job = replace(job, attempt=asked.among.attempt)
    if before is not None and before.fresh and not asked.fresh:  # what it computed anew stays what counts
        job = replace(job, attempt=before.attempt, fresh=True)
    if before is not None and not asked.fresh:
        began = datetime.fromtimestamp(before.began, UTC).astimezone()
        running = before.host == host() and before.pid != os.getpid() and lives(before.pid)
        say(
            f"taking part in a scan that runs already (process {before.pid})"
            if running
            else f"going on with the scan that was begun on {began:%Y-%m-%d at %H:%M} and not finished"
        )
    own = Desk(shelf, attempt=job.attempt, fresh=job.fresh, keeps=asked.keeps)
    own.noticed = lambda facts: _noted(shelf, job, before, facts, asked, say)
    if asked.workers > 1 or asked.executor != "local":
        write(shelf, job)  # by which the others are told
    else:
        with suppress(UserError):  # a full disk: the scan goes on, and says at its end that it could not keep all
            write(shelf, job)
    module = importlib.import_module(EXECUTORS[asked.executor])
    with freememory.shared(job.beside), module.started(shelf, job, asked.workers) as takes_part, desk.at(own):
        own.idle = not takes_part
        yield own
    if own.finished:
        if asked.among is None:
            own.close()
        else:
            asked.among.private.update(own.private)
        finish(shelf, job)


@contextmanager
def together(asked: Sharing) -> Iterator[Sharing]:
    """Yield what is asked for of each of several scans, one after another; at the end what is private is removed."""
    among = Among()
    yield replace(asked, among=among)
    if asked.keeps or among.interrupted or not among.private:
        return
    shelf = _shelf(asked, lambda told: None)
    if shelf is not None:
        for key in sorted(among.private):
            shelf.drop(key)


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
            raise UserError(
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
    """Remove private outcomes that nobody came back for."""
    for path in (shelf.folder / PRIVATE).glob("*/*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > FORGOTTEN:
                path.unlink()
