"""One accountant for all that is released of private records: sums with Gaussian noise, added up as μ²."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
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

    With `secret` the noise is the operating system's and nobody can repeat it. A generator of torch takes 32 bits of a
    seed and no more, which can all be tried, and pictures that are kept are drawn from it too.
    """

    epsilon: float
    delta: float
    secret: bool = False
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
        if self.secret:
            noise = secret_noise(terms.shape)
        else:
            noise = torch.randn(terms.shape, dtype=torch.float64, generator=generator, device=generator.device)
        return terms.double() + std * noise.to(terms.device)

    def used(self) -> float:
        """Return ε of all that was released, at δ."""
        return _epsilon(self.spent, self.delta)


def secret_noise(shape: Sequence[int]) -> Tensor:
    """Return standard normal numbers (float64) from the random numbers of the operating system."""
    from scipy.special import ndtri

    count = math.prod(shape)
    drawn = np.frombuffer(os.urandom(8 * count), dtype=np.uint64) >> np.uint64(12)  # 52 bits: with ½ added still exact
    return torch.from_numpy(ndtri((drawn + 0.5) * 2.0**-52)).reshape(tuple(shape))


def _epsilon(spent: list[Spent], delta: float) -> float:
    return gaussian_epsilon(math.sqrt(math.fsum(each.shift**2 for each in spent)), delta)
