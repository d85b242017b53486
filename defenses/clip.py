"""Clipping the shared update to a norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from leakaudit.protocol.defense import Defense
from leakaudit.protocol.gradients import Gradients
from leakaudit.protocol.registry import register_defense


@register_defense
@dataclass(frozen=True, kw_only=True)
class Clip(Defense):
    """g̃ = g · min(1, C/‖g‖) with the Euclidean norm over all layers together.

    `max_norm` is C and must be positive (ValueError). Clipping hides no direction: an attack by cosine ignores it.
    """

    name: ClassVar[str] = "clip"
    summary: ClassVar[str] = "scale the update down to a norm"
    source: ClassVar[str] = "Pascanu, Mikolov, Bengio: On the difficulty of training RNNs, 2013 (arXiv 1211.5063)"
    adaptive: ClassVar[tuple[str, ...]] = ("inverting-gradients", "linkage")
    unproven: ClassVar[str] = "what an update tells of its records: clipping shortens it and hides no direction"

    max_norm: float = 4.0

    def __post_init__(self) -> None:
        if not self.max_norm > 0:
            raise ValueError(f"max_norm must be above 0, not {self.max_norm}.")

    def transform_update(self, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
        """Scale the whole update; one of norm `max_norm` or less passes unchanged."""
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
        if float(norm) <= self.max_norm:
            return gradients
        return tuple(g * (self.max_norm / norm) for g in gradients)
