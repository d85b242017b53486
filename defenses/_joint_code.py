"""What records look like and what references see in them, as one Gaussian scale mixture per class to draw from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from leakaudit.defenses._class_code import ClassCode, latent_of
from leakaudit.defenses._reference import Reference
from leakaudit.protocol.target import Records
from leakaudit.work.memory import need

MOST_ROWS = 6000  # records and mirror images that the statistics are taken of
PART = 250


@dataclass(frozen=True)
class Sketches:
    """Drawn pictures (N, C, h, w), and for every reference the maps it should see in them, each (N, D)."""

    pictures: Tensor
    maps: tuple[tuple[Tensor, ...], ...]


@dataclass(frozen=True)
class JointCode:
    """A `ClassCode` of long rows: a picture, then each reference's maps of it, every part over its own spread.

    Pixels and maps are drawn together, so that the maps are those of one picture and not of a class.
    """

    code: ClassCode
    shape: tuple[int, int, int]
    widths: tuple[int, ...]  # entries of each part
    spreads: tuple[float, ...]  # of each part, the root of the mean squared distance from its mean
    references: int

    def draw(self, labels: Tensor, generator: torch.Generator) -> Sketches:
        """Return one sketch per label (N,)."""
        rows = self.code.pictures(labels, generator).flatten(1)
        parts = [
            part * spread for part, spread in zip(torch.split(rows, list(self.widths), 1), self.spreads, strict=True)
        ]
        each = (len(parts) - 1) // self.references
        maps = tuple(tuple(parts[1 + r * each : 1 + (r + 1) * each]) for r in range(self.references))
        return Sketches(parts[0].view(-1, *self.shape).clamp(0, 1), maps)

    def spread_of(self, reference: int) -> tuple[float, ...]:
        """Return the spreads of one reference's maps."""
        each = (len(self.spreads) - 1) // self.references
        return self.spreads[1 + reference * each : 1 + (reference + 1) * each]


@torch.no_grad()
def joint_code(
    records: Records,
    references: Sequence[Reference],
    classes: int,
    *,
    latent: int,
    mirror: bool,
    shared: float,
    generator: torch.Generator,
) -> JointCode:
    """Return the statistics of records (N, C, H, W) on the references' grid, mirror images counted with `mirror`.

    Each class keeps a mean and a covariance over at most `latent` directions and a quarter of the records, as in
    `class-conditional`, but of pictures together with what the references see in them.
    """
    images, labels = records.images.float(), records.labels.long()
    if mirror:
        images, labels = torch.cat([images, images.flip(3)]), labels.repeat(2)
    if len(images) > MOST_ROWS:
        chosen = torch.randperm(len(images), generator=generator, device=generator.device)[:MOST_ROWS]
        images, labels = images[chosen.to(images.device)], labels[chosen.to(labels.device)]
    entries = latent_of(latent, len(records))
    size = 4 * 4 * (classes + 1) * entries**2
    need(size, f"{entries} latent entries for each of {classes} classes", "of them (latent)", images.device)
    columns = [images.flatten(1)]
    for reference in references:
        maps = [reference.maps(part) for part in torch.split(images, PART)]
        columns += [torch.cat(parts) for parts in zip(*maps, strict=True)]
    need(8 * len(images) * sum(c.shape[1] for c in columns), "what references see in the records", "", images.device)
    spreads = [max(float((c - c.mean(0)).square().sum(1).mean().sqrt()), 1e-6) for c in columns]
    rows = torch.cat([c / spread for c, spread in zip(columns, spreads, strict=True)], 1)
    code = ClassCode(rows.shape[1], (1, 1), classes, entries)
    code.to(images.device).requires_grad_(False)
    code.measure(rows, labels, generator, shared)
    channels, height, width = records.images.shape[1:]
    widths = tuple(int(c.shape[1]) for c in columns)
    return JointCode(code, (channels, height, width), widths, tuple(spreads), len(references))
