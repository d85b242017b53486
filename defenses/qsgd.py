"""Stochastic quantisation of the shared update."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from leakaudit.protocol.defense import Defense
from leakaudit.protocol.gradients import Gradients
from leakaudit.protocol.registry import register_defense

MOST = 2**30  # levels: finer than single precision


def quantise(tensor: Tensor, levels: int, generator: torch.Generator) -> Tensor:
    """Return Q_s(v) for v = `tensor` and s = `levels`: each |v_i| rounded up or down to a multiple of ‖v‖/s.

    It is rounded up with the probability that makes the expectation v_i. A tensor of zeros stays one.
    """
    norm: Tensor = torch.linalg.vector_norm(tensor, dtype=torch.float64)
    if float(norm) == 0:
        return tensor
    place = (tensor.double().abs() * (levels / norm)).clamp(max=levels)  # rounding must not lead above the last level
    lower = place.floor()
    drawn = torch.rand(tensor.shape, generator=generator, device=generator.device).to(tensor.device)
    rounded = lower + (drawn < place - lower)
    return (rounded * (norm / levels) * tensor.sign()).to(tensor)


@register_defense
@dataclass(frozen=True, kw_only=True)
class Qsgd(Defense):
    """g̃_i = ‖g‖·sign(g_i)·ζ_i, with ζ_i of {0, 1/s, …, 1} next below or above |g_i|/‖g‖ at random (§3.1 of the paper).

    The norm is Euclidean and each parameter tensor's own (its bucket). The draw makes E g̃ = g, with
    E‖g̃ − g‖² ≤ min(n/s², √n/s)·‖g‖² for n entries (lemma 3.1): what hides the gradient grows with the layer and falls
    with `levels`, s, at least 1 (else ValueError).
    """

    name: ClassVar[str] = "qsgd"
    summary: ClassVar[str] = "round every entry at random to a few levels"
    source: ClassVar[str] = "Alistarh et al.: QSGD, NeurIPS 2017 (arXiv 1610.02132)"
    adaptive: ClassVar[tuple[str, ...]] = ("quantisation-aware", "linkage")
    unproven: ClassVar[str] = "what the rounded entries of an update tell of its records: they are right on average"
    stronger: ClassVar[Mapping[str, int]] = {"levels": -1}
    lowest: ClassVar[Mapping[str, float]] = {"levels": 1.0}

    levels: int = 16

    def __post_init__(self) -> None:
        if not 1 <= self.levels <= MOST:
            raise ValueError(f"levels must be at least 1 and at most {MOST}, not {self.levels}.")

    def transform_update(self, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
        """Quantise every tensor by its own norm."""
        return tuple(quantise(g, self.levels, generator) for g in gradients)

    def facts(self, records: int, batch_size: int, steps: int) -> dict[str, str | float]:
        """Return what an entry tells at most, beside each tensor's norm: nothing is proven of a record's privacy."""
        return {"bits per parameter, at most": round(math.log2(2 * self.levels + 1), 2), "privacy proven": "none"}
