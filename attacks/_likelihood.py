"""How well what each candidate would have sent explains what was sent: scores of replays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from leakaudit.attacks._linking import Scores

MODEL = 1e-3  # of the variance between candidates: what a replay may miss without being ruled out
SAME, OTHER = 1e-3, 5e-2  # of how far off candidates usually are: equal but for rounding; clearly another record's
FAR = 1e4  # variances: no more is held against a candidate for one entry
DRAWN = 1e-6  # variance of a part beside its mean square: more than rounding
ENTRY = 1e-5  # of an entry: equal but for rounding
ROUNDING = 1e-4  # of a part's length
MAGNITUDES = 8  # different ones, from which on a part is no coincidence: signs and levels repeat by chance


@dataclass(frozen=True)
class Noise:
    """What the randomness of a defense does to the rows of a client."""

    variance: Tensor  # (F,) of an entry, the record held fixed
    residuals: Tensor  # (n, F): draws less their mean over the same record
    steady: bool  # every draw is the same, bit for bit


def noise_of(runs: Sequence[Tensor]) -> Noise:
    """Measure the noise on draws (K, F) of each of several records."""
    steady = all(bool((rows == rows[0]).all()) for rows in runs)
    residuals = torch.cat([rows - rows.mean(0) for rows in runs])
    if steady:
        residuals = torch.zeros_like(residuals)
    degrees = max(1, len(residuals) - len(runs))
    return Noise(residuals.square().sum(0) / degrees, residuals, steady)


@dataclass(frozen=True)
class Replays:
    """Rows (U, K, F) of U candidates, K draws each under the same K seeds; and without the defense, (U, F)."""

    rows: Tensor
    bare: Tensor | None
    noise: Noise
    widths: tuple[int, ...]  # of the row, part by part
    draws: int  # behind the mean of the rows
    modes: tuple[int, ...] = ()  # which of the K are a function of the record, though others are drawn at random

    @property
    def every(self) -> Tensor:
        """All that a candidate may have sent, (U, K or K + 1, F)."""
        return self.rows if self.bare is None else torch.cat([self.rows, self.bare[:, None]], 1)

    @property
    def variance(self) -> Tensor:
        """σ² (F,), as measured beforehand or on these candidates, whichever is more: noise may depend on the record."""
        if self.rows.shape[1] < 2:
            return self.noise.variance
        return torch.maximum(self.noise.variance, self.rows.var(1).mean(0))


def scores_of(seen: Tensor, replays: Replays) -> Scores:
    """Return scores (N, U) of U candidates for N rows (N, F) that were sent, larger is likelier.

    With μ_j the mean of candidate j's K replays and σ² the variance of an entry over draws: "likelihood" is
    −Σ(u − μ_j)²/(σ²(1 + 1/K) + small), the log-likelihood ratio for Gaussian noise and exact equality where nothing is
    drawn (METHODS §7); "nearest draw" the same to the nearest of the draws, for defenses with few, or one that fails
    now and then; "equal entries" how many are the same, for what shares some and hides the rest; "matched filter" how
    far u goes along what sets j apart; "by part" the same with every part of the update as loud as every other; and
    "whitened" the matched filter where the noise of entries goes together, as that of a batch's other records does.
    Draws share their seeds among candidates, so that added noise cancels between them.
    """
    mean = replays.rows.mean(1)
    between = mean.var(0, correction=0)
    sizes = [m.square().mean().expand(m.shape[1]) for m in torch.split(mean, list(replays.widths), 1)]
    tiny = 1e-12 * torch.maximum(torch.cat(sizes), 1e-6 * mean.square().mean()).clamp_min(1e-18)
    variance = replays.variance
    spread = variance * (1 + 1 / replays.draws) + MODEL * between + tiny
    loose = variance + between + tiny
    centre = mean.mean(0)
    apart, along = mean - centre, seen - centre
    every = replays.every
    found = {
        "likelihood": torch.stack([-_off(u - mean, spread) for u in seen]),
        "nearest draw": torch.stack([-_off(u - every, loose).amin(1) for u in seen]),
        "equal entries": torch.stack([_equal(u, every) for u in seen]),
        "matched filter": _projected(along, apart, 1 / spread),
        "by part": torch.stack(
            [
                _projected(a, b, torch.ones_like(a[0])) / a.norm(dim=1, keepdim=True).clamp_min(1e-20)
                for a, b in zip(*(torch.split(t, list(replays.widths), 1) for t in (along, apart)), strict=True)
            ]
        ).sum(0),
    }
    if not replays.noise.steady:
        found["whitened"] = _whitened(along, apart, replays.noise.residuals)
    return found


def _off(gap: Tensor, variance: Tensor) -> Tensor:
    """Return by how many variances (F,) rows (..., F) are off, each entry by `FAR` at most, in double precision.

    An entry that never varied says nothing of how far off it is; unbounded, a few would drown all others.
    """
    return (gap.square() / variance).clamp_max(FAR).sum(-1, dtype=torch.float64)


def _equal(sent: Tensor, every: Tensor) -> Tensor:
    """Return how many entries of a row (F,) equal those of a candidate's closest draw, of (U, K, F), but for rounding.

    Entries that all candidates share count for all of them alike, zeros for none.
    """
    return (((sent - every).abs() <= ENTRY * every.abs()) & (every != 0)).sum(-1).amax(1).double()


def _projected(along: Tensor, apart: Tensor, weight: Tensor) -> Tensor:
    """Return how far rows (N, F) go along each direction (U, F), under a weight (F,); 0 along none."""
    length = (apart.square() * weight).sum(1).sqrt()
    found = (along * weight) @ apart.T
    return torch.where(length > 0, found / length.clamp_min(1e-30), torch.zeros_like(found))


def _whitened(along: Tensor, apart: Tensor, residuals: Tensor) -> Tensor:
    """Return the matched filter under the covariance EᵀE/n + δI of residuals E (n, F), by Woodbury's identity."""
    e = residuals / len(residuals) ** 0.5
    rest = 1e-2 * e.square().sum() / e.shape[1] + 1e-30
    inner = torch.linalg.inv((rest * torch.eye(len(e), device=e.device) + e @ e.T).double()).to(e)

    turned = apart - ((apart @ e.T) @ inner) @ e
    length = (turned * apart).sum(1).clamp_min(0).sqrt()
    found = along @ turned.T
    return torch.where(length > 0, found / length.clamp_min(1e-30), torch.zeros_like(found))


