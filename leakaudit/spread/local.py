"""Participants in processes of this machine: one on each GPU in turn, each with so many threads as the scan has."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from leakaudit.spread.job import Job
from leakaudit.spread.serving import COMMAND
from leakaudit.units.shelf import Shelf

PATIENCE = 10.0  # seconds that a participant is given to end by itself


@contextmanager
def started(shelf: Shelf, job: Job, workers: int) -> Iterator[bool]:
    """Start all participants but the main one; yield whether that takes part, too. They end when it does."""
    processes = [_process(shelf, job, k) for k in range(1, workers)]
    try:
        yield True
    finally:
        _ended(processes)


def begun(shelf: Shelf, job: Job) -> str:
    """Say how many there are."""
    return f"{job.lanes} processes share out the pieces" if job.lanes > 1 else ""


def gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name.strip()]
    return [str(k) for k in range(torch.cuda.device_count())] if torch.cuda.is_available() else []


def _process(shelf: Shelf, job: Job, k: int) -> subprocess.Popen[bytes]:
    env = {**os.environ, "OMP_NUM_THREADS": str(job.threads), "MKL_NUM_THREADS": str(job.threads)}
    there = gpus() if job.request.device in ("auto", "cuda") else []
    if there:
        env["CUDA_VISIBLE_DEVICES"] = there[k % len(there)]
    words = ["worker", str(shelf.folder.absolute()), "--job", job.id, "--tied", "--quiet"]
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *words],
        env=env,
        stdin=subprocess.PIPE,  # it closes with this process, however that ends
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,  # what it cannot do the main one does, and says
        start_new_session=True,  # Ctrl-C is the main one's business
    )


def _ended(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        if process.stdin is not None:
            process.stdin.close()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
