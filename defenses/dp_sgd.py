"""DP-SGD: per-example clipping and Gaussian noise, with ε from an accountant."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from leakaudit.defenses.gaussian import normal_like
from leakaudit.protocol.accounting import epsilon
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.gradients import Gradients
from leakaudit.protocol.registry import register_defense
from leakaudit.result.schema import Guarantee


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
