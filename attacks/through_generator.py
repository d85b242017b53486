"""Matching through the generator: the private record itself is sought, seen as the defense would replace it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from leakaudit.attacks._attacking import room_for
from leakaudit.attacks.inverting_gradients import InvertingGradients, Match
from leakaudit.engine import matching as engine
from leakaudit.errors import NotApplicable
from leakaudit.protocol.attack import Needs
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.defense import Defense, replaces_records
from leakaudit.protocol.labels import hard
from leakaudit.protocol.registry import register_attack
from leakaudit.protocol.target import PixelModel
from leakaudit.work.memory import need


def replaced(
    defense: Defense, images: Tensor, labels: Tensor, seeds: list[int], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return draws of G(x̂, ε) for pictures (B, C, H, W) under labels (B,): (S·B, C, H, W) in [0, 1] and their labels.

    One draw per seed, with a graph to `images` where the record stage has one.
    """
    drawn = []
    for seed in seeds:
        fixed = torch.Generator(device=generator.device).manual_seed(seed)
        drawn.append(defense.transform_records(images, labels, fixed))
    shown, told = zip(*drawn, strict=True)
    return torch.cat(shown).clamp(0, 1), torch.cat(told)


def check_slope(defense: Defense, update: SharedUpdate, labels: Tensor, generator: torch.Generator) -> None:
    """Raise NotApplicable with the reason where the replaced records have no slope in the private ones."""
    if not replaces_records(defense):
        raise NotApplicable("the defense does not replace records, so there is nothing to match through")
    probe = torch.full((len(labels), *update.input_shape), 0.5, device=labels.device).requires_grad_(True)
    with torch.enable_grad():
        shown, _ = replaced(defense, probe, labels, [0], generator)
    if not shown.requires_grad:
        raise NotApplicable(
            "the replaced records do not depend on the private ones, or not differentiably: no slope passes through"
        )


@register_attack
@dataclass(frozen=True, kw_only=True)
class ThroughGenerator(InvertingGradients):
    """Minimise 1 − cos(E_ε ∇ℓ(G(x̂, ε), y), g̃) + tv·R(x̂) over x̂, differentiating through the record stage G.

    Inverting gradients (Geiping et al. 2020) with the defense in the loop, built against generators that replace
    records. The expectation is the mean over `draws` of ε, the same for every picture and at every step (common random
    numbers): the gradient of a batch of all draws. A batch's objective is therefore a fixed function, and restarts and
    steps can be compared. Later stages of a chain are left to the cosine, as in plain matching. With BatchNorm in
    train mode the statistics are those of all draws together, not of each.

    Where G lets little of x̂ through the slope is small but its sign is what steps follow, and the prior decides the
    rest: the attack then ends `converged` at a picture that tells the prior, which is what a defense that works must
    lead to. Where G passes no slope at all (a generator that never sees the record, or one that is not
    differentiable) nothing would be matched, and it is NotApplicable.
    """

    family: ClassVar[str] = "generative"
    name: ClassVar[str] = "through-generator"
    summary: ClassVar[str] = "inverting gradients through the record stage, in expectation over its noise"
    source: ClassVar[str] = "Geiping et al. 2020; expectation over transformation: Athalye et al. 2018"
    requires: ClassVar[frozenset[str]] = frozenset({"defense"})
    needs: ClassVar[Needs] = Needs(replaced_records=True)
    seeks_targets: ClassVar[bool] = False

    draws: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draws < 1:
            raise ValueError("draws must be at least 1")

    def matching(
        self, model: PixelModel, update: SharedUpdate, distance: engine.Distance, generator: torch.Generator
    ) -> Match:
        """Return the match through the record stage. Raises NotApplicable where there is none to pass through."""
        defense = update.defense
        if defense is None:
            raise NotApplicable("the defense is not exposed")
        first = torch.zeros(update.batch_size, dtype=torch.long, device=model.mean.device)
        check_slope(defense, update, update.task.targets_of(first), generator)
        shown = self.restarts * update.victims * self.draws
        size = room_for(update, shown, 8) + 100 * self.draws
        need(size, f"{self.draws} draws of {update.victims} victims", "draws", model.mean.device)
        seeds = torch.randint(2**62, (self.draws,), generator=generator, device=generator.device).tolist()

        def match(images: Tensor, labels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            x = images.detach().requires_grad_(True)
            with torch.enable_grad():
                told = update.task.targets_of(labels) if update.task.own_targets else hard(labels)
                drawn = [replaced(defense, one, y, seeds, generator) for one, y in zip(x, told, strict=True)]
                shown = torch.stack([pictures for pictures, _ in drawn])
            taught = torch.stack([y for _, y in drawn])
            if labels.is_floating_point() and not taught.is_floating_point():  # what the client was seen to train on
                taught = labels.repeat(1, self.draws, 1)
            values, slopes = engine.match(
                model, update.loss, shown.detach(), taught, update.gradients, distance, rows=rows
            )
            (back,) = torch.autograd.grad(shown, x, slopes)
            return values, back

        return match
