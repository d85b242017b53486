"""Pictures drawn from noisy statistics: class means and one covariance of low frequencies."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from leakaudit.defenses._private_features import unit
from leakaudit.defenses._private_release import Budget
from leakaudit.protocol.target import Records

FREQUENCIES = 100  # of all channels together, at most
COLOUR = 0.2  # of the variance of grey, assumed for differences of channels
SCALE = 2.5  # so that most pictures' codes are shorter than 1
MEANS, MOMENTS = 0.08, 0.15  # shares of the budget


class Sketch:
    """Codes (N, R) of pictures (N, C, H, W): cosine coefficients of low frequencies, scaled by an assumed spectrum."""

    def __init__(self, shape: tuple[int, int, int], device: torch.device) -> None:
        self.shape = shape
        channels, height, width = shape
        mixed = _cosines(channels, device)  # the first row is grey, the others are differences
        rows, columns = _cosines(height, device), _cosines(width, device)
        colour = torch.full((channels,), COLOUR, device=device)
        colour[0] = 1.0
        squares = torch.arange(height, device=device)[:, None] ** 2 + torch.arange(width, device=device)[None] ** 2
        assumed = (colour[:, None, None] / (1 + squares)).flatten()
        chosen = assumed.argsort(descending=True, stable=True)[:FREQUENCIES]
        power = assumed[chosen] / assumed[chosen].sum() * math.prod(shape)
        self.scale = SCALE / (power * len(chosen)).sqrt()
        c, u, v = chosen // (height * width), chosen // width % height, chosen % width
        self.basis = torch.einsum("rc,rh,rw->rchw", mixed[c], rows[u], columns[v]).flatten(1)

    def codes(self, pictures: Tensor) -> Tensor:
        """Return codes of length at most 1: longer ones are scaled down."""
        found = (pictures.flatten(1) - 0.5) @ self.basis.T * self.scale
        return torch.where(found.norm(dim=1, keepdim=True) < 1, found, unit(found))

    def pictures(self, codes: Tensor) -> Tensor:
        """Return pictures (N, C, H, W) in [0, 1] of codes (N, R)."""
        return ((codes / self.scale) @ self.basis + 0.5).clamp(0, 1).view(-1, *self.shape)


def _cosines(size: int, device: torch.device) -> Tensor:
    """Return the orthonormal cosine basis (size, size), rows by frequency."""
    places = torch.arange(size, device=device)
    basis = torch.cos(math.pi / size * (places[None] + 0.5) * places[:, None]) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis


def sketched(
    records: Records, counts: Tensor, count: int, budget: Budget, *, mirror: bool, generator: torch.Generator
) -> Tensor:
    """Return `count` pictures like records (N, C, H, W), as many of each class, from noisy sums of their codes alone.

    Released are the sum of the codes z of each class, and the sum of z zᵀ over all records: a record moves either by at
    most 1, as ‖z‖ ≤ 1. `counts` (K,) are noisy already. With `mirror` codes are averaged over mirror images, and
    products of them likewise. A picture is a class mean plus a Gaussian with the covariance within classes, of which
    directions that noise alone would give are left out.
    """
    sketch = Sketch((records.images.shape[1], records.images.shape[2], records.images.shape[3]), records.images.device)
    classes = len(counts)
    images = records.images.clamp(0, 1)
    views = [sketch.codes(x).double() for x in ((images, images.flip(3)) if mirror else (images,))]
    told = torch.nn.functional.one_hot(records.labels, classes).double()
    sums = told.T @ (sum(views, torch.zeros_like(views[0])) / len(views))
    means = budget.release("the sums of codes by class", sums, 1.0, MEANS, generator) / counts[:, None]
    size = sums.shape[1]
    upper = torch.triu_indices(size, size, device=sums.device)
    weight = torch.where(upper[0] == upper[1], 1.0, math.sqrt(2)).double()  # so that L2 is that of the whole matrix
    moment = sum((z.T @ z for z in views), torch.zeros(size, size, dtype=torch.float64, device=sums.device))
    halves = (moment / len(views))[upper[0], upper[1]] * weight
    halves = budget.release("the sum of products of codes", halves, 1.0, MOMENTS, generator) / weight
    square = torch.zeros_like(moment)
    square[upper[0], upper[1]] = halves
    square = square + square.T - square.diagonal().diag()
    within = square / counts.sum() - (means.T * (counts / counts.sum())) @ means
    powers, vectors = torch.linalg.eigh(within)
    edge = budget.spent[-1].std * math.sqrt(2 * size) / float(counts.sum())  # of the eigenvalues of noise alone
    spread = torch.where(powers > edge, powers, torch.zeros_like(powers)).sqrt()
    noise = torch.randn(count, size, dtype=torch.float64, generator=generator, device=generator.device)
    drawn = means[torch.arange(count, device=sums.device) % classes] + (noise.to(sums.device) * spread) @ vectors.T
    return sketch.pictures(drawn.to(images))
