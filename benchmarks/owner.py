"""What the owner of everything that a defense releases can compute of a record: numbers for `benchmarks.shadows`.

Larger means that the record is better known. Nothing here sees who was in the private set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leakaudit.defenses._class_code import ClassCode, fitted_code, grid_of, on_grid
from leakaudit.defenses._reference import Reference
from leakaudit.protocol.client import release
from leakaudit.protocol.defense import Defense, parts_of, replaces_records
from leakaudit.protocol.labels import hard, soft
from leakaudit.protocol.target import PixelModel, Records, Target
from leakaudit.score.membership import confidence
from leakaudit.score.nearness import nearest
from leakaudit.score.utility import renewal, shared_update, train
from leakaudit.work.seeding import derive, forked, generator_for

DRAWS = 4  # releases that are pooled where a defense draws anew and keeps no pictures
MOST = 4000  # pictures that the owner's student is taught
DIRECTIONS = (64, 256)  # leading principal ones, in which means are compared


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long models are trained: passes over as many records as the private set has, and over the pictures."""

    epochs: int = 12
    student: int = 15
    widths: tuple[int, ...] = (32, 64, 128)


def everything(defense: Defense, private: Records, generator: torch.Generator) -> Records:
    """Return all pictures that an owner has, with their probabilities or labels, at the size of the records."""
    for part in parts_of(defense):
        kept = getattr(part, "obscurer", None)
        if kept is not None:
            pictures = kept.pictures
            if pictures.shape[2:] != private.images.shape[2:]:
                pictures = F.interpolate(pictures, private.images.shape[2:], mode="bilinear", align_corners=False)
            return Records(pictures.float(), kept.labels.float())
    times = DRAWS if defense.renewable else 1
    drawn = [release(defense, private, generator) for _ in range(times)]
    return Records(torch.cat([each.images for each in drawn]), torch.cat([each.labels for each in drawn]))


def client_model(target: Target, defense: Defense, effort: Effort, seed: int) -> PixelModel:
    """Return the audited network, trained from fresh weights as clients of `target` would train it."""
    model = defense.transform_model(target.fresh(derive(seed, "client")), generator_for(seed, "client model"))
    released = release(defense, target.private, generator_for(seed, "released"))
    train(
        model,
        released,
        target.loss,
        epochs=effort.epochs,
        batch_size=32,
        seed=derive(seed, "client order"),
        update=shared_update(model, target.loss, defense, generator_for(seed, "noise")),
        renew=renewal(target, defense, derive(seed, "renew")) if defense.renewable else None,
        augment=target.augment,
        label="the clients' model",
    )
    return model


