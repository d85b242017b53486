"""Rows of a first dense layer's gradient: which hold one picture, and what the records of a batch span in them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from leakaudit.protocol.target import PixelModel

LOOSE = 3e-3  # how far a prediction may be off at most, relative
BOX = 0.01  # how far outside [0, 1] a pixel of a record may come out
SKETCH = 32  # numbers a ratio is compared by
LOOKS = 8  # directions beside a span that a prediction is held against first


@dataclass(frozen=True)
class Precision:
    """What the precision in which an update was computed leaves of it, relative.

    `rounding` is that of a row's ratio, with room for the order in which sums were taken; `spent`, of what a row held
    or was rid of, is the size below which what is left is rounding; `tolerances`, how far a prediction may be off, from
    the surest records, which are peeled first, to LOOSE; a record within `proof` is exact.
    """

    rounding: float
    spent: float
    least: float  # of the largest row
    tolerances: tuple[float, ...]
    proof: float


SINGLE = Precision(1e-5, 1e-4, 1e-9, (1e-4, 1e-3, LOOSE), 1e-3)
DOUBLE = Precision(1e-12, 1e-9, 1e-15, (1e-8, 1e-6, 1e-4, 1e-3, LOOSE), 1e-4)


def precision_of(gradient: Tensor) -> Precision:
    """Return the precision a gradient was computed in: single too where its numbers were widened afterwards."""
    return DOUBLE if bool((gradient != gradient.float()).any()) else SINGLE


@dataclass(frozen=True)
class Rows:
    """What is left of a first layer's gradient: `weight` (O, D) and `bias` (O,), in double precision.

    `scale` (O,) is the size of what a bias entry held or was rid of, so that rounding is precision.rounding·scale.
    """

    weight: Tensor
    bias: Tensor
    scale: Tensor
    precision: Precision

    def usable(self) -> Tensor:
        """Return a mask (O,) of the rows that hold more than rounding."""
        least = self.precision.least * float(self.scale.max())
        return self.bias.abs() > (self.precision.spent * self.scale).clamp_min(least)

    def ratios(self, which: Tensor) -> Tensor:
        """Return ∂W_j / ∂b_j (n, D) of rows `which` (n,)."""
        return self.weight[which] / self.bias[which, None]


@dataclass(frozen=True)
class Groups:
    """Rows of one ratio each: normalised pictures `flat` (n, D), `own` (n, O), which rows they are, and `rough` (n,).

    `rough` is how far rounding may have moved a picture, relative to its size.
    """

    flat: Tensor
    own: Tensor
    rough: Tensor

    def __getitem__(self, which: Tensor) -> Groups:
        return Groups(self.flat[which], self.own[which], self.rough[which])


def rows_of(weight: Tensor, bias: Tensor) -> Rows:
    """Return the rows of a gradient (O, D) and (O,) of which nothing was peeled."""
    return Rows(weight.double(), bias.double(), bias.double().abs(), precision_of(weight))


def grouped(rows: Rows, model: PixelModel, shape: tuple[int, int, int], generator: torch.Generator) -> Groups:
    """Return the rows whose ratio could be a picture, those of equal ratio together; the largest groups first."""
    which = rows.usable().nonzero()[:, 0]
    ratios = rows.ratios(which)
    inside = within(pictures_of(ratios, model, shape))
    which, ratios = which[inside], ratios[inside]
    drawn = torch.randn((ratios.shape[1], SKETCH), generator=generator, device=generator.device, dtype=torch.float64)
    sketch = ratios @ drawn.to(ratios.device) / SKETCH**0.5
    rounding = rows.precision.rounding * (1 + rows.scale[which] / rows.bias[which].abs())
    slack = rounding * (1 + ratios.square().sum(1)).sqrt()
    free = torch.ones(len(which), dtype=torch.bool, device=which.device)
    members = []
    for head in slack.argsort(stable=True).tolist():
        if free[head]:
            alike = free & ((sketch - sketch[head]).norm(dim=1) <= slack + slack[head])
            free &= ~alike
            members.append(alike)
    own = torch.zeros((len(members), len(rows.bias)), dtype=torch.bool, device=which.device)
    if members:
        own[:, which] = torch.stack(members)
    largest = own.sum(1).argsort(descending=True, stable=True)
    own = own[largest]
    weights = own * rows.bias
    power = (weights * rows.bias).sum(1)
    rough = rows.precision.rounding * (weights.abs() @ rows.scale) / power
    return Groups((weights @ rows.weight) / power[:, None], own, rough)


def pictures_of(flat: Tensor, model: PixelModel, shape: tuple[int, int, int]) -> Tensor:
    """Return pictures (n, C, H, W), not clamped, of normalised flat ones (n, D), in the model's precision."""
    return (flat.view(len(flat), *shape) * model.std + model.mean).to(model.mean.dtype)


def within(pictures: Tensor) -> Tensor:
    """Return which pictures (n, C, H, W) have no pixel outside [0, 1] by more than BOX (n,)."""
    return ((pictures > -BOX) & (pictures < 1 + BOX)).flatten(1).all(1)


@dataclass(frozen=True)
class Span:
    """What B records span in the rows of [∂W ∂b]: an orthonormal `basis` (O, ≤ B), and a few directions `beside` it.

    A direction's length beside the span is about that of its products with `beside` (O, LOOKS), and costs far less.
    `rank` is how many records at least differ, up to rounding.
    """

    basis: Tensor
    beside: Tensor
    rank: int

    def strange(self, slopes: Tensor, wanted: Tensor) -> Tensor:
        """Return what of directions (n, O) lies beside the span (n,), relative, exact where `wanted` (n,) and small."""
        sizes = slopes.norm(dim=1).clamp_min(1e-300)
        found: Tensor = (slopes @ self.beside).norm(dim=1) / sizes
        near = (wanted & (found <= 4 * LOOSE)).nonzero()[:, 0]
        some = slopes[near]
        found[near] = (some - (some @ self.basis) @ self.basis.T).norm(dim=1) / sizes[near]
        return found


def column_space(rows: Rows, batch: int, generator: torch.Generator) -> Span:
    """Return what so many records span in a layer's rows, by random projection."""
    width = min(batch + 8, rows.weight.shape[1] + 1)
    drawn = torch.randn(
        (rows.weight.shape[1] + 1, width), generator=generator, device=generator.device, dtype=torch.float64
    ).to(rows.weight.device)
    seen = torch.linalg.svd(rows.weight @ drawn[:-1] + rows.bias[:, None] * drawn[-1], full_matrices=False)
    basis: Tensor = seen.U[:, :batch]
    # Singular values of rounding alone are far smaller: `rounding` has room.
    rank = int(seen.S.gt(rows.precision.rounding / 10 * float(seen.S.max())).sum())
    looks = torch.randn((len(basis), LOOKS), generator=generator, device=generator.device, dtype=torch.float64)
    looks = looks.to(basis) / LOOKS**0.5
    return Span(basis, looks - basis @ (basis.T @ looks), rank)
