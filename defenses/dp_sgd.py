"""DP-SGD: per-example clipping and Gaussian noise, with ε from an accountant."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from leakaudit.defenses.gaussian import normal_like
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.gradients import Gradients
from leakaudit.protocol.registry import register_defense
from leakaudit.result.schema import Guarantee

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


@register_defense
@dataclass(frozen=True, kw_only=True)
class DPSGD(Defense):
    """g̃ = (1/B)(Σ_i g_i·min(1, C/‖g_i‖) + N(0, σ²C² I)): algorithm 1 of Abadi et al.

    `noise_multiplier` is σ (at least 0), `max_norm` is C (above 0) in units of one example's gradient norm, and `delta`
    in (0, 1) is the δ at which `facts` states ε. Anything else is a ValueError. The noise on the shared mean has
    standard deviation σC/B, and models with layers that mix examples (BatchNorm in train mode) are seen one
    example at a time.
    """

    name: ClassVar[str] = "dp-sgd"
    summary: ClassVar[str] = "clip every example's gradient and add noise, with an ε"
    source: ClassVar[str] = "Abadi et al.: Deep Learning with Differential Privacy, CCS 2016 (arXiv 1607.00133)"
    adaptive: ClassVar[tuple[str, ...]] = ("expectation", "linkage")
    stronger: ClassVar[Mapping[str, int]] = {"noise_multiplier": 1}

    noise_multiplier: float = 1.0
    max_norm: float = 1.0
    delta: float = 1e-5

    def __post_init__(self) -> None:
        if not self.noise_multiplier >= 0:
            raise ValueError(f"noise_multiplier must be at least 0, not {self.noise_multiplier}.")
        if not self.max_norm > 0:
            raise ValueError(f"max_norm must be above 0, not {self.max_norm}.")
        if not 0 < self.delta < 1:
            raise ValueError(f"delta must lie between 0 and 1, not {self.delta}.")

    def transform_example_gradients(self, gradients: Gradients, generator: torch.Generator) -> Gradients:
        """Clip each example's gradient, taken over all layers together; each tensor is (B, *parameter.shape)."""
        norms = torch.stack([g.flatten(1).norm(dim=1) if g.dim() > 1 else g.abs() for g in gradients]).norm(dim=0)
        scale = (self.max_norm / norms.clamp_min(1e-30)).clamp_max(1.0)
        return tuple(g * scale.to(g.dtype).view(-1, *(1,) * (g.dim() - 1)) for g in gradients)

    def transform_update(self, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
        """Add noise of standard deviation σC/B to the mean of the clipped gradients."""
        if self.noise_multiplier == 0:
            return gradients
        std = self.noise_multiplier * self.max_norm / batch_size
        return tuple(g + std * normal_like(g, generator) for g in gradients)

    def facts(self, records: int, batch_size: int, steps: int) -> dict[str, str | float]:
        """Return ε and δ of `steps` updates of `batch_size` drawn from `records`, and what that ε assumes."""
        if steps == 0:
            return {"epsilon": "not stated: no training run to account for", "delta": self.delta}
        if self.noise_multiplier == 0:
            return {"epsilon": "unbounded: no noise", "delta": self.delta}
        spent, accountant = epsilon(self.noise_multiplier, min(1.0, batch_size / records), steps, self.delta)
        if math.isnan(spent):
            return {
                "epsilon": "not stated: beyond what the accountant reckons with",
                "delta": self.delta,
            }
        if not math.isfinite(spent):
            return {"epsilon": "unbounded: too little noise for the accountant", "delta": self.delta}
        assumes = (
            f"{steps} steps of {batch_size} of {records} records, Poisson sampling, add-or-remove-one-record "
            f"neighbours, {accountant} accountant; gradients only, not BatchNorm statistics"
        )
        return {"epsilon": spent, "delta": self.delta, "epsilon assumes": assumes}

    def guarantees(self, records: int, batch_size: int, steps: int, candidates: int) -> tuple[Guarantee, ...]:
        """State (ε, δ) of the run as the accountant has it, and what it does not cover."""
        spent = self.facts(records, batch_size, steps)
        beside = Guarantee("what BatchNorm statistics tell, where they are shared beside the gradients", "not-bounded")
        if isinstance(spent["epsilon"], str):
            return Guarantee(f"{self.unproven}: ε is {spent['epsilon']}", "not-bounded", states=tuple(spent)), beside
        run = f"the training run is (ε, δ)-differentially private: ε = {spent['epsilon']:.3g}, δ = {self.delta:.3g}"
        assumes = f"{spent['epsilon assumes']}; batches that are shuffled instead are not covered by the proof"
        return Guarantee(run, "proven", assumes, states=tuple(spent)), beside