def certain(seen: Tensor, replays: Replays, places: Tensor) -> Tensor:
    """Return for rows (N, F) which of their candidates (N, M), indices into U, is the one for certain, −1 for none.

    It is where some part of what was sent equals, but for rounding, what one candidate sends, and no other comes near
    (`SAME`, `OTHER`); not where that part is drawn at random, so that one draw may be equal by luck, but for the
    `modes` of a defense that does not always draw. A part counts with at least `MAGNITUDES` different magnitudes.
    """
    found = torch.full((len(seen),), -1, device=seen.device)
    widths = list(replays.widths)
    spread = zip(torch.split(replays.variance, widths), torch.split(replays.rows, widths, 2), strict=True)
    drawn = [float(v.mean()) > DRAWN * float(rows.square().mean()) for v, rows in spread]
    for n, u in enumerate(seen):
        shown = torch.unique(places[n])  # a short line-up is repeated to fill its row
        fixed = torch.split(replays.rows[shown], widths, 2)
        bare = None if replays.bare is None else torch.split(replays.bare[shown][:, None], widths, 2)
        for i, part in enumerate(torch.split(u, widths)):
            told = [fixed[i][:, list(replays.modes)] if drawn[i] else fixed[i], *([] if bare is None else [bare[i]])]
            size = float(part.norm())
            if not sum(each.shape[1] for each in told) or size == 0 or len(torch.unique(part.abs())) < MAGNITUDES:
                continue
            gap = (torch.cat(told, 1) - part).norm(dim=2).amin(1)
            usual, least = float(gap.median()), float(gap.min())
            if least <= min(SAME * usual, ROUNDING * size) and int((gap <= OTHER * usual).sum()) == 1:
                found[n] = int((places[n] == shown[gap.argmin()]).nonzero()[0])
                break
    return found
