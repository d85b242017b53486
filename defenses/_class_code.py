"""A Gaussian scale mixture per class: the statistics that pictures of a class are drawn from."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leakaudit.defenses.gaussian import normal_like
from leakaudit.protocol.target import Records
from leakaudit.work.memory import need

MAX_SIDE = 64  # larger pictures are generated at this size and enlarged
MAX_MEASURED = 2000  # records from which the shared basis is computed
SHRINKAGE = 8.0  # a class of n records counts n/(n + 8) against the statistics of all of them


def on_grid(images: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return pictures (N, C, H, W) averaged down to `grid`, or as they are if they have that size."""
    return images if tuple(images.shape[2:]) == grid else F.interpolate(images, grid, mode="area")


def grid_of(height: int, width: int) -> tuple[int, int]:
    """Return the size at which pictures of this size are generated: their own up to `MAX_SIDE`."""
    scale = min(1.0, MAX_SIDE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


class ClassCode(nn.Module):
    """A code per class, near N(0, I): x ≈ centre + (m_y + s L_y z)·V with s = exp(a_y + b_y ξ); the code is (z, ξ).

    Pictures of a class differ in contrast, so its deviations from the mean are a Gaussian scale mixture (Wainwright and
    Simoncelli 1999) rather than a Gaussian: s is a record's contrast, and the last of its k + 1 code entries tells it.
    V (k, D) are the leading principal directions of all records, at most a quarter as many as there are records, so
    that no direction belongs to a single one; m_y and L_y L_yᵀ are the mean and covariance of class y in them, shrunk
    towards those of all classes where a class is small. L_y = directions · diag(spread).
    """

    centre: Tensor
    basis: Tensor
    means: Tensor
    directions: Tensor
    spread: Tensor
    contrast: Tensor  # (classes, 2): a_y and b_y

    def __init__(self, channels: int, grid: tuple[int, int], classes: int, entries: int) -> None:
        super().__init__()
        self.shape = (channels, *grid)
        pixels, latent = channels * grid[0] * grid[1], entries - 1
        self.register_buffer("centre", torch.zeros(pixels))
        self.register_buffer("basis", torch.zeros(latent, pixels))
        self.register_buffer("means", torch.zeros(classes, latent))
        self.register_buffer("directions", torch.zeros(classes, latent, latent))
        self.register_buffer("spread", torch.ones(classes, latent))
        self.register_buffer("contrast", torch.zeros(classes, 2))

    @torch.no_grad()
    def measure(self, flat: Tensor, labels: Tensor, generator: torch.Generator, shared: float = 0.0) -> None:
        """Take the statistics of flat pictures (N, D).

        `shared` in [0, 1] is how much of all classes' covariance is mixed into each class's own, which is estimated
        from few records per direction and so remembers them.
        """
        latent = self.basis.shape[0]
        self.centre.copy_(flat.mean(0))
        chosen = torch.randperm(len(flat), generator=generator, device=generator.device)[:MAX_MEASURED].to(flat.device)
        part = (flat[chosen] - self.centre).double()
        powers, vectors = torch.linalg.eigh(part @ part.T)
        leading = vectors[:, -latent:].flip(1).T @ part
        self.basis.copy_(leading / powers[-latent:].flip(0).clamp_min(1e-12).sqrt()[:, None])
        coordinates = (flat - self.centre) @ self.basis.T
        within = coordinates.clone()
        sizes = torch.bincount(labels, minlength=len(self.means)).to(flat)
        for c in torch.unique(labels):
            mine = labels == c
            weight = sizes[c] / (sizes[c] + SHRINKAGE)
            self.means[c] = weight * coordinates[mine].mean(0)
            within[mine] -= coordinates[mine].mean(0)
        lengths = within.norm(dim=1).clamp_min(1e-6)
        for c in torch.unique(labels):
            lengths[labels == c] /= lengths[labels == c].square().mean().sqrt()
        logs = lengths.log().clamp_min(-3)
        unit = within / logs.exp()[:, None]
        pooled = unit.T @ unit / len(unit)
        for c in range(len(self.means)):
            mine, level = unit[labels == c], logs[labels == c]
            own = (mine.T @ mine + SHRINKAGE * pooled) / (sizes[c] + SHRINKAGE)
            covariance = (1 - shared) * own + shared * pooled
            covariance += 1e-3 * covariance.diagonal().mean() * torch.eye(latent, device=flat.device)
            values, self.directions[c] = torch.linalg.eigh(covariance)
            self.spread[c] = values.clamp_min(1e-12).sqrt()
            total = sizes[c] + SHRINKAGE
            mean = (level.sum() + SHRINKAGE * logs.mean()) / total
            square = (level.square().sum() + SHRINKAGE * logs.square().mean()) / total
            self.contrast[c] = torch.stack([mean, (square - mean.square()).clamp_min(1e-4).sqrt()])

    def encode(self, flat: Tensor, labels: Tensor) -> Tensor:
        """Return the codes (N, k + 1) of flat pictures (N, D)."""
        within = (flat - self.centre) @ self.basis.T - self.means[labels]
        rms = self.spread[labels].square().sum(1).sqrt()
        logs = (within.norm(dim=1) / rms).clamp_min(1e-6).log().clamp_min(-3)
        told = (logs - self.contrast[labels, 0]) / self.contrast[labels, 1]
        turned = self._turned(within / logs.exp()[:, None], labels, back=True) / self.spread[labels]
        return torch.cat([turned, told[:, None]], 1)

    def decode(self, codes: Tensor, labels: Tensor) -> Tensor:
        """Return flat pictures (N, D) of codes (N, k + 1)."""
        level = (self.contrast[labels, 0] + self.contrast[labels, 1] * codes[:, -1]).clamp(-3, 1)
        turned = self._turned(codes[:, :-1] * self.spread[labels], labels, back=False)
        return self.centre + (self.means[labels] + level.exp()[:, None] * turned) @ self.basis

    def pictures(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Return one unclamped picture (N, C, h, w) on the grid per label (N,), its code drawn from N(0, I)."""
        codes = normal_like(self.centre.new_empty(len(labels), self.basis.shape[0] + 1), generator)
        return self.decode(codes, labels).view(-1, *self.shape)

    def _turned(self, rows: Tensor, labels: Tensor, *, back: bool) -> Tensor:
        # Class by class: gathering a k×k matrix per record would need gigabytes.
        order = torch.argsort(labels, stable=True)
        present, counts = torch.unique_consecutive(labels[order], return_counts=True)
        parts = zip(present.tolist(), torch.split(rows[order], counts.tolist()), strict=True)
        turned = [part @ (self.directions[c] if back else self.directions[c].T) for c, part in parts]
        return torch.cat(turned)[torch.argsort(order)] if turned else rows


def latent_of(latent: int, records: int) -> int:
    """Return how many code entries are used: `latent`, but at most a quarter of the number of records, at least 2."""
    return max(2, min(latent, math.ceil(records / 4)))


def records_on_grid(records: Records, grid: tuple[int, int]) -> Records:
    """Return float32 records at the generator's size."""
    return Records(on_grid(records.images.float(), grid), records.labels.long())


def fitted_code(
    records: Records, classes: int, *, latent: int, mirror: bool, shared: float, generator: torch.Generator
) -> ClassCode:
    """Return the statistics of records (N, C, H, W), on the grid of their size.

    With `mirror` a record's mirror image counts as another record of its class. At most `latent` entries, and a
    quarter of the records.
    """
    channels, height, width = records.images.shape[1:]
    grid = grid_of(height, width)
    size = 4 * 4 * (classes + 1) * latent_of(latent, len(records)) ** 2
    told = f"{latent_of(latent, len(records))} latent entries for each of {classes} classes"
    need(size, told, "of them (latent)", records.labels.device)
    code = ClassCode(channels, grid, classes, latent_of(latent, len(records)))
    code.to(records.images.device).requires_grad_(False)
    images, labels = on_grid(records.images.float(), grid), records.labels.long()
    if mirror:
        images, labels = torch.cat([images, images.flip(3)]), labels.repeat(2)
    code.measure(images.flatten(1), labels, generator, shared)
    return code
