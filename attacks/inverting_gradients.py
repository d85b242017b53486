"""Inverting gradients: match the direction of the shared gradient under a total-variation prior."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from leakaudit.attacks._attacking import client_mode, memory_safe, room_for, starts, tied
from leakaudit.attacks._free import Free, freed
from leakaudit.attacks._labels import known_labels
from leakaudit.attacks._optimise import COPIES, Pace, best_restart, descend, roughness
from leakaudit.attacks._residual import residual_loss, residuals
from leakaudit.engine import matching as engine
from leakaudit.protocol.attack import Attack, Effort, Reconstruction
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.registry import register_attack
from leakaudit.protocol.target import PixelModel
from leakaudit.work.memory import exhausted, held
from leakaudit.work.progress import expired

LONGEST = 10**12  # steps: nobody sees the end of them, and a clock of 64 bits can count them

# (pictures (T, B, C, H, W), labels (T, B), the update of each (T,)) -> (values (T,), slopes in the pictures)
Match = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

# (pictures (T, B, C, H, W), how much of its schedule each has behind it (T,) in [0, 1]) -> (values (T,), slopes like
# the pictures): what is expected of a picture besides the update. Slopes may follow the schedule, values must not.
Prior = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def smooth(weight: float | Tensor, fall: float | Tensor = 1.0, depth: int = 1) -> Prior:
    """Return the prior `weight` · `roughness`, whose slope begins `fall` times as strong and falls geometrically.

    Both are numbers, or (T,) with one for each trial. `depth` is that of volumes.
    """

    def prior(images: Tensor, progress: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = roughness(images, depth)
        return weight * value, (weight * fall ** (1 - progress)).view(-1, 1, 1, 1, 1) * slope

    return prior


@register_attack
@dataclass(frozen=True, kw_only=True)
class InvertingGradients(Attack):
    """Minimise 1 − cos(∇ℓ(x̂), g) + tv·R(x̂) over pictures in [0, 1] (Geiping et al. 2020, arXiv 2003.14053, eq. 4).

    Signed momentum in pixel space, begun at grey. R is total variation, of brightness and twice that of colour
    (`roughness`): 3 dB better than that of each channel on auxiliary CIFAR-10 records. Its weight decides most of the
    quality and is tuned on auxiliary records; it starts `fall` times as strong and falls to `tv` geometrically, so that
    short runs end smooth and long ones end exact. `step_size` is in pixel units, the largest of a half-cosine
    schedule. Restarts are halved successively.
    """

    family: ClassVar[str] = "matching"
    name: ClassVar[str] = "inverting-gradients"
    summary: ClassVar[str] = "match the gradient's direction under a total-variation prior (signed Adam)"
    source: ClassVar[str] = "Geiping et al. 2020"
    grid: ClassVar[Mapping[str, tuple[float, ...]]] = {
        "tv": (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
        "step_size": (0.05, 0.1, 0.2),
        "fall": (1.0, 10.0),
    }
    effort: ClassVar[tuple[Effort, ...]] = ("steps", "restarts")
    seeks_targets: ClassVar[bool] = True  # where labels are no classes and nothing tells them
    coarse: ClassVar[float] = 0.0  # share of the first step that follows areas, not pixels (`Pace`)

    steps: int = 400
    restarts: int = 1
    tv: float = 1e-3
    step_size: float = 0.1
    patience: int = 50  # steps without progress before an eighth of the schedule is skipped
    fall: float = 10.0

    def __post_init__(self) -> None:
        if min(self.steps, self.restarts, self.patience) < 1:
            raise ValueError("steps, restarts and patience must be at least 1")
        if max(self.steps, self.patience) > LONGEST:
            raise ValueError(f"steps and patience must be at most {LONGEST}")
        if self.tv < 0 or self.step_size <= 0:
            raise ValueError("tv must not be negative and step_size must be positive")
        if self.fall < 1:
            raise ValueError("fall must be at least 1")

    def distance(self, update: SharedUpdate, generator: torch.Generator) -> engine.Distance:
        """Return the distance that is minimised; attacks built against a defense override it."""
        return engine.cosine

    def matching(
        self, model: PixelModel, update: SharedUpdate, distance: engine.Distance, generator: torch.Generator
    ) -> Match:
        """Return the function that is minimised but for the prior; attacks on what replaces records override it.

        Where a victim's residual r is known (`residuals`) it is held fixed: ∇⟨r, f(x̂)⟩ is matched, not ∇ℓ(f(x̂), y).
        """
        fixed = residuals(model, update, generator)
        exact = fixed.isfinite().flatten(1).all(1)
        fewest, most = (bool(b) for b in (exact.all(), exact.any()))

        def part(images: Tensor, labels: Tensor, rows: Tensor, known: bool) -> tuple[Tensor, Tensor]:
            loss, told = (residual_loss, fixed[rows]) if known else (update.loss, labels)
            return engine.match(model, loss, images, told, update.gradients, distance, rows=rows)

        def match(images: Tensor, labels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            if fewest == most:  # of all victims or of none
                return part(images, labels, rows, most)
            values, slopes = images.new_zeros(len(images)), torch.zeros_like(images)
            for known in (False, True):
                here = (exact[rows] == known).nonzero()[:, 0]
                values[here], slopes[here] = part(images[here], labels[here], rows[here], known)
            return values, slopes

        return match

    def freed(self, model: PixelModel, update: SharedUpdate, labels: Tensor, generator: torch.Generator) -> Free | None:
        """Return how targets are sought beside the pictures, where labels are no classes and hold guessed groups alone.

        None where they are known, or need not be, since every victim's residual is (`residuals`), and for attacks that
        need their pictures as they are.
        """
        if not update.task.own_targets or labels.is_floating_point() or not self.seeks_targets:
            return None
        if bool(residuals(model, update, generator).isfinite().all()):
            return None
        return freed(model, update, generator)

    def priors(self, model: PixelModel, update: SharedUpdate) -> tuple[Prior, ...]:
        """Return what is added to the match beside smoothness; an attack that knows more of pictures adds to it."""
        return ()

    @memory_safe
    def __call__(self, model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> Reconstruction:
        """Invert every victim of `update`; all restarts of all victims are one stack of trials."""
        return self._inverted([self], model, update, generator)[0]

    def several(
        self, choices: Sequence[Attack], model: PixelModel, update: SharedUpdate, generator: torch.Generator
    ) -> list[Reconstruction]:
        """Return what each of `choices` does, in one stack where they differ in `tv`, `step_size` and `fall` alone."""
        same = {f.name for f in fields(self)} - {"tv", "step_size", "fall"}
        own = [choice for choice in choices if isinstance(choice, type(self))]
        alike = len(own) == len(choices) and all(getattr(c, n) == getattr(own[0], n) for c in own for n in same)
        if not alike or type(self).__call__ is not InvertingGradients.__call__:
            return super().several(choices, model, update, generator)
        state = generator.get_state()
        try:
            return self._inverted(own, model, update, generator)
        except (MemoryError, RuntimeError) as error:
            if not exhausted(error):
                raise
        found = []
        for choice in own:  # one by one, from the same random numbers: what is chosen must not depend on the memory
            if expired():
                break
            generator.set_state(state)
            found.append(choice(model, update, generator))
        return found

    def _inverted(
        self,
        choices: Sequence[InvertingGradients],
        model: PixelModel,
        update: SharedUpdate,
        generator: torch.Generator,
        start: Tensor | None = None,
    ) -> list[Reconstruction]:
        """Return each choice's reconstructions. Trials lie choice by choice, victim by victim, restart by restart.

        `start` are the pictures (V·restarts, B, C, H, W) to begin at, by default grey and noise (`starts`).
        """
        one = choices[0]
        trials = len(choices) * update.victims * one.restarts
        told = f"{trials} trials at once (restarts={one.restarts})"
        beside = COPIES * max(1, update.task.values) * prod(update.task.shape) if update.task.own_targets else 0
        with held(room_for(update, trials, COPIES, beside), told, "restarts or records", model.mean.device):
            return self._descended(choices, model, update, generator, start)

    def _descended(
        self,
        choices: Sequence[InvertingGradients],
        model: PixelModel,
        update: SharedUpdate,
        generator: torch.Generator,
        start: Tensor | None,
    ) -> list[Reconstruction]:
        labels = known_labels(model, update, generator)
        one = choices[0]
        distance = one.distance(update, generator)
        start = starts(model, update, one.restarts, generator) if start is None else start
        free = one.freed(model, update, labels, generator)
        seen = (model, update) if free is None else (free.model, free.update)
        match = one.matching(*seen, distance, generator)
        priors = one.priors(model, update)
        count, channels = update.victims, start.shape[2]
        if free is not None:
            start = free.begun(start, labels.repeat_interleave(one.restarts, 0))
        tv, fall, step_size = (
            torch.tensor([getattr(c, name) for c in choices], device=start.device, dtype=start.dtype)
            for name in ("tv", "fall", "step_size")
        )

        def objective(images: Tensor, which: Tensor, progress: Tensor) -> tuple[Tensor, Tensor]:
            victims, choice = which % count, which // count
            values, slopes = match(images, labels[victims], victims)
            pictures = images[:, :, :channels]
            for prior in (smooth(tv[choice], fall[choice], model.depth), *priors):
                value, slope = prior(pictures, progress)
                values = values + value
                slopes = torch.cat([slopes[:, :, :channels] + slope, slopes[:, :, channels:]], 2)
            if model.grey:
                slopes = torch.cat([tied(slopes[:, :, :channels]), slopes[:, :, channels:]], 2)
            return values, slopes

        which = torch.arange(len(choices) * count, device=start.device).repeat_interleave(one.restarts)
        with client_mode(model, update, generator):
            descent = descend(
                objective,
                start.repeat(len(choices), *[1] * (start.dim() - 1)),
                which,
                Pace(one.steps, step_size[which // count], one.patience, one.coarse, model.depth),
                label=one.name,
                restarts=one.restarts,
                channels=channels,
            )
        size = len(start)
        parts = [descent.part(k * size, (k + 1) * size) for k in range(len(choices))]
        told = [labels if free is None else free.groups(part.images)[:, : update.batch_size] for part in parts]
        return [
            best_restart(update, replace(part, images=part.images[:, :, :channels]), each, one.restarts)
            for part, each in zip(parts, told, strict=True)
        ]


def inversion_of(settings: InvertingGradients) -> InvertingGradients:
    """Return inverting gradients itself, at the settings of an attack that derives from it."""
    return InvertingGradients(**{f.name: getattr(settings, f.name) for f in fields(InvertingGradients)})
