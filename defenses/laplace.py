"""Laplace noise on the shared update."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from leakaudit.protocol.defense import Defense
from leakaudit.protocol.gradients import Gradients
from leakaudit.protocol.registry import register_defense


def laplace_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Return Laplace noise of scale 1 (standard deviation √2) in the shape, type and device of `tensor`.

    The difference of two independent exponential draws: no logarithm of zero, so no infinite noise.
    """
    drawn = torch.empty((2, *tensor.shape), device=generator.device, dtype=torch.float32)
    drawn.exponential_(generator=generator)
    return (drawn[0] - drawn[1]).to(device=tensor.device, dtype=tensor.dtype)


@register_defense
@dataclass(frozen=True, kw_only=True)
class Laplace(Defense):
    """g̃ = g + Lap(0, scale), independently per coordinate; its standard deviation is scale·√2.

    `scale` is in the units of the gradient and must not be negative (ValueError).
    """

    name: ClassVar[str] = "laplace"
    summary: ClassVar[str] = "add Laplace noise to the update"
    source: ClassVar[str] = "Zhu, Liu, Han: Deep Leakage from Gradients, NeurIPS 2019 (arXiv 1906.08935)"
    adaptive: ClassVar[tuple[str, ...]] = ("expectation", "linkage")
    unproven: ClassVar[str] = "what an update tells of its records: without clipping no noise has an ε"
    stronger: ClassVar[Mapping[str, int]] = {"scale": 1}

    scale: float = 0.01

    def __post_init__(self) -> None:
        if not self.scale >= 0:
            raise ValueError(f"scale must be at least 0, not {self.scale}.")

    def transform_update(self, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
        """Add the noise; `scale` 0 returns the update as it is."""
        if self.scale == 0:
            return gradients
        return tuple(g + self.scale * laplace_like(g, generator) for g in gradients)
