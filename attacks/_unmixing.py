"""Unmixing a dense layer's gradient into what the layer was given: whitening, independent components, and polishing.

∂W = Σ_i δ_i x_iᵀ and ∂b = Σ_i δ_i, so every row of [∂W ∂b] is a mixture of the B vectors [x_i 1] and, with as many
rows as records, these are found up to a B × B matrix. Independent components settle the matrix, and the last entry,
which is 1, sign and length. The slopes δ that the model gives for what was found settle it better still.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

GAUSSIAN = 0.374567  # E log cosh of a standard normal number
STEPS, SETTLED = 300, 1e-8  # of the fixed point, and how little a direction then turns
POLISHES = 200
EXACT = 1e-5  # of a gradient, that its records leave unexplained: rounding


@dataclass(frozen=True)
class Whitened:
    """Mixtures as B uncorrelated rows of unit variance (B, N), and the matrix (B, O) that makes them of the mixtures.

    `rank` is how many directions the mixtures had that are more than rounding.
    """

    rows: Tensor
    matrix: Tensor
    rank: int


def whitened(mixtures: Tensor, batch: int) -> Whitened:
    """Whiten mixtures (O, N) of `batch` signals in double precision. Raises ValueError where O < B."""
    if len(mixtures) < batch:
        raise ValueError(f"{len(mixtures)} mixtures cannot tell {batch} signals apart")
    centred = mixtures.double() - mixtures.double().mean(1, keepdim=True)
    values, vectors = torch.linalg.eigh(centred @ centred.T / centred.shape[1])
    values, vectors = values.flip(0)[:batch], vectors.flip(1)[:, :batch]
    rank = int((values > 1e-12 * values[0].clamp_min(1e-300)).sum())
    matrix = vectors.T / values.clamp_min(1e-12 * float(values[0]) + 1e-300).sqrt()[:, None]
    return Whitened(matrix @ centred, matrix, rank)


def decorrelated(directions: Tensor) -> Tensor:
    """Return the orthonormal matrix nearest to one (B, B)."""
    left, _, right = torch.linalg.svd(directions)
    nearest: Tensor = left @ right
    return nearest


def contrast(rows: Tensor) -> Tensor:
    """Return Σ_i (E log cosh(s_i) − E log cosh(ν))² of signals (B, N) of unit variance, ν standard normal.

    An approximation of their distance from normal ones (Hyvärinen 1999, IEEE TNN 10(3), eq. 7): none is nearer to
    normal than a mixture of them.
    """
    size = rows.abs()
    log_cosh = size + torch.log1p(torch.exp(-2 * size)) - math.log(2)
    return (log_cosh.mean(1) - GAUSSIAN).square().sum()


def independent(rows: Tensor, generator: torch.Generator, restarts: int) -> Tensor:
    """Return the orthonormal directions (B, B) of the independent components of whitened rows (B, N).

    The fixed point w ← E[z tanh(wᵀz)] − E[1 − tanh²(wᵀz)] w for all directions at once, made orthonormal at each step
    (FastICA, Hyvärinen 1999, eq. 20 and 45), from `restarts` random starts, of which the largest `contrast` is kept.
    """
    batch, count = rows.shape
    best, most = torch.eye(batch, dtype=rows.dtype, device=rows.device), -1.0
    for _ in range(restarts):
        drawn = torch.randn((batch, batch), generator=generator, device=generator.device, dtype=rows.dtype)
        directions = decorrelated(drawn.to(rows.device))
        for _ in range(STEPS):
            bent = torch.tanh(directions @ rows)
            moved = bent @ rows.T / count - (1 - bent.square()).mean(1, keepdim=True) * directions
            moved = decorrelated(moved)
            turned = float((1 - (moved * directions).sum(1).abs()).max())
            directions = moved
            if turned < SETTLED:
                break
        value = float(contrast(directions @ rows))
        if value > most:
            best, most = directions, value
    return best


def unmixed(
    weight: Tensor,
    bias: Tensor,
    batch: int,
    look: Callable[[Tensor], Tensor],
    restarts: int,
    generator: torch.Generator,
) -> Tensor:
    """Return the inputs (B, D) of a dense layer from its gradients (O, D) and (O,).

    Independence is looked for in `look` of the rows, linear and (O, N): what makes the signals sparse, as differences
    of neighbouring pixels do, tells them apart best.
    """
    weight, bias = weight.double(), bias.double()
    white = whitened(look(weight), batch)
    mixing = independent(white.rows, generator, restarts) @ white.matrix
    return (mixing @ weight) / (mixing @ bias)[:, None]


# (inputs (B, D)) -> the slopes (B, O) that the model gives for them, each under its likeliest label
Slopes = Callable[[Tensor], Tensor]


def left_over(weight: Tensor, bias: Tensor, inputs: Tensor, slopes: Tensor) -> float:
    """Return what share of a gradient's length records with these inputs (B, D) and slopes (B, O) do not explain.

    Each record may be scaled by a factor of its own, as clipping does.
    """
    shares = torch.linalg.lstsq(slopes.T, bias[:, None]).solution
    rest = (weight - (slopes * shares).T @ inputs).square().sum() + (bias - (slopes * shares).sum(0)).square().sum()
    return float((rest / (weight.square().sum() + bias.square().sum()).clamp_min(1e-300)).sqrt())


def polished(weight: Tensor, bias: Tensor, inputs: Tensor, slopes: Slopes) -> tuple[Tensor, float]:
    """Return inputs (B, D) that explain a gradient better, and what share of its length they leave.

    The slopes of near inputs are near the true ones, and least squares over all rows with them gives nearer inputs;
    again while that helps. Where the records are found, nothing but rounding is left.
    """
    weight, bias = weight.double(), bias.double()
    whole = torch.cat([weight, bias[:, None]], 1)
    best, least, patience = inputs, torch.inf, 0
    for _ in range(POLISHES):
        found = slopes(inputs)
        rest = left_over(weight, bias, inputs, found)
        best, least, patience = (inputs, rest, 0) if rest < least else (best, least, patience + 1)
        if least < EXACT or patience > 5 or not found.isfinite().all():
            break
        solved = torch.linalg.lstsq(found.T, whole).solution
        inputs = solved[:, :-1] / solved[:, -1:]
        if not bool(inputs.isfinite().all()):
            break
    return best, least
