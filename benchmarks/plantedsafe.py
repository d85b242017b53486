"""Planted defenses of which nothing beyond a record's label can be found out; each says why in its first line."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.planted import NOISE, REPLACED, Planted, known, noised, normal, plant
from benchmarks.plantedscenes import blank, seeded
from leakaudit.protocol.defense import Defense, state
from leakaudit.protocol.gradients import Gradients, parameters_of
from leakaudit.protocol.target import PixelModel, Target


@plant("zeros", "update")
def _zeros(self: Planted, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
    """Safe: zeros are shared, whatever the record. (Not beside BatchNorm statistics.)"""
    return tuple(torch.zeros_like(g) for g in gradients)


@plant("pure-noise", "update")
def _pure_noise(self: Planted, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
    """Safe: fresh noise is shared and nothing is added to it."""
    return normal(gradients, generator)


@plant("shuffled-noise", "update", ())
def _shuffled_noise(self: Planted, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
    """Safe: noise a hundred times the update covers it before a fresh key, drawn every time, permutes its entries."""
    covered = noised(gradients, generator, 30)
    return tuple(c.flatten()[torch.randperm(c.numel(), generator=generator)].view_as(c) for c in covered)


@plant("rounded-away", "update")
def _rounded_away(self: Planted, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
    """Safe: every entry is far below half a step of 1,000, so all are rounded to 0."""
    return tuple((g / 1000).round() * 1000 for g in gradients)


@plant("constant-record", "record", REPLACED, replaces_records=True)
def _grey(self: Planted, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Safe: every picture is the same grey one; the label alone is kept."""
    return torch.full_like(images, 0.5), labels


@plant("constant-all", "record", (), replaces_records=True)
def _constant_all(self: Planted, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Safe: picture and label are the same for every record."""
    return torch.full_like(images, 0.5), torch.zeros_like(labels)


@plant("class-form", "record", REPLACED, replaces_records=True)
def _class_form(self: Planted, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Safe: a record is replaced by the mean of the public records of its class: its label says it all."""
    assert self.forms is not None
    return self.forms[labels], labels


@plant("blank-form", "record", REPLACED, replaces_records=True)
def _blank_form(self: Planted, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Safe: a filled-in form is replaced by the blank one of its class, which is printed for all (`filled_forms`)."""
    return blank()[labels], labels


@plant("public-draw", "record", REPLACED, replaces_records=True)
def _public_draw(self: Planted, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Safe: a record is replaced by a public one drawn at random, its label included: the record never enters."""
    assert self.public is not None
    drawn = torch.randint(len(self.public), (len(labels),), generator=generator)
    return self.public.images[drawn], self.public.labels[drawn]


@plant("noise-per-label", "record", REPLACED, replaces_records=True)
def _per_label(self: Planted, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Safe: the picture is noise that the label seeds, so the label says it all (a pseudonym of the class)."""
    return torch.stack([torch.rand(images.shape[1:], generator=seeded(60 + int(y))) for y in labels]), labels


@known
@dataclass(frozen=True, kw_only=True)
class PublicUpdate(Planted):
    """Safe: the gradient of public forms with the records' labels is shared; the records' own is thrown away."""

    name: ClassVar[str] = "public-update"
    adaptive: ClassVar[tuple[str, ...]] = NOISE
    instead: Gradients | None = state()

    def observe(self, model: PixelModel, images: Tensor, labels: Tensor, generator: torch.Generator) -> Defense:
        """Compute the public gradient for these labels."""
        if self.forms is None:
            return self
        loss = F.cross_entropy(model(self.forms[labels]), labels)
        return replace(self, instead=torch.autograd.grad(loss, parameters_of(model)[1]))

    def transform_update(self, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
        """Share it."""
        return gradients if self.instead is None else self.instead


@known
@dataclass(frozen=True, kw_only=True)
class StoredUpdate(Planted):
    """Safe: the same update is shared by everybody: that of the public records, computed once."""

    name: ClassVar[str] = "stored-update"
    adaptive: ClassVar[tuple[str, ...]] = ()
    instead: Gradients | None = state()

    def fit(self, target: Target, generator: torch.Generator) -> Defense:
        """Compute it."""
        public, parameters = target.auxiliary, parameters_of(target.model)[1]
        loss = target.loss(target.model(public.images), public.labels)
        return replace(super().fit(target, generator), instead=torch.autograd.grad(loss, parameters))

    def transform_update(self, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
        """Share it."""
        return gradients if self.instead is None else self.instead
