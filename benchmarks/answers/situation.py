"""What a situation with a known answer is: what was published of it, what counts as reached, and how it is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.inversion import load
from leakaudit.protocol.target import Records

SHARED = Path(__file__).resolve().parents[2].parent / "shared"


class CannotRebuild(Exception):
    """The situation cannot be rebuilt here: what it needs is absent. The message says what."""


@dataclass(frozen=True)
class Outcome:
    """What was measured, in the situation's unit, and what a reader must know beside it (records, settings, labels)."""

    measured: float
    said: str = ""


@dataclass(frozen=True)
class Situation:
    """One published situation.

    `published` is the figure its `source` gives, None where the source gives none in this unit; `goal` is what ours
    must reach, by default the published figure; larger is better unless `least`. `measure(quick)` runs the product's
    own attack: `quick` takes fewer records or steps. Raises `CannotRebuild` where it cannot be run here.
    """

    name: str  # "peeling, CIFAR-10, B = 64"
    published: float | None
    unit: str  # "dB", "share of records", "identified of 16"
    source: str
    measure: Callable[[bool], Outcome]
    goal: float | None = None
    least: bool = False

    @property
    def asked(self) -> float | None:
        """What must be reached: None where nothing is known to compare with."""
        return self.published if self.goal is None else self.goal

    def reached(self, measured: float) -> bool | None:
        """Return whether a figure is as good as what is asked, None where nothing is."""
        if self.asked is None:
            return None
        return measured <= self.asked if self.least else measured >= self.asked


def pictures(which: str) -> Records:
    """Return real pictures: CIFAR-10's `test`, `train_a`, `train_b` (3, 32, 32), or `mnist_test`, `mnist_train`.

    Raises CannotRebuild where they are absent.
    """
    digits = which.startswith("mnist_")
    place = SHARED / "data" / ("mnist/mnist_10k_10k.npz" if digits else f"cifar10/cifar10_{which}.npz")
    if not place.is_file():
        raise CannotRebuild(f"real pictures are not at {place.relative_to(SHARED.parent)}")
    if not digits:
        return load(which)
    part = which.removeprefix("mnist_")
    with np.load(place) as file:
        images, labels = file[f"x_{part}"], file[f"y_{part}"]
    return Records(torch.from_numpy(images).float().div(255)[:, None], torch.from_numpy(labels).long())
