"""Whether auxiliary records are of the kind that the private ones are: a classifier two-sample test.

An attack that learns on auxiliary records finds nothing where they show other things than the private ones do, and so
proves nothing. Lopez-Paz and Oquab 2017 (arXiv 1610.06545): if a classifier tells two samples apart on records that it
was not trained on, they are not from one distribution; how often it is right says how far from it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from leakaudit.judge.noticed import auxiliary_differs, auxiliary_few
from leakaudit.protocol.labels import hard
from leakaudit.protocol.target import Records, Target
from leakaudit.result.schema import Estimate, Finding
from leakaudit.score.nearness import rank_auc

MOST = 2000  # records of either side that are compared: the interval is then ± 2 %
LEAST = 10  # of either side: five folds of two
FOLDS = 5
GRID = 8  # pictures are averaged to 8×8: what is where
BANDS = 6  # of the spectrum, from half the picture to a pixel: how sharp, how noisy
PENALTIES = torch.logspace(-3, 3, 13, dtype=torch.float64)  # of standardised features, relative to the records' number
CENTRE = 64  # pixels a side in the middle of larger pictures, whose spectrum is looked at
_TOGETHER = 256  # pictures looked at together
FAINT = 1e-4  # added where a logarithm is taken, in [0, 1]: a fortieth of a grey level is none


def auxiliary_findings(
    target: Target, generator: torch.Generator, units: tuple[Tensor, Tensor] | None = None
) -> tuple[Estimate, tuple[Finding, ...]]:
    """Return how well the auxiliary records are told from the private ones, as `tell_apart`, and what is odd of them.

    `auxiliary-differs` where that is at least `TOLD` even at the lower bound, `auxiliary-few` where there are fewer
    than `FEW`, or none of a class that private records have: both warn that attacks which learn on them are weak.
    """
    private, auxiliary = target.private, target.auxiliary
    told = tell_apart(private, auxiliary, generator, units)
    missing = sorted(set(hard(private.labels).tolist()) - set(hard(auxiliary.labels).tolist()))
    names = [target.classes[k] if k < len(target.classes) else str(k) for k in missing]
    return told, (*auxiliary_differs(told), *auxiliary_few(len(auxiliary), names))


def tell_apart(
    private: Records, auxiliary: Records, generator: torch.Generator, units: tuple[Tensor, Tensor] | None = None
) -> Estimate:
    """Return how well auxiliary records (M,) are told from private ones (N,): AUC, .5 where they cannot be, 1 always.

    As many records of each class from either side, so that other shares of the classes are no difference; classes of
    one side alone are left out. A ridge regression with the penalty of the least leave-one-out error, on pixels
    averaged to `GRID`, on statistics of the channels and on the spectrum, scores each fifth after learning on the
    others. Where `units` ((N,), (M,), integers) say which records belong together (shots of one person), one of each
    is taken: who knows the persons tells no kinds apart. The interval is that of `rank_auc`, its value None where fewer
    than `LEAST` of either side can be compared. Pictures that only carry other labels are not told apart.
    """
    sides = [private, auxiliary]
    if units is not None:
        sides = [r[_one_of_each(u, generator)] for r, u in zip(sides, units, strict=True)]
    ours, theirs = _matched(hard(sides[0].labels).cpu(), hard(sides[1].labels).cpu(), generator)
    count = len(ours)
    if count < LEAST:
        return Estimate(
            n=count, reason=f"only {count} auxiliary records can be laid beside private ones of their class"
        )
    taken = (side.images[rows.to(side.images.device)] for side, rows in zip(sides, (ours, theirs), strict=True))
    looks = [_look(part.cpu().float()) for pictures in taken for part in torch.split(pictures, _TOGETHER)]
    rows = torch.cat([_block(torch.cat(column)) for column in zip(*looks, strict=True)], 1)
    side = torch.cat([-torch.ones(count), torch.ones(count)]).double()
    fold = torch.arange(count).remainder(FOLDS).repeat(2)  # the same classes on either side, and both equally often
    scores = torch.zeros(2 * count, dtype=torch.float64)
    for k in range(FOLDS):
        scores[fold == k] = _scored(rows[fold != k], side[fold != k], rows[fold == k])
    return rank_auc(scores[:count], scores[count:])


def _one_of_each(units: Tensor, generator: torch.Generator) -> Tensor:
    """Return indices of one record of each unit, drawn at random."""
    order = torch.randperm(len(units), generator=generator, device=generator.device).cpu()
    _, inverse = torch.unique(units.cpu()[order], return_inverse=True)
    first = torch.full((int(inverse.max()) + 1,), len(order)).scatter_reduce_(
        0, inverse, torch.arange(len(order)), "amin"
    )
    return order[first]


def _matched(ours: Tensor, theirs: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return indices (n,) into either side's labels, the i-th of both of one class, at most `MOST`."""
    pairs: list[Tensor] = []
    for label in sorted(set(ours.tolist()) & set(theirs.tolist())):
        drawn = [_shuffled((side == label).nonzero()[:, 0], generator) for side in (ours, theirs)]
        count = min(map(len, drawn))
        pairs.append(torch.stack([d[:count] for d in drawn]))
    if not pairs:
        return torch.zeros(0).long(), torch.zeros(0).long()
    # Classes stay together, so that their records spread evenly over the folds; of too many any are left out.
    every = torch.cat(pairs, 1)
    if every.shape[1] > MOST:
        every = every[:, _shuffled(torch.arange(every.shape[1]), generator)[:MOST].sort().values]
    return every[0], every[1]


