"""Features of pictures that no record has a part in: filters and scales come from procedural pictures alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from leakaudit.defenses._procedural import procedural

FILTERS = 128  # each gives two maps, what exceeds THRESHOLD and what falls below its negative
SIZE = 6  # pixels, of their patches, or half of the shorter side
POOL = 3  # a map is averaged over this many parts of the picture in each direction
THRESHOLD = 0.5
CONTRAST = 10 / 255  # added to a patch's variance, in units of pixels squared
LEAST = 0.1  # added to the patches' spectrum before it is flattened
FITTED = 4000  # procedural pictures that filters and scales are taken from
SHRINKAGE = 3e-3  # of the largest of the features' variances, added to all before they are flattened
UNIT = 1 - 1e-6  # no feature vector is longer, whatever rounding does
PATCHES = 40  # of a picture
BATCH = 200 * 32 * 32  # pixels at a time: their maps take 150 MB


@dataclass(frozen=True)
class Features:
    """φ: pictures (N, C, H, W) in [0, 1] to vectors (N, D) of length at most 1, each of its own picture alone.

    One layer of whitened patch filters with two-sided thresholds, averaged over 3×3 parts of the picture (Coates, Lee
    and Ng 2011; patches as filters: Coates and Ng 2011), then turned and scaled to a flat spectrum and brought to
    length 1.
    """

    filters: Tensor  # (K, C, s, s)
    offsets: Tensor  # (K,)
    mean: Tensor  # (F,) of the averaged maps over procedural pictures
    turn: Tensor  # (F, D): centred maps @ turn has a flat spectrum over procedural pictures

    def maps(self, pictures: Tensor) -> Tensor:
        """Return averaged maps (N, F), F = 2·K·pool²."""
        count, (_, channels, height, width) = self.filters[0].numel(), self.filters.shape
        pool = min(POOL, *(side - size + 1 for side, size in zip(pictures.shape[2:], (height, width), strict=True)))
        box = self.filters.new_full((1, channels, height, width), 1 / count)
        found = []
        for part in torch.split(pictures, max(1, BATCH // pictures[0, 0].numel()) if len(pictures) else 1):
            mean = F.conv2d(part, box)
            variance = (F.conv2d(part.square(), box) - mean.square()).clamp_min(0)
            told = F.conv2d(part, self.filters) - mean * self.filters.sum((1, 2, 3))[:, None, None]
            told = told / (variance + CONTRAST).sqrt() - self.offsets[:, None, None]
            both = torch.cat([(told - THRESHOLD).relu(), (-told - THRESHOLD).relu()], 1)
            found.append(F.adaptive_avg_pool2d(both, pool).flatten(1))
        return torch.cat(found) if found else self.mean.new_zeros(0, len(self.mean))

    def __call__(self, pictures: Tensor, *, mirror: bool) -> Tensor:
        """Return φ (N, D). With `mirror` the maps are averaged over a picture and its mirror image."""
        maps = self.maps(pictures)
        if mirror:
            maps = (maps + self.maps(pictures.flip(3))) / 2
        return unit((maps - self.mean) @ self.turn)


def unit(rows: Tensor) -> Tensor:
    """Return rows (N, D) scaled to length 1 and not more, in exact arithmetic or not; a row of no numbers becomes 0."""
    rows = torch.nan_to_num(rows, nan=0.0, posinf=0.0, neginf=0.0)
    lengths = rows.double().norm(dim=1, keepdim=True)
    scaled: Tensor = rows * (UNIT / lengths.clamp_min(1e-12)).to(rows)
    return scaled


def fitted_features(shape: tuple[int, int, int], device: torch.device, generator: torch.Generator) -> Features:
    """Return features for pictures of `shape` (C, H, W), fitted on procedural ones of `generator`."""
    pictures = procedural(FITTED, shape, generator).to(device)
    size = max(1, min(SIZE, min(shape[1:]) // 2))
    patches = _patches(pictures, size, generator)
    centre = patches.mean(0)
    width = patches.shape[1]
    powers, vectors = torch.linalg.eigh(torch.cov((patches - centre).T).view(width, width))
    flat = (vectors * (powers.clamp_min(0) + LEAST).rsqrt()) @ vectors.T
    chosen = torch.randperm(len(patches), generator=generator, device=generator.device)[:FILTERS].to(device)
    filters = F.normalize((patches[chosen] - centre) @ flat, dim=1) @ flat
    empty = filters.new_zeros(0)
    bare = Features(filters.view(-1, shape[0], size, size), filters @ centre, empty, empty)
    maps = bare.maps(pictures)
    mean, scale = maps.mean(0), maps.std(0) + 1e-6
    rows = (maps - mean) / scale
    powers, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    powers = powers.clamp_min(0)
    turn = vectors * (powers + SHRINKAGE * powers.max()).rsqrt()
    return Features(bare.filters, bare.offsets, mean, turn / scale[:, None])


def _patches(pictures: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Return patches (P, C·size²) drawn from the pictures, each of mean 0 and, but for `CONTRAST`, variance 1."""
    count, _, height, width = pictures.shape
    total = min(PATCHES * count, 80_000)
    which = torch.randint(count, (total,), generator=generator, device=generator.device).to(pictures.device)
    top = torch.randint(height - size + 1, (total,), generator=generator, device=generator.device).to(pictures.device)
    left = torch.randint(width - size + 1, (total,), generator=generator, device=generator.device).to(pictures.device)
    span = torch.arange(size, device=pictures.device)
    rows, columns = (top[:, None] + span)[:, :, None], (left[:, None] + span)[:, None, :]
    found = pictures.movedim(1, 3)[which[:, None, None], rows, columns].movedim(3, 1).flatten(1)
    found = found - found.mean(1, keepdim=True)
    return found / (found.var(1, keepdim=True, unbiased=False) + CONTRAST).sqrt()
