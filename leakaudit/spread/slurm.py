"""Participants as the tasks of a Slurm array job: a script in the folder of jobs, submitted by `sbatch`.

Further options of a job (partition, account, time limit, memory) are those that `sbatch` reads by itself from
variables of the environment, SBATCH_PARTITION and the like.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from leakaudit.errors import Setting, Unfinished, Untouched
from leakaudit.files import own
from leakaudit.files.writing import write_atomically
from leakaudit.spread.glance import place
from leakaudit.spread.job import Job, Request
from leakaudit.units.shelf import Shelf

SCRIPT, NUMBER = ".sbatch", ".array"  # files beside the job's own
PATIENCE = 60.0  # seconds that a command of Slurm is given
WAIT = "2m"  # for which a task waits to see the job's file: file systems of networks are late


def check(request: Request) -> None:
    """Raise Untouched for a scan with a time budget: an array job may wait in the queue for longer."""
    if request.plan.budget is not None:
        raise Untouched(
            Setting("budget"),
            " counts from now on, and an array job may wait in the queue for longer: leave it out; SBATCH_TIMELIMIT "
            "limits every task, and what was computed by then is kept.",
        )


@contextmanager
def started(shelf: Shelf, job: Job, workers: int) -> Iterator[bool]:
    """Submit the tasks, or find those of this scan that wait or run; yield that the main participant only gathers.

    Raises UserError where there is no Slurm here, or it refuses the job; the script and the job's file stay.
    """
    number = _number(shelf, job)
    if not number or not _tasks(number):
        script = place(shelf, job.id, SCRIPT)
        write_atomically(script, script_of(shelf, job, workers), private=True, follow=False)
        write_atomically(place(shelf, job.id, NUMBER), _submitted(script, shelf), private=True, follow=False)
    yield False


def begun(shelf: Shelf, job: Job) -> str:
    """Say which array job it is."""
    where = place(shelf, job.id).parent
    return f"array job {_number(shelf, job)} of Slurm computes the pieces; its logs are in {where}"


def waiting(shelf: Shelf, job: Job) -> str:
    """Say what the array job is at while nobody is at work; raises UserError where none of its tasks is left."""
    number = _number(shelf, job)
    states = _tasks(number)
    if states is None:  # nobody knows
        return f"waiting for array job {number}"
    if not states:
        raise Unfinished(
            f"array job {number} has ended and pieces are missing: its logs in {place(shelf, job.id).parent} say why. "
            "What it computed is kept; the same command goes on with it."
        )
    queued = sum(state == "PENDING" for state in states)
    return f"array job {number} waits in the queue" if queued == len(states) else f"array job {number} begins"


def left(shelf: Shelf, job: Job) -> str:
    """Say what goes on when the main participant ends before the scan does."""
    number = _number(shelf, job)
    return f"array job {number} goes on: the same command gathers what it computes, scancel {number} ends it"


def script_of(shelf: Shelf, job: Job, workers: int) -> str:
    """Return the script of an array job, a participant in each of its tasks."""
    device, folder = job.request.device, place(shelf, job.id).parent
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    log = str(folder / f"{job.id}.%A_%a.log") if "%" not in str(folder) else ""
    lines = [
        f"#SBATCH --job-name=leakaudit-{job.id[:8]}",
        f"#SBATCH --array=1-{workers}",
        "#SBATCH --ntasks=1",
        f"#SBATCH --cpus-per-task={job.threads}",
        *(["#SBATCH --gpus-per-task=1"] if on_gpu else []),
        *([f'#SBATCH --output="{log}"'] if log and not re.search(r'["\\\n]', log) else []),  # else Slurm's own choice
    ]
    command = [sys.executable, "-m", "leakaudit", "worker", str(shelf.folder), "--job", job.id, "--wait", WAIT]
    return "\n".join(
        [
            "#!/bin/sh",
            *lines,
            f"cd {shlex.quote(job.cwd)} || exit 2",
            f"export OMP_NUM_THREADS={job.threads} MKL_NUM_THREADS={job.threads}",
            f"exec {shlex.join(command)}",
            "",
        ]
    )


def _submitted(script: Path, shelf: Shelf) -> str:
    """Submit a script; return the number of its job."""
    if shutil.which("sbatch") is None:
        raise Untouched(
            f"there is no sbatch here: run this where jobs are submitted, or submit {script} there; or take ",
            Setting("executor", "folder"),
            f" and start leakaudit worker {shelf.folder} on each machine yourself.",
        )
    try:
        done = subprocess.run(
            ["sbatch", "--parsable", str(script)], capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise Untouched(f"sbatch did not answer within {PATIENCE:.0f} seconds: try again later.") from error
    except OSError as error:
        raise Untouched(f"sbatch cannot be run: {error.strerror or error}.") from error
    number = done.stdout.strip().partition(";")[0]
    if done.returncode or not number.isdigit():
        said = next(iter((done.stderr.strip() or done.stdout.strip()).splitlines()), "nothing").strip().rstrip(".")
        raise Untouched(f"sbatch refuses {script}: {said[:300]}.")
    return number


def _number(shelf: Shelf, job: Job) -> str:
    said = own.text(place(shelf, job.id, NUMBER), 20).strip()
    return said if said.isdigit() else ""


def _tasks(number: str) -> list[str] | None:
    """Return the states of the tasks that wait or run; None where that cannot be asked."""
    if shutil.which("squeue") is None:
        return None
    try:
        done = subprocess.run(
            ["squeue", "--noheader", "--array", f"--jobs={number}", "--format=%T"],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode and "invalid job id" not in done.stderr.lower():  # a job that ended a while ago is not known
        return None
    return done.stdout.split()
