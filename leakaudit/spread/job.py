"""A scan as a file: all that a participant on another machine needs to take part in it, and to go on with it later."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from leakaudit.captured.scanning import asked, targeted
from leakaudit.files.writing import write_atomically
from leakaudit.load.loading import load_target
from leakaudit.scene.plan import Plan
from leakaudit.spread.glance import glance, glances, place, read_as
from leakaudit.units.desk import nobody
from leakaudit.units.shelf import JOBS, Shelf, host
from leakaudit.version import __version__

if TYPE_CHECKING:
    from leakaudit.protocol.target import Target


@dataclass(frozen=True)
class Request:
    """What is to be audited, as it was asked for. Paths are as they were given, from the job's folder."""

    target: str
    plan: Plan
    data: str | None = None
    update: str | None = None
    checkpoint: str | None = None
    device: str = "auto"
    lpips_weights: str | None = None

    def load(self) -> tuple[Target, Plan]:
        """Return the target, read anew, and the plan for it; raises UserError as a scan does."""
        data, plan, capture = self.data and Path(self.data), self.plan, None
        if self.update is not None:
            capture = asked(Path(self.update), data or None, plan)
            plan, data = capture.plan, None
        found = load_target(
            self.target,
            data=data or None,
            checkpoint=Path(self.checkpoint) if self.checkpoint else None,
            device=self.device,
            seed=plan.seed,
        )
        return (found if capture is None else targeted(capture, found)), plan

    @property
    def id(self) -> str:
        """Return a name that the same request has again."""
        text = json.dumps(asdict(self) | {"cwd": os.getcwd()}, sort_keys=True, default=str)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True)
class Job:
    """A scan that is not finished."""

    id: str
    request: Request
    cwd: str
    threads: int  # of every participant, on a processor
    attempt: str = field(default_factory=nobody)
    earlier: tuple[str, ...] = ()  # attempts that did not come to their end
    fresh: bool = False
    began: float = field(default_factory=time.time)  # seconds since 1970
    host: str = field(default_factory=host)
    pid: int = field(default_factory=os.getpid)
    beside: int = 1  # participants on one machine, who share its memory
    lanes: int = 1  # participants in all
    facts: Mapping[str, str] = field(default_factory=dict)  # hashes of what is audited, once they are known
    version: str = __version__  # of leakaudit


def job_of(request: Request, *, fresh: bool = False) -> Job:
    """Return a job that begins now, here."""
    return Job(request.id, request, os.getcwd(), torch.get_num_threads(), fresh=fresh)


def write(shelf: Shelf, job: Job) -> None:
    """Write a job's file; raises UserError where that cannot be."""
    write_atomically(place(shelf, job.id), json.dumps(asdict(job), indent=1), private=True, follow=False)


def read(path: Path) -> Job | None:
    """Return the job in a file; None where there is none, or it is none of this user's or of this version's."""
    seen = glance(path)
    return None if seen is None or seen.refusal else read_as(path, Job)


def unfinished(shelf: Shelf) -> Iterator[Job]:
    """Yield the scans that are not finished, those that began first before the others."""
    found = (read(place(shelf, seen.id)) for seen in glances(shelf))
    yield from (job for job in found if job is not None)


def finish(shelf: Shelf, job: Job) -> None:
    """Remove a job's file and what stands beside it, if it is still this run's."""
    there = read(place(shelf, job.id))
    if there is not None and there.attempt == job.attempt:
        for path in (place(shelf, job.id), *(shelf.folder / JOBS).glob(f"{job.id}.*")):
            path.unlink(missing_ok=True)


def differing(one: Request, other: Request) -> str:
    """Return what two requests differ in first, with both values; empty where in nothing."""
    mine, theirs = ({**asdict(r), **asdict(r.plan)} for r in (one, other))
    for name in mine:
        if name != "plan" and mine[name] != theirs[name]:
            return f"{name} {theirs[name]}, not {mine[name]}"
    return ""


def known(job: Job, facts: Mapping[str, str]) -> Job:
    """Return a job with the hashes of what is audited."""
    return replace(job, facts=dict(facts))
