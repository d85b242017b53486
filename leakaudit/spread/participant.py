"""A participant: it audits what a job says, pass after pass, and leaves every outcome on the shelf for all others."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from leakaudit.audit.stages import audit_at_stages
from leakaudit.errors import UserError, quoting
from leakaudit.spread.job import Job
from leakaudit.units import desk
from leakaudit.units.desk import LOOK, Desk, Store
from leakaudit.work import ends
from leakaudit.work.freememory import shared
from leakaudit.work.progress import current, monitored

PATIENCE = 20.0  # seconds that whoever began a scan is given to say what it audits


def take_part(
    job: Job,
    store: Store,
    who: str | None = None,
    again: Callable[[], Job | None] | None = None,
    told: Callable[[str, float], None] = lambda work, seconds: None,
) -> Desk:
    """Audit what a job says until every piece of it is known; return the desk, which knows what was computed here.

    `told` hears of each piece that was, and of the seconds it took.

    Raises UserError where the target cannot be read or audited here, or is not what it is where the scan was begun;
    KeyboardInterrupt where an interrupt ended it. Either way nothing stays claimed. `who` is the participant's name.
    `again` reads the job again, None where the scan is over: then nobody else removes what is private of it, and that
    is done here.
    """
    torch.set_num_threads(job.threads)
    with suppress(OSError):  # on another machine the folder may be elsewhere: then paths are from the present one
        os.chdir(job.cwd)
    own = Desk(store, attempt=job.attempt, fresh=job.fresh, lanes=job.lanes, gathers=False, told=told)
    own.who = who or own.who
    own.noticed = lambda facts: _compare(facts, _facts(job, again))
    began = time.monotonic() - max(0.0, time.time() - job.began)
    try:
        with (
            quoting(job.request.plan.images == "full"),
            shared(job.beside),
            monitored(replace(current(), started=began)),
        ):
            target, plan = job.request.load()
            weights = job.request.lpips_weights
            with desk.at(own):
                result = audit_at_stages(target, plan, lpips_weights=Path(weights) if weights else None)
    finally:
        for key, claim in store.claims().items():  # an interrupt may come between any two lines
            if claim.who == own.who:
                store.release(key, own.who)
        if again is not None and again() is None:
            own.close()
    if not result.complete:
        raise KeyboardInterrupt
    return own


def _facts(job: Job, again: Callable[[], Job | None] | None) -> Mapping[str, str]:
    """Return what is audited where the scan was begun; that may not be known there yet."""
    until = time.monotonic() + PATIENCE
    while again is not None and not job.facts and time.monotonic() < until:
        job = again() or job
        ends.check()
        time.sleep(0 if job.facts else LOOK)
    return job.facts


def _compare(mine: Mapping[str, str], theirs: Mapping[str, str]) -> None:
    """Raise UserError where what is audited here is not what the scan audits: its outcomes would be of no use there."""
    for name, value in theirs.items():
        if mine.get(name) == value:
            continue
        if name == "versions":
            pairs = zip(mine.get(name, "").split(", "), value.split(", "), strict=False)
            one, other = next(((a, b) for a, b in pairs if a != b), (mine.get(name, ""), value))
            raise UserError(
                f"this machine has {one}, and where the scan was begun there is {other}: let both be alike "
                "(--device cpu leaves GPUs alone)."
            )
        raise UserError(f"the {name} here is not what it is where the scan was begun: let both see the same files.")
