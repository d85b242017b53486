"""Gaussian noise on the shared update."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from leakaudit.protocol.defense import Defense
from leakaudit.protocol.gradients import Gradients
from leakaudit.protocol.registry import register_defense


def normal_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Return standard normal noise of the shape, type and device of `tensor`, drawn where `generator` lives."""
    drawn = torch.randn(tensor.shape, generator=generator, device=generator.device, dtype=torch.float32)
    return drawn.to(device=tensor.device, dtype=tensor.dtype)


@register_defense
@dataclass(frozen=True, kw_only=True)
class Gaussian(Defense):
    """g̃ = g + N(0, std² I), as first tried against gradient leakage in section 5.1 of the DLG paper.

    `std` is in the units of the gradient and must not be negative (ValueError). It is added once to the mean gradient,
    whatever the batch size. Unlike `dp-sgd` nothing is clipped, so no ε can be stated.
    """

    name: ClassVar[str] = "gaussian"
    summary: ClassVar[str] = "add Gaussian noise to the update"
    source: ClassVar[str] = "Zhu, Liu, Han: Deep Leakage from Gradients, NeurIPS 2019 (arXiv 1906.08935)"
    adaptive: ClassVar[tuple[str, ...]] = ("expectation", "linkage")
    unproven: ClassVar[str] = "what an update tells of its records: without clipping no noise has an ε"
    stronger: ClassVar[Mapping[str, int]] = {"std": 1}

    std: float = 0.01

    def __post_init__(self) -> None:
        if not self.std >= 0:
            raise ValueError(f"std must be at least 0, not {self.std}.")

    def transform_update(self, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
        """Add the noise; `std` 0 returns the update as it is."""
        if self.std == 0:
            return gradients
        return tuple(g + self.std * normal_like(g, generator) for g in gradients)
