"""Undoing a known transform of the record, built against defenses that share transformed records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from leakaudit.attacks._attacking import cut_short, memory_safe
from leakaudit.attacks._optimise import roughness
from leakaudit.attacks._rehearsal import inversions, rehearsed
from leakaudit.attacks.inverting_gradients import InvertingGradients
from leakaudit.errors import NotApplicable
from leakaudit.protocol.amounts import Amount, Sizes
from leakaudit.protocol.attack import Needs, Reconstruction
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.defense import Defense, replaces_records
from leakaudit.protocol.registry import register_attack
from leakaudit.protocol.target import PixelModel
from leakaudit.work.memory import need
from leakaudit.work.progress import expired, observe, track

SMOOTH = 3e-3  # weight of the prior beside the mean square error: what the transform lost is filled in smoothly


def undone(
    defense: Defense, seen: Tensor, labels: Tensor, seeds: list[int], steps: int, label: str, depth: int = 1
) -> Tensor:
    """Return pictures x̂ (N, C, H, W) with transform(x̂) ≈ `seen` (N, C, H, W), labels (N,), each by its best attempt.

    Adam minimises ‖T(x̂) − x̃‖²/D + 0.003·R(x̂) through T in `steps` steps, from grey and from x̃ itself under every one of
    the seeds: a seed is one draw of the defense's randomness. Raises NotApplicable where no slope passes through T.
    """
    best, least = seen.clone(), torch.full((len(seen),), torch.inf, device=seen.device)
    begun = torch.full_like(seen, 0.5), seen
    for t in track(label, len(begun) * len(seeds)):
        seed, start = seeds[t // len(begun)], begun[t % len(begun)]
        x, value = _descended(defense, seen, labels, seed, start, steps, depth)
        better = value < least
        best[better], least[better] = x[better], value[better]
    return best


def _descended(
    defense: Defense, seen: Tensor, labels: Tensor, seed: int, start: Tensor, steps: int, depth: int
) -> tuple[Tensor, Tensor]:
    """Return where one attempt ended, and its objective (N,)."""
    x = start.detach().clone().requires_grad_(True)
    optimiser = torch.optim.Adam([x], lr=0.05)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, eta_min=1e-3)
    while True:
        with torch.enable_grad():
            generator = torch.Generator().manual_seed(seed)
            fit = (defense.transform_records(x, labels, generator)[0] - seen).square().flatten(1).mean(1)
        observe(fit, x)
        prior, prior_slope = roughness(x.detach()[:, None], depth)
        if plan.last_epoch >= steps or expired():
            return x.detach(), fit.detach() + SMOOTH * prior
        if not fit.requires_grad:
            raise NotApplicable("no slope passes through the defense's record stage")
        (slope,) = torch.autograd.grad(fit.sum(), x)
        x.grad = slope + SMOOTH * prior_slope[:, 0]
        optimiser.step()
        plan.step()
        with torch.no_grad():
            x.clamp_(0, 1)


@register_attack
@dataclass(frozen=True, kw_only=True)
class Untransform(InvertingGradients):
    """Invert the update to x̃ by inverting gradients, then undo the transform with the transform in the loop (`undone`).

    For a defense whose record stage is a known transform of each record by itself, with a few draws at most: `draws` of
    its randomness are tried, and each picture is the one that x̃ fits best. The inversion is tuned to find x̃ on
    `rehearsals` updates of auxiliary records where there are any (0: not at all).
    """

    family: ClassVar[str] = "matching"
    name: ClassVar[str] = "untransform"
    summary: ClassVar[str] = "invert to the transformed record, then undo the known transform by optimisation"
    source: ClassVar[str] = "Geiping et al. 2020; the transform in the loop, formulated here"
    requires: ClassVar[frozenset[str]] = frozenset({"defense"})
    grid: ClassVar[Mapping[str, tuple[float, ...]]] = {}
    needs: ClassVar[Needs] = Needs(replaced_records=True)

    draws: int = 6
    undo_steps: int = 150
    rehearsals: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.draws, self.undo_steps) < 1 or self.rehearsals < 0:
            raise ValueError("draws and undo_steps must be at least 1 and rehearsals must not be negative")

    def amount(self, sizes: Sizes) -> Amount:
        """Return how much work it is: the inversion is tuned for itself."""
        return inversions(self.steps * self.restarts, sizes, self.rehearsals)

    @memory_safe
    def __call__(self, model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> Reconstruction:
        """Return pictures with the transform undone; the objective is that of the inversion."""
        defense = update.defense
        if defense is None:
            raise NotApplicable("the defense is not exposed")
        if not replaces_records(defense):
            raise NotApplicable("the defense does not replace records, so there is nothing to undo")
        need(100 * self.draws, f"{self.draws} draws", "draws", model.mean.device)
        inversion, _ = rehearsed(self, model, update, defense, update.auxiliary, self.rehearsals, generator)
        first = inversion(model, update, generator)
        if first.images is None or first.labels is None:
            return first
        drawn = torch.randint(2**62, (self.draws,), generator=generator, device=generator.device).tolist()
        seen = first.images.flatten(0, 1)
        told = update.task.targets_of(first.labels.flatten())
        pictures = undone(defense, seen, told, drawn, self.undo_steps, self.name, model.depth)
        return replace(cut_short(first), images=pictures.view_as(first.images))
