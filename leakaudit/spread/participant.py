"""A participant: it audits what a job says, pass after pass, and leaves every outcome on the shelf for all others."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from leakaudit.audit.stages import audit_at_stages
from leakaudit.errors import quoting
from leakaudit.spread.job import Job
from leakaudit.units import desk
from leakaudit.units.desk import Desk, Store
from leakaudit.work.freememory import shared
from leakaudit.work.progress import current, monitored


def take_part(job: Job, store: Store, who: str | None = None) -> Desk:
    """Audit what a job says until every piece of it is known; return the desk, which knows what was computed here.

    Raises UserError where the target cannot be read or audited here. `who` is the participant's name.
    """
    torch.set_num_threads(job.threads)
    with suppress(OSError):  # on another machine the folder may be elsewhere: then paths are from the present one
        os.chdir(job.cwd)
    own = Desk(store, attempt=job.attempt, fresh=job.fresh, gathers=False)
    own.who = who or own.who
    began = time.monotonic() - max(0.0, time.time() - job.began)
    with quoting(job.request.plan.images == "full"), shared(job.beside), monitored(replace(current(), started=began)):
        target, plan = job.request.load()
        weights = job.request.lpips_weights
        with desk.at(own):
            audit_at_stages(target, plan, lpips_weights=Path(weights) if weights else None)
    return own
