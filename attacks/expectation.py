"""Gradient matching in expectation over a known defense's randomness, built against noise, clipping and DP-SGD."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from leakaudit import engine
from leakaudit.attacks.inverting_gradients import InvertingGradients
from leakaudit.client import SharedUpdate
from leakaudit.defense import Defense, Gradients
from leakaudit.errors import NotApplicable
from leakaudit.registry import register_attack


def defend(defense: Defense, gradient: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
    """Return the mean gradient of B records as the defense would share it.

    A defense that acts per example is given the mean B times: exact at B = 1, and right in the scale of the noise
    at B > 1, where the examples' own gradients are not the attacker's to know.
    """
    if defense.needs_example_gradients:
        each = tuple(g.expand(batch_size, *g.shape).clone() for g in gradient)
        gradient = tuple(g.mean(0) for g in defense.transform_example_gradients(each, generator))
    return defense.transform_update(gradient, batch_size, generator)


@register_attack
@dataclass(frozen=True, kw_only=True)
class Expectation(InvertingGradients):
    """Minimise E[1 − cos(D(∇ℓ(x̂)), g̃)] + tv·TV(x̂) over the randomness of the defense D.

    Each step averages the closed-form cotangent over `draws` samples of D and passes it straight through D (expectation
    over transformation, Athalye et al. 2018, arXiv 1707.07397), so that it costs one vector-Jacobian product. Noise
    asks for a stronger prior, hence the wider grid.
    """

    name: ClassVar[str] = "expectation"
    summary: ClassVar[str] = "inverting gradients in expectation over the defense's randomness, stronger prior"
    source: ClassVar[str] = "Geiping et al. 2020; Athalye et al. 2018"
    requires: ClassVar[frozenset[str]] = frozenset({"defense"})
    grid: ClassVar[Mapping[str, tuple[float, ...]]] = {"tv": (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)}

    draws: int = 2
    tv: float = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draws < 1:
            raise ValueError("draws must be at least 1")

    def distance(self, update: SharedUpdate, generator: torch.Generator) -> engine.Distance:
        """Return the cosine distance averaged over draws of the defense. Raises NotApplicable if it is not known."""
        defense = update.defense
        if defense is None:
            raise NotApplicable("the defense is not exposed")

        def expected(candidate: Gradients, shared: Gradients) -> tuple[torch.Tensor, Gradients]:
            found = [
                engine.cosine(defend(defense, candidate, update.batch_size, generator), shared)
                for _ in range(self.draws)
            ]
            value = torch.stack([value for value, _ in found]).mean()
            columns = zip(*(cotangent for _, cotangent in found), strict=True)
            return value, tuple(torch.stack(column).mean(0) for column in columns)

        return expected