def _shuffled(indices: Tensor, generator: torch.Generator) -> Tensor:
    return indices[torch.randperm(len(indices), generator=generator, device=generator.device).cpu()]


def _look(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Return two blocks of features (N, D) of pictures (N, C, H, W): what is where, and how it is."""
    height, width = pictures.shape[2:]
    grid = F.adaptive_avg_pool2d(pictures, (min(GRID, height), min(GRID, width))).flatten(2)
    top, left = (max(0, size - CENTRE) // 2 for size in (height, width))
    middle = pictures[:, :, top : top + CENTRE, left : left + CENTRE]
    flat = middle.flatten(2)
    ends = torch.quantile(grid, torch.tensor([0.05, 0.5, 0.95]), dim=2).permute(1, 2, 0).flatten(1)
    clipped = [(flat <= FAINT).float().mean(2), (flat >= 1 - FAINT).float().mean(2)]
    apart = (flat[:, 1:] - flat[:, :-1]).square().mean(2).sqrt()  # how coloured
    how = [grid.mean(2), _log(flat.std(2, unbiased=False)), ends, *clipped, _log(apart), *_spectrum(middle)]
    return grid.flatten(1), torch.cat(how, 1)


def _spectrum(pictures: Tensor) -> list[Tensor]:
    """Return the logarithm of each channel's amplitude in `BANDS` of frequency, each twice as high as the last."""
    height, width = pictures.shape[2:]
    power = torch.fft.rfft2(pictures, norm="forward").abs().square()
    radius = (torch.fft.fftfreq(height)[:, None].square() + torch.fft.rfftfreq(width)[None].square()).sqrt()
    band = (radius.clamp_min(1e-9) / 0.5).log2().add(BANDS - 1).floor().clamp(-1, BANDS - 1)
    return [_log((power * (band == b)).sum((2, 3)).sqrt()) for b in range(BANDS) if bool((band == b).any())]


def _log(values: Tensor) -> Tensor:
    return (values + FAINT).log()


def _block(rows: Tensor) -> Tensor:
    """Return features (N, D) standardised, so that what they tell together weighs as much as another block's."""
    rows = rows.double()
    spread = rows.std(0, unbiased=False)
    standard: Tensor = (rows - rows.mean(0)) / spread.clamp_min(1e-6) / rows.shape[1] ** 0.5
    return standard


def _scored(rows: Tensor, side: Tensor, others: Tensor) -> Tensor:
    """Return a ridge regression's scores (M,) of `others` (M, D), learned on `rows` (N, D) and their `side` (N,).

    The penalty is the one whose leave-one-out error is least, which has a closed form: e_i / (1 − H_ii).
    """
    middle = rows.mean(0)
    rows, others = rows - middle, others - middle
    values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    turned, values = rows @ vectors, values.clamp_min(0)
    pulled, squared = turned.T @ side / len(rows), turned.square() / len(rows)
    scale = values.mean().clamp_min(1e-12)
    best, found = torch.inf, torch.zeros(len(others), dtype=rows.dtype)
    for penalty in PENALTIES:
        weights = 1 / (values + penalty * scale)
        fitted, leverage = turned @ (weights * pulled), squared @ weights
        error = float(((side - fitted) / (1 - leverage).clamp_min(1e-6)).square().mean())
        if error < best:
            best, found = error, others @ (vectors @ (weights * pulled))
    return found
