"""One accountant for all that is released of private records: sums with Gaussian noise, added up as μ²."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from leakaudit.protocol.accounting import gaussian_epsilon, gaussian_shift


@dataclass(frozen=True)
class Spent:
    """One noisy sum: how far one record moves it at most, and the noise's standard deviation per entry."""

    what: str
    sensitivity: float
    std: float

    @property
    def shift(self) -> float:
        """Return μ, sensitivity over standard deviation."""
        return self.sensitivity / self.std


@dataclass
class Budget:
    """The (ε, δ) of a whole fit towards adding or removing one record, and what was spent of it.

    `share` of a release is that of μ², so that shares of at most 1 together stay within ε: μ² of Gaussian releases adds
    up, also where a later one depends on what an earlier one gave (`gaussian_shift`).
    """

    epsilon: float
    delta: float
    spent: list[Spent] = field(default_factory=list)

    def release(self, what: str, terms: Tensor, sensitivity: float, share: float, generator: torch.Generator) -> Tensor:
        """Return `terms`, a sum over records that one record changes by at most `sensitivity` in L2, with noise.

        Raises RuntimeError where the budget would not bear it: nothing is released then.
        """
        std = sensitivity / (math.sqrt(share) * gaussian_shift(self.epsilon, self.delta))
        each = Spent(what, sensitivity, std)
        if _epsilon([*self.spent, each], self.delta) > self.epsilon * (1 + 1e-9):
            raise RuntimeError(f"releasing {what} would spend more than ε = {self.epsilon:g}")
        self.spent.append(each)
        noise = torch.randn(terms.shape, dtype=torch.float64, generator=generator, device=generator.device)
        return terms.double() + std * noise.to(terms.device)

    def used(self) -> float:
        """Return ε of all that was released, at δ."""
        return _epsilon(self.spent, self.delta)


def _epsilon(spent: list[Spent], delta: float) -> float:
    return gaussian_epsilon(math.sqrt(math.fsum(each.shift**2 for each in spent)), delta)
