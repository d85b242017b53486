"""Mask-aware gradient matching, built against pruning and top-k."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from leakaudit import engine
from leakaudit.attacks.inverting_gradients import InvertingGradients
from leakaudit.client import SharedUpdate
from leakaudit.registry import register_attack


@register_attack
@dataclass(frozen=True, kw_only=True)
class MaskedMatching(InvertingGradients):
    """Inverting gradients with both gradients restricted to the entries that were shared (g ≠ 0).

    A pruned entry is unknown, not zero: comparing it would push the candidate's true gradient away. The mask is read
    off the update itself, so nothing need be known about the defense.
    """

    name: ClassVar[str] = "masked-matching"
    summary: ClassVar[str] = "inverting gradients on the entries that survived pruning"
    source: ClassVar[str] = "Geiping et al. 2020, with the mask of the pruned update"

    def distance(self, update: SharedUpdate, generator: torch.Generator) -> engine.Distance:
        """Return the cosine distance over surviving entries."""
        return engine.masked_cosine