class Student(nn.Module):
    """The obscuring generator's own kind of network, with BatchNorm, as a classifier."""

    def __init__(self, channels: int, grid: tuple[int, int], classes: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.reference = Reference(channels, grid, classes, widths)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return logits (N, classes) of pictures in [0, 1]."""
        return self.reference.logits(pictures)


def student(shown: Records, classes: int, effort: Effort, *, mirror: bool, seed: int) -> PixelModel:
    """Return a network distilled from pictures with their probabilities (Hinton et al. 2015), at most `MOST` of them.

    Crops, and mirror images where the records may be mirrored, stand in for pictures that are not there.
    """
    order = torch.randperm(len(shown), generator=generator_for(seed, "shown"))[:MOST]
    channels, height, width = shown.images.shape[1:]
    with forked(derive(seed, "student")):
        model = PixelModel(Student(channels, (height, width), classes, effort.widths))
    train(
        model,
        shown[order.to(shown.labels.device)],
        F.cross_entropy,
        epochs=effort.student,
        batch_size=64,
        seed=derive(seed, "student order"),
        augment=("crop", "mirror") if mirror else ("crop",),
        label="the owner's student",
    )
    return model


@torch.no_grad()
def sureness(model: PixelModel, records: Records, *, mirror: bool) -> Tensor:
    """Return how sure a model is of records' labels (N,), `confidence`, averaged over small shifts and mirror images.

    Carlini et al. ask for every view's number; their mean is the statistic of equally correlated Gaussian ones.
    """
    found = []
    for images, labels in zip(torch.split(records.images, 250), torch.split(records.labels, 250), strict=True):
        views = [images, images.roll((1, 1), (2, 3)), images.roll((-1, -1), (2, 3))]
        views += [images.flip(3)] if mirror else []
        found.append(torch.stack([confidence(model(view), labels) for view in views]).mean(0))
    return torch.cat(found)


@dataclass(frozen=True)
class Population:
    """What is known of all records of a pool, members or not: their classes' means (K, D), and how they deviate."""

    classes: int
    centre: Tensor
    whitened: (
        Tensor  # (N, F): their deviations from the class's mean along the leading principal directions, variance 1
    )
    whitening: Tensor  # (D, F), the leading direction first


@torch.no_grad()
def population(records: Records, classes: int) -> Population:
    """Return what is known of a pool of records; at most a quarter as many directions as there are records."""
    flat = records.images.flatten(1).double()
    centre = _means(flat, soft(records.labels, classes))
    within = flat - centre[records.labels]
    powers, vectors = torch.linalg.eigh(within @ within.T / len(flat))
    kept = min(max(DIRECTIONS), len(flat) // 4, flat.shape[1])
    powers, vectors = powers[-kept:].flip(0).clamp_min(1e-9), vectors[:, -kept:].flip(1)
    whitening = within.T @ vectors / (len(flat) ** 0.5 * powers)
    return Population(classes, centre, within @ whitening, whitening)


@torch.no_grad()
def by_means(shown: Records, records: Records, known: Population, directions: int) -> Tensor:
    """Return how far records (N,) of a pool lie from the middle of their class towards where the pictures' mean lies.

    T(x) = ⟨W(x − μ_y), W(m_y − μ_y)⟩ with m_y the mean of the pictures of class y, weighted by their probabilities, μ_y
    that of the pool, members and others, and W whitening its leading principal directions: the test of Homer et al.
    (2008) on released frequencies, for means. A mean of n records lies nearer to each of them than to others.
    """
    means = _means(shown.images.flatten(1).double(), soft(shown.labels, known.classes))
    moved = (means - known.centre) @ known.whitening
    return (known.whitened * moved[records.labels])[:, :directions].sum(1)


def _means(flat: Tensor, weights: Tensor) -> Tensor:
    """Return the means (K, D) of rows (N, D) under weights (N, K)."""
    return (weights.to(flat) / weights.to(flat).sum(0).clamp_min(1e-9)).T @ flat


@torch.no_grad()
def by_code(defense: Defense, shown: Records, records: Records, classes: int, *, mirror: bool, seed: int) -> Tensor:
    """Return how short the records' codes are (N,): in a defense's own class statistics, else in its pictures'."""
    kept = (getattr(part, "code", None) for part in parts_of(defense))
    code = next((each for each in kept if isinstance(each, ClassCode)), None)
    if code is None:
        pictures = Records(shown.images[:MOST], hard(shown.labels)[:MOST])
        generator = generator_for(seed, "code")
        code = fitted_code(pictures, classes, latent=256, mirror=mirror, shared=0.2, generator=generator)
    small = on_grid(records.images, grid_of(*records.images.shape[2:]))
    return -code.encode(small.flatten(1), records.labels).norm(dim=1)


@torch.no_grad()
def features(model: PixelModel, images: Tensor) -> Tensor:
    """Return a student's penultimate features (N, F, 1, 1), of length 1."""
    network = model.network
    assert isinstance(network, Student)
    parts = [network.reference(part).flatten(1) for part in torch.split(images, 250)]
    return F.normalize(torch.cat(parts), dim=1)[..., None, None]


def statistics_of(
    target: Target, defense: Defense, records: Records, known: Population, effort: Effort, *, mirror: bool, seed: int
) -> tuple[dict[str, Tensor], PixelModel]:
    """Return numbers (N,) by name for the records of a pool, whose truth is not told, and the clients' model.

    `target.private` are the records that the defense was fitted on: they are released, and nothing else of them is
    used. Where the defense replaces no record, what is released is the model alone.
    """
    classes = len(target.classes)
    model = client_model(target, defense, effort, seed)
    found = {"clients' model": sureness(model, records, mirror=mirror)}
    if replaces_records(defense):
        shown = everything(defense, target.private, generator_for(seed, "shown"))
        taught = student(shown, classes, effort, mirror=mirror, seed=seed)
        found["student"] = sureness(taught, records, mirror=mirror)
        found["pictures"] = -nearest(records.images, shown.images, mirrored=mirror)
        near = nearest(features(taught, records.images), features(taught, shown.images))
        found["features"] = -near
        for directions in DIRECTIONS:
            found[f"means, {directions}"] = by_means(shown, records, known, directions)
        found["code"] = by_code(defense, shown, records, classes, mirror=mirror, seed=seed)
    return {name: each.double() for name, each in found.items()}, model
