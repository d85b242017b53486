"""A teacher that is differentially private: a linear head on fixed features, learned from noisy sums alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from leakaudit.defenses._private_features import Features, unit
from leakaudit.defenses._private_release import Budget
from leakaudit.errors import OutOfTime
from leakaudit.protocol.target import Records
from leakaudit.work.progress import track

STEPS = 16  # noisy gradients of all records
CLIP = 0.5  # of a record's error, so of its gradient
RATE = 100.0  # on the mean gradient: features of length 1 have small ones
LEARNING = 0.75  # share of the budget


@dataclass(frozen=True)
class Teacher:
    """Logits φ(x)·W of pictures (N, C, H, W), W (D, K)."""

    features: Features
    head: Tensor

    def logits(self, pictures: Tensor, *, mirror: bool) -> Tensor:
        """Return logits (N, K)."""
        return self.features(pictures, mirror=mirror) @ self.head


def private_teacher(
    records: Records,
    classes: int,
    about: float,
    features: Features,
    budget: Budget,
    *,
    mirror: bool,
    generator: torch.Generator,
) -> Teacher:
    """Return a teacher learned from records (N, C, H, W) by full-batch gradient descent on noisy sums.

    For every step the sum over records of e_i ⊗ φ_i, with e_i = onehot(y_i) − softmax(φ_i·W) clipped to length `CLIP`,
    is released with Gaussian noise: one record moves it by at most `CLIP`, as ‖φ‖ ≤ 1. All records take part in each:
    what drawing some would gain holds for draws of a size that chance decides. `about` is a noisy number of records,
    by which the sum is divided.
    Raises OutOfTime where the time budget ends it early.
    """
    rows = features(records.images.clamp(0, 1), mirror=mirror)
    wanted = F.one_hot(records.labels, classes).to(rows)
    head = rows.new_zeros(rows.shape[1], classes)
    done = 0
    for step in track("learning a private teacher", STEPS):
        errors = clipped(wanted - (rows @ head).softmax(1), CLIP)
        what = f"the gradient of step {step + 1} of {STEPS}"
        noisy = budget.release(what, rows.T @ errors, CLIP, LEARNING / STEPS, generator)
        head = head + (RATE / about * noisy).to(head)
        done += 1
    if done < STEPS:
        raise OutOfTime("the time budget ended before the private teacher was learned")
    return Teacher(features, head)


def clipped(errors: Tensor, most: float) -> Tensor:
    """Return rows (N, K), those longer than `most` scaled down to it; rows within it as they are."""
    lengths = errors.norm(dim=1, keepdim=True)
    return torch.where(lengths > most, most * unit(errors), errors)
