"""InstaHide: mixed records whose pixels' signs are flipped at random."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from leakaudit.defenses.mixup import Mixup, mixing_facts
from leakaudit.protocol.registry import register_defense


def flipped(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return ½ + s ∘ (x − ½) with a fair random sign s per value: a sign mask on pixels scaled to [−1, 1]."""
    signs = torch.randint(2, images.shape, generator=generator, device=generator.device).to(images) * 2 - 1
    return 0.5 + signs * (images - 0.5)


@register_defense
@dataclass(frozen=True, kw_only=True)
class InstaHide(Mixup):
    """x̃ = s ∘ Σ_j λ_j x_j on pixels in [−1, 1], ỹ = Σ_j λ_j y_j, s a random sign for every pixel and channel.

    The inside-dataset variant: the other k − 1 records are the client's own, from the batch given. λ is uniform on the
    simplex with no λ_j above `max_weight` (the paper's c₁). Pictures stay in [0, 1]: a flip is one about mid-grey.
    |x̃ − ½| is that of the mixture whatever the signs, which is how it was broken (Carlini et al. 2021, arXiv
    2011.05315).

    Raises ValueError for k < 1 and a `max_weight` that leaves no room (k = 1 takes 1: sign flips alone).
    """

    name: ClassVar[str] = "instahide"
    summary: ClassVar[str] = "share mixtures of the client's records with random signs"
    source: ClassVar[str] = "Huang et al.: InstaHide, ICML 2020 (arXiv 2010.02772)"
    unproven: ClassVar[str] = (
        "what a mixture tells of its records: random signs hide no absolute value (broken by Carlini et al. 2021)"
    )
    stronger: ClassVar[Mapping[str, int]] = {"k": 1}

    least: ClassVar[int] = 1

    def transform_records(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Mix every record with others of the batch and flip signs. Raises RuntimeError before `fit`."""
        pictures, told = super().transform_records(images, labels, generator)
        return flipped(pictures, generator), told

    def facts(self, records: int, batch_size: int, steps: int) -> dict[str, str | float]:
        """State what is mixed, and that nothing is proven."""
        return mixing_facts(self.k, "none: signs hide no absolute value (broken by Carlini et al. 2021)")
