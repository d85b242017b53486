"""Time that stands still, and a small scene, for the tests of time budgets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from leakaudit.audit.canary import leaky as made_records
from leakaudit.scene.plan import Plan
from leakaudit.scene.scene import Scene, set_scene
from leakaudit.work.progress import Monitor, monitored


class Time:
    """Time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def within(clock: Time, seconds: float) -> Iterator[None]:
    """Give the enclosed work so many seconds."""
    with monitored(Monitor(deadline=clock.now + seconds)):
        yield


def small_scene(records: int = 8) -> Scene:
    """Return a scene around a dense network and made records."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = made_records(0)
    return set_scene(made, Plan(battery="quick", records=records, candidates=20, utility=False), None, "", ())
