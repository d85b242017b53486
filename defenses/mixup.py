"""MixUp: every record is shared as a weighted sum of itself and other records of the client, and so is its label."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import comb
from typing import ClassVar

import torch
from torch import Tensor

from leakaudit.errors import UserError
from leakaudit.protocol.defense import Defense, state
from leakaudit.protocol.labels import soft
from leakaudit.protocol.registry import register_defense
from leakaudit.protocol.target import Target
from leakaudit.protocol.task import CLASSES, Task

PARTS = 100  # records in a mixture, at most


def room(parts: int, most: float) -> float:
    """Return the share of the simplex of `parts` weights in which none exceeds `most`."""
    signs = (-1.0 if j % 2 else 1.0 for j in range(parts + 1))
    return sum(
        sign * comb(parts, j) * float(1 - j * most) ** (parts - 1) for j, sign in enumerate(signs) if 1 - j * most > 0
    )


def mixing_weights(count: int, parts: int, most: float, generator: torch.Generator) -> Tensor:
    """Return weights (count, parts), uniform among those that are not negative, sum to 1, and do not exceed `most`."""

    def drawn(rows: int) -> Tensor:
        spacing = -torch.rand((rows, parts), generator=generator, device=generator.device).clamp_min(1e-12).log()
        return spacing / spacing.sum(1, keepdim=True)

    weights = drawn(count)
    over = weights.amax(1) > most
    while bool(over.any()):
        weights[over] = drawn(int(over.sum()))
        over = weights.amax(1) > most
    return weights


def components(count: int, parts: int, generator: torch.Generator) -> Tensor:
    """Return which records are mixed, (count, parts): each record first, then others of the same batch.

    The others are distinct where there are enough of them, and repeat where not. A record alone is mixed with itself.
    """
    own = torch.arange(count, device=generator.device)[:, None]
    if count == 1:
        return own.expand(1, parts)

    def drawn(rows: int) -> Tensor:
        steps = torch.randint(1, count, (rows, parts - 1), generator=generator, device=generator.device)
        return steps.sort(1).values

    steps = drawn(count)
    twice = (steps.diff(dim=1) == 0).any(1)
    while count >= parts and bool(twice.any()):
        steps[twice] = drawn(int(twice.sum()))
        twice = (steps.diff(dim=1) == 0).any(1)
    return torch.cat([own, (own + steps) % count], 1)


def mixed(
    images: Tensor, labels: Tensor, *, parts: int, most: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return Σ_j λ_j x_j (N, C, H, W) and Σ_j λ_j y_j of images and probabilities (N, K), or targets (N, *shape)."""
    chosen = components(len(images), parts, generator).to(images.device)
    weights = mixing_weights(len(images), parts, most, generator).to(images)
    pictures, told = torch.zeros_like(images), torch.zeros_like(labels)
    for weight, index in zip(weights.unbind(1), chosen.unbind(1), strict=True):
        pictures += weight.view(-1, 1, 1, 1) * images[index]
        told += weight.view(-1, *[1] * (labels.dim() - 1)) * labels[index]
    return pictures, told


def check_mixing(parts: int, most: float, least: int) -> None:
    """Raise ValueError where so many weights cannot, or hardly ever, all stay within `most`."""
    if parts < least:
        raise ValueError(f"k must be at least {least}, not {parts}.")
    if parts > PARTS:
        raise ValueError(f"k must be at most {PARTS}, not {parts}: a mixture of more is the mean picture.")
    if not 0 < most <= 1 or room(parts, most) < 1e-3:
        raise ValueError(
            f"max_weight must be at most 1 and leave {parts} weights that sum to 1 some room, which {most} does not."
        )


@register_defense
@dataclass(frozen=True, kw_only=True)
class Mixup(Defense):
    """x̃ = Σ_j λ_j x_j and ỹ = Σ_j λ_j y_j over `k` records, λ uniform on the simplex with no λ_j above `max_weight`.

    Zhang et al. 2018 is `k=2:max_weight=1` (their Beta(1, 1)); k = 4 and λ ≤ 0.65 are the settings with which mixing
    is judged as a defense (Huang et al. 2021, arXiv 2112.00059). The first of the k records is the one that is
    replaced, the others are drawn from the batch given: the client's own records. Labels (N, K) are probabilities;
    where labels are no classes targets are mixed, and of masks of classes, which have no mean, it is a UserError.

    Raises ValueError for k < 2 and a `max_weight` that leaves no room.
    """

    name: ClassVar[str] = "mixup"
    summary: ClassVar[str] = "share weighted sums of the client's records and of their labels"
    source: ClassVar[str] = "Zhang et al.: mixup, ICLR 2018 (arXiv 1710.09412)"
    replaces_records: ClassVar[bool] = True
    adaptive: ClassVar[tuple[str, ...]] = ("demixing", "released-demixing")
    unproven: ClassVar[str] = "what a mixture tells of its records: a weighted sum still holds every one of them"
    stronger: ClassVar[Mapping[str, int]] = {"k": 1}

    least: ClassVar[int] = 2  # k

    k: int = 4
    max_weight: float = 0.65
    classes: int | None = state()
    task: Task = state(CLASSES, describes=True)

    def __post_init__(self) -> None:
        check_mixing(self.k, self.max_weight, self.least)

    def fit(self, target: Target, generator: torch.Generator) -> Defense:
        """Note the number of classes, and what labels are; no record is kept."""
        if self.k > 1 and not target.task.mixes:
            raise UserError(
                f"{self.name} mixes labels, and the mean of two {target.task.kind} labels is none: leave it out for "
                f"{target.name}."
            )
        return replace(self, classes=len(target.classes), task=target.task)

    @property
    def renewable(self) -> bool:
        """Mixing is published as drawn anew every epoch: what a record gives away grows with the draws."""
        return True

    def transform_records(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Mix every record with others of the batch. Raises RuntimeError before `fit`."""
        told = soft(self.task.targets_of(labels), fitted_classes(self.classes)).to(images)
        return mixed(images, told, parts=self.k, most=self.max_weight, generator=generator)

    def facts(self, records: int, batch_size: int, steps: int) -> dict[str, str | float]:
        """State what is mixed, and that nothing is proven."""
        return mixing_facts(self.k, "none: a weighted sum still holds every record in it")


def fitted_classes(classes: int | None) -> int:
    """Return the number of classes, or raise RuntimeError if `fit` has not run."""
    if classes is None:
        raise RuntimeError("this defense does not know the classes yet: call fit(target, generator) first")
    return classes


def mixing_facts(parts: int, guarantee: str) -> dict[str, str | float]:
    """Return the facts of a mixing defense."""
    return {
        "records in each mixture": float(parts),
        "proven guarantee": guarantee,
        "leakage over epochs": "grows: mixtures are drawn anew every epoch, and each tells more of the same records",
    }
