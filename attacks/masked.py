"""Mask-aware gradient matching, built against pruning and top-k."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from leakaudit.attacks.inverting_gradients import InvertingGradients
from leakaudit.engine import matching as engine
from leakaudit.protocol.attack import Needs
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.gradients import Gradients
from leakaudit.protocol.registry import register_attack


def completed(candidate: Gradients, shared: Gradients) -> Gradients:
    """Return the gradient nearest to the candidate ĝ that pruning could have turned into the shared one.

    Entries that were shared stay. An entry that is zero there was smaller than the least one shared of its tensor, t,
    so it is ĝ clipped to [−t, t], with ĝ first brought to the scale of the shared gradient by their norms over shared
    entries.
    """
    masks = tuple(s != 0 for s in shared)
    known = tuple(c * m for c, m in zip(candidate, masks, strict=True))
    norm, other = engine.inner(known, known).sqrt(), engine.inner(shared, shared).sqrt()
    scale = other / norm.clamp_min(1e-15)

    def complete(c: Tensor, s: Tensor, mask: Tensor) -> Tensor:
        # Without a branch, so that the engine can vectorise it; a tensor of which nothing was shared stays zero.
        least = torch.where(mask, s.abs(), torch.inf).amin()
        least = torch.where(least.isfinite(), least, 0.0)
        return torch.where(mask, s, (scale * c).clamp(-least, least))

    return tuple(complete(c, s, mask) for c, s, mask in zip(candidate, shared, masks, strict=True))


def completed_cosine(candidate: Gradients, shared: Gradients) -> tuple[Tensor, Gradients]:
    """Return 1 − cos(ĝ, g′) with g′ = completed(ĝ, g), and its cotangent with g′ held fixed, as at a projection."""
    return engine.cosine(candidate, completed(candidate, shared))


@register_attack
@dataclass(frozen=True, kw_only=True)
class MaskedMatching(InvertingGradients):
    """Inverting gradients that knows what a zero in a pruned update means: not zero, but too small to be shared.

    Plain matching pushes the candidate's true gradient away wherever it was pruned. Here surviving entries are
    matched, and pruned ones cost something only where the candidate's exceeds the least survivor of its tensor
    (`completed`). The mask is read off the update itself, so nothing need be known about the defense.
    """

    family: ClassVar[str] = "matching"
    name: ClassVar[str] = "masked-matching"
    summary: ClassVar[str] = "inverting gradients on the entries that survived pruning"
    source: ClassVar[str] = "Geiping et al. 2020; the mask of the pruned update as a constraint"
    needs: ClassVar[Needs] = Needs(defense="prune:sparsity=0.5")

    def distance(self, update: SharedUpdate, generator: torch.Generator) -> engine.Distance:
        """Return the cosine distance to the completed update."""
        return completed_cosine
