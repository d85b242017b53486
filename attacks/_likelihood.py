"""How well what each candidate would have sent explains what was sent: scores of replays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from leakaudit.attacks._linking import Scores

MODEL = 1e-3  # of the variance between candidates: what a replay may miss without being ruled out
SAME, OTHER = 1e-3, 5e-2  # of how far off candidates usually are: equal but for rounding; clearly another record's
FAR = 1e4  # variances: no more is held against a candidate for one entry
DRAWN = 1e-6  # variance of a part beside its mean square: more than rounding
ENTRY = 1e-5  # of an entry: equal but for rounding
ROUNDING = 1e-4  # of a part's length
BLOCK = (2**24, 2**17)  # numbers that are worked on at once: elsewhere, and on a CPU, in whose cache they stay
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
    def every(self) -> tuple[Tensor, ...]:
        """All that a candidate may have sent, (U, K, F) and (U, 1, F): never in one piece, which would be a copy."""
        return (self.rows,) if self.bare is None else (self.rows, self.bare[:, None])

    @cached_property
    def variance(self) -> Tensor:
        """σ² (F,), as measured beforehand or on these candidates, whichever is more: noise may depend on the record."""
        count, draws = self.rows.shape[:2]
        if draws < 2:
            return self.noise.variance
        total = torch.zeros_like(self.noise.variance)
        for one in self.rows:
            gap = one - one[0]  # first, so that equal draws do not vary at all
            total += gap.sub_(gap.mean(0)).square_().sum(0)
        return torch.maximum(self.noise.variance, total / (count * (draws - 1)))

    @cached_property
    def square(self) -> Tensor:
        """The mean square (F,) of an entry."""
        total = torch.zeros_like(self.noise.variance)
        for one in self.rows:
            total += one.square().sum(0)
        return total / max(1, self.rows.shape[0] * self.rows.shape[1])


def scores_of(seen: Tensor, replays: Replays, names: Sequence[str] = ()) -> Scores:
    """Return scores (N, U) of U candidates for N rows (N, F) that were sent, of `names` or all; larger is likelier.

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
    ways: dict[str, Callable[[], Tensor]] = {
        "likelihood": lambda: -_off(seen, mean[:, None], spread)[..., 0],
        "nearest draw": lambda: -_least([_off(seen, rows, loose) for rows in every]),
        "equal entries": lambda: -_least([-_equal(seen, rows) for rows in every]),
        "matched filter": lambda: _projected(along, apart, 1 / spread),
        "by part": lambda: torch.stack(
            [
                _projected(a, b, torch.ones_like(a[0])) / a.norm(dim=1, keepdim=True).clamp_min(1e-20)
                for a, b in zip(*(torch.split(t, list(replays.widths), 1) for t in (along, apart)), strict=True)
            ]
        ).sum(0),
    }
    if not replays.noise.steady:
        ways["whitened"] = lambda: _whitened(along, apart, replays.noise.residuals)
    return {name: way() for name, way in ways.items() if not names or name in names}


def _least(each: Sequence[Tensor]) -> Tensor:
    """Return the least of numbers (N, U, K) of several kinds of draws, (N, U)."""
    return torch.cat(list(each), 2).amin(2)


Gap = tuple[int, slice, Tensor, Tensor]  # which of N, which of U · K, these rows (R, F), and u less each of them (R, F)


def _gaps(seen: Tensor, rows: Tensor) -> Iterator[Gap]:
    """Yield how far rows (N, F) are from rows (U, K, F), a few at a time and all in the same place.

    What is done to a few rows at once stays in the processor's cache; differences of all with all fill the memory.
    """
    flat = rows.flatten(0, 1)
    step = max(1, BLOCK[flat.device.type == "cpu"] // max(1, flat.shape[1]))
    room = torch.empty_like(flat[:step])
    for start in range(0, len(flat), step):
        some = flat[start : start + step]
        for n, u in enumerate(seen):
            yield n, slice(start, start + len(some)), some, torch.sub(u, some, out=room[: len(some)])


def _off(seen: Tensor, rows: Tensor, variance: Tensor) -> Tensor:
    """Return by how many variances (F,) rows (N, F) are off rows (U, K, F): (N, U, K), in double precision.

    Each entry counts by `FAR` at most. An entry that never varied says nothing of how far off it is; unbounded, a few
    would drown all others.
    """
    found = torch.zeros(len(seen), rows.shape[0] * rows.shape[1], dtype=torch.float64, device=rows.device)
    for n, place, _, gap in _gaps(seen, rows):
        found[n, place] = gap.square_().div_(variance).clamp_max_(FAR).double().sum(-1)
    return found.view(len(seen), *rows.shape[:2])


def _equal(seen: Tensor, rows: Tensor) -> Tensor:
    """Return how many entries of rows (N, F) equal those of rows (U, K, F), but for rounding: (N, U, K).

    Entries that all candidates share count for all of them alike, zeros for none.
    """
    found = torch.zeros(len(seen), rows.shape[0] * rows.shape[1], dtype=torch.float64, device=rows.device)
    last, near = -1, rows
    for n, place, some, gap in _gaps(seen, rows):
        if place.start != last:
            last, near = place.start, torch.where(some == 0, -1.0, ENTRY * some.abs())
        found[n, place] = gap.abs_().le_(near).sum(-1)
    return found.view(len(seen), *rows.shape[:2])


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
    found = [-1] * len(seen)
    shown = [torch.unique(each) for each in places]  # a short line-up is repeated to fill its row
    end = 0
    for width in replays.widths:
        start, end = end, end + width
        rows = replays.rows[..., start:end]
        drawn = float(replays.variance[start:end].mean()) > DRAWN * float(replays.square[start:end].mean())
        told = [rows[:, list(replays.modes)] if drawn else rows]
        told += [] if replays.bare is None else [replays.bare[:, None, start:end]]
        sizes = seen[:, start:end].norm(dim=1).tolist()
        asked = [
            n
            for n, u in enumerate(seen[:, start:end])
            if found[n] < 0 and sizes[n] > 0 and len(torch.unique(u.abs())) >= MAGNITUDES
        ]
        if not asked or not sum(each.shape[1] for each in told):
            continue
        gaps = _least([_distance(seen[asked, start:end], each) for each in told])
        for n, every in zip(asked, gaps, strict=True):
            gap = every[shown[n]]
            usual, least = float(gap.median()), float(gap.min())
            if least <= min(SAME * usual, ROUNDING * sizes[n]) and int((gap <= OTHER * usual).sum()) == 1:
                found[n] = int((places[n] == shown[n][gap.argmin()]).nonzero()[0])
    return torch.tensor(found, device=seen.device)


def _distance(seen: Tensor, rows: Tensor) -> Tensor:
    """Return how far rows (N, F) are from rows (U, K, F), (N, U, K)."""
    found = torch.zeros(len(seen), rows.shape[0] * rows.shape[1], dtype=rows.dtype, device=rows.device)
    for n, place, _, gap in _gaps(seen, rows):
        found[n, place] = gap.norm(dim=1)
    return found.view(len(seen), *rows.shape[:2])
