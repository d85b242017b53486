"""What ε noise is worth: by Opacus's accountants, and exactly for one Gaussian release."""

from __future__ import annotations

import math
import warnings
from typing import Any

# Where the PRV accountant is used: below this δ its sums are lost in rounding (it then states less than is true),
# beyond this σ it takes minutes, and with more points of its grid than these, gigabytes.
LEAST_DELTA, MOST_SIGMA, MOST_POINTS = 1e-10, 1e4, 1.5e6


def epsilon(noise_multiplier: float, sample_rate: float, steps: int, delta: float) -> tuple[float, str]:
    """Return ε of `steps` releases of the Poisson-subsampled Gaussian mechanism, and by which accountant of opacus.

    Both bound it from above, and the lower bound is told: by Rényi divergences (RDP, Mironov 2017), or by composing the
    distribution of the loss itself (PRV, Gopi, Lee and Wutschitz 2021), where that can be reckoned. At least 0; NaN
    where σ is so small or so large that its square is no number.
    """
    from opacus.accountants import PRVAccountant, RDPAccountant

    run = (noise_multiplier, sample_rate, steps)
    rdp = _epsilon(RDPAccountant(), run, delta)
    # Its grid is as wide as the loss may be and as fine as the errors that it adds up allow: theorem 5.5 of the paper.
    points = 2 * (rdp + 3) * math.sqrt(steps / 2 * math.log(12_000 / delta)) / 0.01
    reckoned = delta >= LEAST_DELTA and points <= MOST_POINTS and noise_multiplier <= MOST_SIGMA
    prv = _epsilon(PRVAccountant(), run, delta) if reckoned else math.nan
    return (prv, "PRV") if prv < rdp else (rdp, "RDP")


def _epsilon(accountant: Any, run: tuple[float, float, int], delta: float) -> float:
    """Return ε by one accountant, at least 0; NaN where it cannot say."""
    accountant.history = [run]
    with warnings.catch_warnings():
        # RDP warns where the best order is the largest or the smallest it tries: its ε is valid, only not tight.
        warnings.simplefilter("ignore")
        try:
            return max(0.0, float(accountant.get_epsilon(delta)))
        except (ArithmeticError, ValueError, RuntimeError):  # of the latter two PRV, where rounding would decide
            return math.nan


def gaussian_delta(epsilon: float, shift: float) -> float:
    """Return the least δ at which a Gaussian release is (ε, δ)-private: Balle and Wang 2018, theorem 8.

    `shift` is μ, the sensitivity over the standard deviation: δ = Φ(μ/2 − ε/μ) − e^ε Φ(−μ/2 − ε/μ).
    """
    from scipy.special import log_ndtr

    if shift <= 0:
        return 0.0
    above = float(log_ndtr(shift / 2 - epsilon / shift))
    below = epsilon + float(log_ndtr(-shift / 2 - epsilon / shift))
    return math.exp(above) * -math.expm1(min(0.0, below - above))


def gaussian_epsilon(shift: float, delta: float) -> float:
    """Return the exact ε at δ of one Gaussian release; `shift` as in `gaussian_delta`, inf for no noise.

    The inverse of `gaussian_delta` (Balle and Wang 2018, arXiv 1805.06530). n releases are one of shift·√n.
    """
    if not math.isfinite(shift):
        return math.inf
    if gaussian_delta(0.0, shift) <= delta:
        return 0.0
    low, high = 0.0, shift * shift / 2 + shift * math.sqrt(2 * math.log(1 / delta))  # the tail bound of Φ
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(middle, shift) > delta else (low, middle)
        if high - low <= 1e-12 * high:
            break
    return high


def gaussian_shift(epsilon: float, delta: float) -> float:
    """Return the largest μ at which Gaussian releases are (ε, δ)-private: the inverse of `gaussian_epsilon` in ε.

    Releases of μ_1, μ_2, …, each of which may depend on what those before it gave, are together one of
    √(μ_1² + μ_2² + …), exactly (Dong, Roth and Su 2022, arXiv 1905.02383, corollary 3.3). `epsilon` above 0, `delta` in
    (0, 1). Rounded so that the ε of what is returned is not above `epsilon`.
    """
    low, high = 0.0, 1.0
    while gaussian_delta(epsilon, high) <= delta:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(epsilon, middle) <= delta else (low, middle)
        if high - low <= 1e-12 * high:
            break
    return low


def classical_std(sensitivity: float, epsilon: float, delta: float) -> float:
    """Return σ = sensitivity·√(2 ln(1.25/δ))/ε (Dwork and Roth 2014, theorem A.1), which is proven for ε ≤ 1 alone."""
    return sensitivity * math.sqrt(2 * math.log(1.25 / delta)) / epsilon if epsilon > 0 else math.inf
