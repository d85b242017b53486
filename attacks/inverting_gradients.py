"""Inverting gradients: match the direction of the shared gradient under a total-variation prior."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from leakaudit.attacks._attacking import client_mode, memory_safe, starts
from leakaudit.attacks._labels import known_labels
from leakaudit.attacks._optimise import best_restart, descend, roughness
from leakaudit.engine import matching as engine
from leakaudit.protocol.attack import Attack, Effort, Reconstruction
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.registry import register_attack
from leakaudit.protocol.target import PixelModel

# (pictures (T, B, C, H, W), labels (T, B), the update of each (T,)) -> (values (T,), slopes in the pictures)
Match = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

# (pictures (T, B, C, H, W), how much of its schedule each has behind it (T,) in [0, 1]) -> (values (T,), slopes like
# the pictures): what is expected of a picture besides the update. Slopes may follow the schedule, values must not.
Prior = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def smooth(weight: float, fall: float = 1.0) -> Prior:
    """Return the prior `weight` · `roughness`, whose slope begins `fall` times as strong and falls geometrically."""

    def prior(images: Tensor, progress: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = roughness(images)
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

    name: ClassVar[str] = "inverting-gradients"
    summary: ClassVar[str] = "match the gradient's direction under a total-variation prior (signed Adam)"
    source: ClassVar[str] = "Geiping et al. 2020"
    grid: ClassVar[Mapping[str, tuple[float, ...]]] = {
        "tv": (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
        "step_size": (0.05, 0.1, 0.2),
        "fall": (1.0, 10.0),
    }
    effort: ClassVar[tuple[Effort, ...]] = ("steps", "restarts")

    steps: int = 400
    restarts: int = 1
    tv: float = 1e-3
    step_size: float = 0.1
    patience: int = 50  # steps without progress before an eighth of the schedule is skipped
    fall: float = 10.0

    def __post_init__(self) -> None:
        if min(self.steps, self.restarts, self.patience) < 1:
            raise ValueError("steps, restarts and patience must be at least 1")
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
        """Return the function that is minimised but for the prior; attacks on what replaces records override it."""

        def match(images: Tensor, labels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            return engine.match(model, update.loss, images, labels, update.gradients, distance, rows=rows)

        return match

    def priors(self, model: PixelModel, update: SharedUpdate) -> tuple[Prior, ...]:
        """Return what is added to the match; an attack that knows more of pictures adds to what `super()` returns."""
        return (smooth(self.tv, self.fall),)

    @memory_safe
    def __call__(self, model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> Reconstruction:
        """Invert every victim of `update`; all restarts of all victims are one stack of trials."""
        labels = known_labels(model, update, generator)
        distance = self.distance(update, generator)
        start = starts(model, update, self.restarts, generator)
        match = self.matching(model, update, distance, generator)
        priors = self.priors(model, update)

        def objective(images: Tensor, victims: Tensor, progress: Tensor) -> tuple[Tensor, Tensor]:
            values, slopes = match(images, labels[victims], victims)
            for prior in priors:
                value, slope = prior(images, progress)
                values, slopes = values + value, slopes + slope
            return values, slopes

        victims = torch.arange(update.victims, device=start.device).repeat_interleave(self.restarts)
        with client_mode(model, update, generator):
            descent = descend(
                objective,
                start,
                victims,
                steps=self.steps,
                step_size=self.step_size,
                patience=self.patience,
                label=self.name,
                restarts=self.restarts,
            )
        return best_restart(update, descent, labels, self.restarts)
