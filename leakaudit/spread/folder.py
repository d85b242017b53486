"""Participants that somebody else starts: `leakaudit worker FOLDER`, wherever that folder is seen."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager

from leakaudit.spread.job import Job
from leakaudit.units.shelf import Shelf


@contextmanager
def started(shelf: Shelf, job: Job, workers: int) -> Iterator[bool]:
    """Start nobody; yield that the main participant computes nothing itself, and waits for what others leave."""
    yield False


def begun(shelf: Shelf, job: Job) -> str:
    """Say what to start."""
    return f"waiting for others to compute the pieces: start leakaudit worker {shlex.quote(str(shelf.folder))}"


def waiting(shelf: Shelf, job: Job) -> str:
    """Say what is waited for while nobody is at work."""
    return f"waiting for leakaudit worker {shlex.quote(str(shelf.folder))}"


def left(shelf: Shelf, job: Job) -> str:
    """Say what goes on when the main participant ends before the scan does."""
    return "workers go on: the same command gathers what they compute"
