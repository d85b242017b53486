"""Sharing only the largest entries of each layer's gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from leakaudit.protocol.defense import Defense
from leakaudit.protocol.gradients import Gradients
from leakaudit.protocol.registry import register_defense


def keep_largest(tensor: Tensor, keep: int) -> Tensor:
    """Return `tensor` with all but its `keep` entries of largest magnitude zeroed.

    Exactly `keep` positions survive: entries above the keep-th magnitude, then those equal to it in order of position.
    """
    magnitude = tensor.abs().flatten()
    threshold = magnitude.topk(keep).values[-1]
    mask = magnitude > threshold
    ties = (magnitude == threshold).nonzero().flatten()
    mask[ties[: keep - int(mask.sum())]] = True
    return tensor * mask.view_as(tensor)


@register_defense
@dataclass(frozen=True, kw_only=True)
class Prune(Defense):
    """g̃ = g ∘ 1[|g| ≥ Q_p(|g|)] per layer: gradient sparsification.

    `sparsity` p in [0, 1) is the share of each layer set to zero (else ValueError). round((1 − p)·n) of n entries are
    kept, and never none.
    """

    name: ClassVar[str] = "prune"
    summary: ClassVar[str] = "share only the largest entries of each layer"
    source: ClassVar[str] = "Lin et al.: Deep Gradient Compression, ICLR 2018 (arXiv 1712.01887)"
    adaptive: ClassVar[tuple[str, ...]] = ("masked-matching", "linkage")
    unproven: ClassVar[str] = "what an update tells of its records: the entries that are shared are exact"
    stronger: ClassVar[Mapping[str, int]] = {"sparsity": 1}

    sparsity: float = 0.99

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity must be at least 0 and below 1, not {self.sparsity}.")

    def kept(self, entries: int) -> int:
        """Return how many of a layer's `entries` are shared."""
        return max(1, round((1 - self.sparsity) * entries))

    def transform_update(self, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
        """Zero all but the largest entries of each tensor."""
        return tuple(keep_largest(g, self.kept(g.numel())) if g.numel() else g for g in gradients)
