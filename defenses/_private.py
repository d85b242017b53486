"""The obscuring generator with an ε: everything that is kept is computed from noisy sums and from no record."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from leakaudit.defenses._private_features import fitted_features
from leakaudit.defenses._private_release import Budget, Spent
from leakaudit.defenses._private_sketch import sketched
from leakaudit.defenses._private_teacher import Teacher, private_teacher
from leakaudit.defenses._procedural import procedural
from leakaudit.protocol.target import Records
from leakaudit.result.schema import Guarantee
from leakaudit.work.progress import track

PICTURES = 8000  # whatever the number of records, which a number of pictures would tell
SKETCHED = 0.25  # of them drawn from noisy statistics, the others procedural
COUNTING = 0.02  # share of the budget for the numbers of records by class
SHARPNESS = 2.0  # of the teacher's logits
PART = 500
PRIVATE_WORK = 40_000  # passes of a picture through a small network that a fit without records would take
ASSUMES = (
    "neighbours are sets given to the fit that differ by one record more or less (what else is held out for tests was "
    "decided before); exact arithmetic, and noise that nobody can guess, as `leakaudit obscure fit` takes it from the "
    "operating system where no --seed is given: of a seed all can be tried, so no generator that a scan saved; names "
    "of classes, size of pictures and settings are public, and settings were not chosen by looking at these records; "
    "how many records a client then trains with is seen as in any training"
)


@dataclass(frozen=True)
class PrivateFit:
    """Pictures (J, C, H, W) at 8 bits and probabilities (J, K), and what was released of the records for them."""

    pictures: Tensor
    labels: Tensor
    spent: tuple[Spent, ...]
    epsilon: float


def private_fit(
    records: Records,
    classes: int,
    budget: Budget,
    *,
    shown: Tensor | None = None,
    mirror: bool,
    generator: torch.Generator,
) -> PrivateFit:
    """Fit on records (N, C, H, W): (ε, δ)-differentially private towards adding or removing one of them.

    `shown` (J, C, H, W) are public pictures, which then get the probabilities; nothing is drawn.

    The records enter through `Budget.release` alone, in `private_teacher`, in `sketched` and in the counts here; all
    else is drawn from `generator` or computed from what those gave. How much is drawn does not depend on the records.
    """
    shape = (records.images.shape[1], records.images.shape[2], records.images.shape[3])
    device = records.images.device
    features = fitted_features(shape, device, generator)
    told = F.one_hot(records.labels, classes).double().sum(0)
    counts = budget.release("the numbers of records by class", told, 1.0, COUNTING, generator).clamp_min(1)
    teacher = private_teacher(
        records, classes, float(counts.sum()), features, budget, mirror=mirror, generator=generator
    )
    if shown is None:
        some = int(SKETCHED * PICTURES)
        drawn = sketched(records, counts, some, budget, mirror=mirror, generator=generator)
        shown = torch.cat([drawn, procedural(PICTURES - some, shape, generator).to(device)])
    pictures = (shown * 255).round() / 255
    return PrivateFit(pictures, _opinions(teacher, pictures), tuple(budget.spent), budget.used())


def _opinions(teacher: Teacher, pictures: Tensor) -> Tensor:
    parts = torch.split(pictures, PART)
    found = [teacher.logits(parts[k], mirror=False) for k in track("asking the private teacher", len(parts))]
    if len(found) < len(parts):
        raise RuntimeError("the time budget ended before the private teacher was asked")
    return (SHARPNESS * torch.cat(found)).softmax(1)


def private_facts(epsilon: float, delta: float) -> dict[str, str | float]:
    """Return what is stated of a fitted generator: its (ε, δ), and what that assumes."""
    return {
        "epsilon of the whole generator": epsilon,
        "delta of the whole generator": delta,
        "that epsilon assumes": f"{ASSUMES}; Gaussian mechanisms composed exactly",
    }


def private_guarantee(epsilon: float, delta: float) -> Guarantee:
    """Return (ε, δ) of all that is kept as a guarantee."""
    told = "pictures, probabilities and card together, and all that is computed from them, are (ε, δ)-differentially"
    return Guarantee(
        f"{told} private towards every record they were fitted on: ε = {epsilon:.3g}, δ = {delta:.3g}",
        "proven",
        ASSUMES,
        states=tuple(private_facts(epsilon, delta)),
    )
