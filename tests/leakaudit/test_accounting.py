"""What ε noise is worth, against the definition itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm

from leakaudit.protocol.accounting import classical_std, epsilon, gaussian_delta, gaussian_epsilon


@pytest.mark.parametrize("shift", [0.1, 0.7, 1.0, 3.0])
@pytest.mark.parametrize("eps", [0.0, 0.3, 1.0, 4.0])
def test_delta_is_what_its_definition_integrates_to(shift: float, eps: float) -> None:
    """δ(ε) = ∫ (p − e^ε q)₊ for p = N(μ, 1) and q = N(0, 1)."""
    x = np.linspace(-30, 30, 600_001)
    integral = np.maximum(norm.pdf(x, shift) - math.exp(eps) * norm.pdf(x), 0).sum() * (x[1] - x[0])
    assert gaussian_delta(eps, shift) == pytest.approx(integral, abs=1e-6)


@pytest.mark.parametrize("shift", [1e-3, 0.2, 1.0, 5.0, 100.0, 2e4])
def test_epsilon_is_its_inverse(shift: float) -> None:
    found = gaussian_epsilon(shift, 1e-5)
    if found:
        assert gaussian_delta(found, shift) == pytest.approx(1e-5, rel=1e-4)
        assert gaussian_delta(found * 0.99, shift) > 1e-5
    else:
        assert gaussian_delta(0.0, shift) <= 1e-5
    assert gaussian_epsilon(math.inf, 1e-5) == math.inf


def test_it_is_below_opacus_and_the_classical_formula_where_that_is_proven() -> None:
    for eps in (0.25, 0.5, 1.0):
        std = classical_std(1.0, eps, 1e-5)
        assert gaussian_epsilon(1 / std, 1e-5) < eps
        assert gaussian_epsilon(1 / std, 1e-5) <= epsilon(std, 1.0, 1, 1e-5)[0] <= 1.2 * eps
    assert gaussian_epsilon(1 / classical_std(1.0, 10.0, 1e-5), 1e-5) > 10  # beyond ε = 1 the formula promises too much
    assert classical_std(1.0, 0.0, 1e-5) == math.inf
