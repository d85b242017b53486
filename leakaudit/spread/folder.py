"""Participants that somebody else starts: `leakaudit worker FOLDER`, wherever that folder is seen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from leakaudit.spread.job import Job
from leakaudit.units.shelf import Shelf


@contextmanager
def started(shelf: Shelf, job: Job, workers: int) -> Iterator[bool]:
    """Start nobody; yield that the main participant computes nothing itself, and waits for what others leave."""
    yield False
