"""SPEAR: records of a batch told apart by the zeros that ReLU leaves in the slopes of a first dense layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from leakaudit.attacks._attacking import cut_short, memory_safe
from leakaudit.attacks._peeling import Peel, Peeled, Scene, peeled
from leakaudit.attacks._rows import Rows
from leakaudit.attacks._spear import CHUNK, Separated, factored, separated
from leakaudit.attacks.peeling import Peeling
from leakaudit.errors import UserError
from leakaudit.protocol.amounts import Amount, Sizes
from leakaudit.protocol.attack import Reconstruction
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.registry import register_attack
from leakaudit.protocol.target import PixelModel

MOST = 24  # records that are told apart by sampling: twice the samples for each more


@register_attack
@dataclass(frozen=True, kw_only=True)
class Spear(Peeling):
    """Tell a batch's records apart by the zeros of their slopes (SPEAR, Dimitrov et al. 2024, arXiv 2403.03945).

    ∂W = ΔXᵀ has rank b, so Δ is a factor of it times an unknown b × b matrix, each of whose columns is orthogonal to
    the rows of the factor where ReLU is off for that record. b − 1 rows drawn at random are such with probability about
    b/2^(b−1), and many further zeros tell when they were. What peels is peeled first, so b counts the records that fire
    no row alone; more than MOST are not tried. Every record is then given the label under which the model predicts its
    slopes, and certified where it does.

    It applies where `peeling` does; `samples` are drawn for each update at most.
    """

    family: ClassVar[str] = "closed-form"
    name: ClassVar[str] = "spear"
    summary: ClassVar[str] = "tell a batch's records apart by the zeros that ReLU leaves in the slopes of a dense layer"
    source: ClassVar[str] = "Dimitrov et al. 2024 (SPEAR)"
    covers: ClassVar[frozenset[str]] = frozenset({"layer-by-layer"})
    closed_form: ClassVar[bool] = False

    samples: int = 1_000_000  # sets of rows drawn for one update, at most: enough for some 18 records

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise UserError("samples must be at least 1")

    @memory_safe
    def __call__(self, model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> Reconstruction:
        """Return the pictures; a victim whose bias gradient is zero or not finite is `diverged`."""
        return cut_short(super().__call__(model, update, generator))

    def apart(self, scene: Scene, rows: Rows, generator: torch.Generator) -> Peeled:
        """Return the records of one victim that peel, and of the others those that were separated."""
        first = peeled(scene, rows, generator)
        if not 1 < first.left <= MOST:
            return first
        factors = factored(first.rows, first.left, float(rows.weight.norm()), generator)
        if factors.left.shape[1] < 2:
            return first
        found = separated(factors, scene.layer, self.samples, generator)
        return first if found is None else told(scene, rows, first, found)

    def note(self, count: int, of: int) -> str:
        """Say how many records are certain."""
        return f"{count} of {of} records told apart: each accounts for a part of the update."

    def amount(self, sizes: Sizes) -> Amount:
        """Return the work: a chunk of samples takes about as long as a training step of a small network."""
        return Amount(updates=sizes.victims, own=sizes.victims * self.samples / CHUNK if sizes.batch > 1 else 0)


def told(scene: Scene, whole: Rows, first: Peeled, apart: Separated) -> Peeled:
    """Return the records that peeled and those told apart, with the label that predicts the slopes of each best.

    The latter are taken off the rows; those whose slopes no label predicts are left out.
    """
    slopes = apart.slopes.T
    loosest = whole.precision.tolerances[-1]
    best = torch.full((len(slopes),), torch.inf, dtype=torch.float64, device=slopes.device)
    label, share = torch.zeros_like(best, dtype=torch.long), torch.ones_like(best)
    for i, expected in enumerate(scene.each(apart.flat)):
        scale = (slopes * expected).sum(1) / expected.square().sum(1).clamp_min(1e-300)
        off = (slopes - scale[:, None] * expected).norm(dim=1) / slopes.norm(dim=1).clamp_min(1e-300)
        off = torch.where(scale > 0, off, torch.inf).nan_to_num(torch.inf)
        better = off < best
        best, share = torch.where(better, off, best), torch.where(better, scale, share)
        label = torch.where(better, torch.full_like(label, i), label)
    found, left, rows = list(first.found), first.left, first.rows
    sound = all(p.proved for p in found)
    for i in (best <= loosest).nonzero()[:, 0].tolist():
        times = min(max(1, round(float(share[i]))), left)
        proved = sound and float(best[i]) <= whole.precision.proof
        found.append(Peel(apart.flat[i], int(label[i]), float(share[i]), times, proved))
        left -= times
    taken = apart.slopes[:, best <= loosest] @ apart.flat[best <= loosest]
    bias = rows.bias - apart.slopes[:, best <= loosest].sum(1)
    return Peeled(found, left, Rows(rows.weight - taken, bias, rows.scale + rows.bias.abs(), rows.precision))
