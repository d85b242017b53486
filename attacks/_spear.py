"""Separating the records of a batch by the zeros that ReLU leaves in a dense layer's slopes (SPEAR)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from leakaudit.attacks._rows import Rows
from leakaudit.work.progress import track

CHUNK = 4096  # samples that are solved together
LOOK = 64  # rows that a direction is tried on first
HITS = 6  # of these that must be zero on it: of a right one half are, of a wrong one none
APART = 1e-2  # sine of the angle below which two directions are one
AGREE = 0.99  # share of zeros and others that the layer must predict


@dataclass(frozen=True)
class Factors:
    """[∂W ∂b] (O, D+1) = left (O, b) · right (b, D+1), of rank b; `rows` (n,) are those that hold more than rounding.

    `unit` (n, b) are these rows of `left`, each of length one, and `zero` what counts as zero beside that.
    """

    left: Tensor
    right: Tensor
    rows: Tensor
    unit: Tensor
    zero: float


def factored(rows: Rows, most: int, size: float, generator: torch.Generator) -> Factors:
    """Return the factors of what is left of an update, of rank `most` at most, by random projection.

    `size` is the norm of the whole update: what is smaller than its rounding is no rank.
    """
    gradient = torch.cat([rows.weight, rows.bias[:, None]], 1)
    width = min(most + 8, *gradient.shape)
    drawn = torch.randn((gradient.shape[1], width), generator=generator, device=generator.device, dtype=torch.float64)
    found = torch.linalg.svd(gradient @ drawn.to(gradient) / gradient.shape[1] ** 0.5, full_matrices=False)
    noise = rows.precision.rounding / 10 * max(float(found.S[0]), size / len(gradient) ** 0.5)
    rank = int(found.S.gt(noise).sum())
    left = found.U[:, : min(rank, most)]
    lengths = left.norm(dim=1)
    usable = (lengths > 1e-4 * lengths.max()).nonzero()[:, 0] if rank else lengths.nonzero()[:, 0]
    zero = 30 * noise / float(found.S[max(0, rank - 1)].clamp_min(1e-300))
    return Factors(left, left.T @ gradient, usable, left[usable] / lengths[usable, None], zero)


class Pool:
    """Directions q (b,) with many zeros in left·q, each with their count."""

    def __init__(self, factors: Factors) -> None:
        self.factors = factors
        self.found: list[tuple[int, Tensor]] = []

    def add(self, direction: Tensor, sampled: Tensor) -> bool:
        """Take a direction that was solved from the rows `sampled` (b−1,), made exact on all its zeros, if it is new.

        The other zeros must determine it as well: a mixture of two records has zeros where both are off, which leave
        two dimensions, and a third row decided between them.
        """
        unit, size = self.factors.unit, len(direction)
        zeros = (unit @ direction).abs() < self.factors.zero
        others = zeros.clone()
        others[sampled] = False
        if int(others.sum()) < size:
            return False
        spread = torch.linalg.svd(unit[others], full_matrices=False)
        if float(spread.S[-2]) < APART * float(spread.S[0]):
            return False
        count, exact = 0, direction
        while int(zeros.sum()) > count:
            count, exact = int(zeros.sum()), torch.linalg.svd(unit[zeros], full_matrices=False).Vh[-1]
            zeros = (unit @ exact).abs() < self.factors.zero
        same = [i for i, (_, other) in enumerate(self.found) if float(1 - (exact @ other).square()) < APART**2]
        if any(self.found[i][0] >= count for i in same):
            return False
        self.found = [pair for i, pair in enumerate(self.found) if i not in same] + [(count, exact)]
        return True

    def best(self) -> Tensor | None:
        """Return b directions (b, b), one a column, that are independent, those of most zeros first; None if fewer."""
        size = self.factors.left.shape[1]
        chosen: list[Tensor] = []
        spanned = torch.zeros((size, 0), dtype=torch.float64, device=self.factors.left.device)
        for _, direction in sorted(self.found, key=lambda pair: -pair[0]):
            beside = direction - spanned @ (spanned.T @ direction)
            if float(beside.norm()) > APART:
                chosen.append(direction)
                spanned = torch.cat([spanned, (beside / beside.norm())[:, None]], 1)
        return torch.stack(chosen, 1) if len(chosen) == size else None


@dataclass(frozen=True)
class Separated:
    """Records that were told apart: normalised inputs `flat` (b, D), `slopes` (O, b), and how well they `agree`.

    `agree` is the share of entries where the layer itself, on these inputs, is off where the slopes are zero.
    """

    flat: Tensor
    slopes: Tensor
    agree: float


def _apart(factors: Factors, directions: Tensor, layer: nn.Linear) -> Separated:
    augmented = torch.linalg.solve(directions, factors.right)
    scale = augmented[:, -1]  # the input of the bias is one
    flat = augmented[:, :-1] / scale[:, None]
    slopes = (factors.left @ directions) * scale
    assert layer.bias is not None
    before = flat @ layer.weight.detach().double().T + layer.bias.detach().double()
    off = (factors.unit @ directions).abs() < factors.zero
    return Separated(flat, slopes, float(off.T.eq(before[:, factors.rows] <= 0).double().mean()))


def separated(factors: Factors, layer: nn.Linear, samples: int, generator: torch.Generator) -> Separated | None:
    """Return the records of a batch apart, or None where so many samples, or the time, did not do (Dimitrov 2024).

    ∂W = ΔXᵀ and ∂b = Δ1, so Δ = left·Q for one Q (b, b): a column of Q is orthogonal to the rows of `left` where ReLU
    is off for its record. b − 1 rows drawn at random are that with probability about b/2^(b−1), and then determine it,
    which many further zeros show. The scale of each follows from the bias, the inputs from Q⁻¹·right.
    """
    size, unit = factors.left.shape[1], factors.unit
    pool, best = Pool(factors), None
    if len(unit) < 2 * size:
        return None

    def drawn(high: int, shape: tuple[int, ...]) -> Tensor:
        return torch.randint(high, shape, generator=generator, device=generator.device).to(unit.device)

    look = unit[drawn(len(unit), (LOOK,))]
    last = torch.randn(size, generator=generator, device=generator.device, dtype=torch.float64).to(unit)
    aim = torch.zeros(size, dtype=torch.float64, device=unit.device)
    aim[-1] = 1
    for _ in track("samples", -(-samples // CHUNK)):
        sampled = drawn(len(unit), (CHUNK, size - 1))
        systems = torch.cat([unit[sampled], last.expand(CHUNK, 1, size)], 1)
        solved, _ = torch.linalg.solve_ex(systems, aim.expand(CHUNK, size))
        tried = (solved / solved.norm(dim=1, keepdim=True)).nan_to_num(1, 1, 1)
        zeros = ((tried @ look.T).abs() < factors.zero).sum(1)
        new = [pool.add(tried[i], sampled[i]) for i in (zeros >= HITS).nonzero()[:, 0].tolist()]
        directions = pool.best() if any(new) else None
        if directions is not None:
            found = _apart(factors, directions, layer)
            best = found if best is None or found.agree > best.agree else best
            if best.agree > AGREE:
                return best
    return best
