"""Whether pictures that stand in for private records are copies of some, or lie nearer to them than they should."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from leakaudit.result.numbers import interval, percent
from leakaudit.result.schema import Finding, Severity, Value
from leakaudit.score.nearness import nearest, rank_auc
from leakaudit.stats.intervals import tail

LOOK = 8  # pictures are compared averaged to 8×8, so that a copy with noise or mirrored is one all the same
RELEASES = 1000  # released pictures, and test pictures, of which it is asked where they lean to
MOST = 20_000  # released pictures among which copies are sought
SUSPECTS = 1000  # that are compared once more, shifted
SHIFT = 2  # pixels, that copies may be shifted by
NEARER = 0.75  # AUC: three of four times a released picture leans to the private records more than a test one does
LEANS = 0.6  # AUC: more than statistics of the records bring (0.53 for the generators on 1,000 of CIFAR-10), a warning
COPIED = 0.25  # of the distance to the nearest stranger: a copy with noise, unless test pictures lie as near as often
SAME = 0.05  # of it: one is enough, unless a test picture lies as near, or every twentieth at a third of that (in logs)
FLAT = 0.02  # standard deviation of an 8×8 picture: below it pictures are alike whatever they show
ROUNDING = 1e-3  # of distances between pictures of deviation 1
UNLIKELY = 0.01  # that so many released pictures are copies by chance


def copies(spec: str, released: Tensor, private: Tensor, strangers: Tensor, test: Tensor) -> tuple[Finding, ...]:
    """Return `copies-private-records` where x̃ are copies of private records, of any index, or lie nearer than others.

    A smooth picture is near to every other, so distances alone say nothing: compared is r(x) = ln d(x, private) −
    ln d(x, strangers), d the distance to the nearest of each, mirrored or not (the three-sample test of
    Meehan et al. 2020, arXiv 2004.05675, with a ratio). Released pictures and test ones are asked two things:

    - Are some copies? r of pictures freed of brightness and contrast, the nearest ones also shifted (`relative`). An
      error where more released pictures than test ones have r < ln `COPIED`, by Fisher's exact test, or more of them
      have it than −r < ln `COPIED`, by a binomial one; or where one alone has r < ln `SAME`, none of the test ones, and
      stands apart from the rest of the released.
    - Do they lean to the private ones? An error where the area under the ROC curve P(r(x̃) < r(test)) is at least
      `NEARER` even at its lower bound, a warning from `LEANS` on.
    """
    if len(test) < 2 or not (len(strangers) and len(released) and len(private)):
        return ()
    shown, others = released[_spread(len(released), RELEASES)], test[_spread(len(test), RELEASES)]
    ours, theirs = _near(shown, private), _near(others, private)
    ratios = [
        near.clamp_min(1e-9).log() - _near(pictures, strangers).clamp_min(1e-9).log()
        for pictures, near in ((shown, ours), (others, theirs))
    ]
    auc = rank_auc(*ratios)
    sought = released[_spread(len(released), MOST)]
    found, usual = (relative(pictures, private, strangers) for pictures in (sought, others))
    count, among = _copies(found, usual, len(private) / (len(private) + len(strangers)))
    leaning = auc.low or 0.0
    if leaning < LEANS and not count:
        return ()
    same = f" {count} of {len(found)} are copies but for shifts, mirroring, contrast or noise." if count else ""
    message = (
        f"{spec}: what it puts in place of records lies nearer to private records than test records do, in "
        f"{percent(auc.value or 0.0)} of pairs ({interval(auc)}; 50% where nothing is copied).{same} A picture "
        "that is not its own record's may still be another private one."
    )
    evidence: dict[str, Value] = {
        "defense": spec,
        "auc": auc.value,
        "auc_low": auc.low,
        "copies": count / len(found),
        "test_copies": among / len(usual),
        "nearest_private_released": float(ours.median()),
        "nearest_private_test": float(theirs.median()),
    }
    severity: Severity = "error" if leaning >= NEARER or count else "warning"
    return (Finding("copies-private-records", severity, message, evidence),)


def _copies(found: Tensor, usual: Tensor, share: float) -> tuple[int, int]:
    """Return how many released pictures are copies, if that is no chance (else 0), and test ones, by their r.

    `share` is how many of the private records and the strangers together are private: by chance as large a share of
    the released pictures that are nearly one of either is nearly a private one.
    """
    limit = math.log(COPIED)
    hits, others = (int((r < limit).sum()) for r in (found, usual))
    elsewhere = int((found > -limit).sum())
    likely = min(_more(hits, len(found), others, len(usual)), tail(hits, hits + elsewhere, share))
    if likely < UNLIKELY:
        return hits, others
    limit = min(math.log(SAME), 3 * float(found.quantile(0.05)))
    alone, others = (int((r < limit).sum()) for r in (found, usual))
    return (0 if others else alone), others


@torch.no_grad()
def relative(pictures: Tensor, private: Tensor, strangers: Tensor) -> Tensor:
    """Return r (N,): ln of how far pictures (N, C, H, W) are from the nearest private one, to the nearest stranger.

    Both at 8×8, each channel without its mean, and of deviation 1 as a whole. The `SUSPECTS` with the least r are
    shifted by up to `SHIFT` pixels each way (at most an eighth of a side), for both distances. Flat pictures have r 0.
    """
    ours, textured = _freed(pictures)
    sides = [side[kept] for side, kept in (_freed(private), _freed(strangers))]
    if not (len(sides[0]) and len(sides[1]) and bool(textured.any())):
        return torch.zeros(len(pictures))
    near = torch.stack([nearest(ours, side, mirrored=True) for side in sides])
    found = _log_ratio(near).masked_fill(~textured, 0.0)
    suspects = found.argsort()[:SUSPECTS]
    suspects = suspects[textured[suspects]]
    found[suspects] = torch.minimum(
        found[suspects], _shifted(pictures[suspects.to(pictures.device)], private, strangers)
    )
    return found


def _shifted(pictures: Tensor, private: Tensor, strangers: Tensor) -> Tensor:
    """Return r of pictures at the best of all small shifts: their inner parts, moved, against those of the others."""
    height, width = pictures.shape[2:]
    down, across = min(SHIFT, height // 8), min(SHIFT, width // 8)
    rows, columns = height - 2 * down, width - 2 * across
    inner = [side[:, :, down : side.shape[2] - down, across : side.shape[3] - across] for side in (private, strangers)]
    sides = [side[kept] for side, kept in map(_freed, inner)]
    near = torch.full((2, len(pictures)), math.inf)
    for dy in range(2 * down + 1):
        for dx in range(2 * across + 1):
            moved, _ = _freed(pictures[:, :, dy : dy + rows, dx : dx + columns])
            near = torch.minimum(near, torch.stack([nearest(moved, side, mirrored=True) for side in sides]))
    return _log_ratio(near)


def _log_ratio(near: Tensor) -> Tensor:
    logs = near.clamp_min(ROUNDING).log()
    return logs[0] - logs[1]


def _freed(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Return pictures (N, C, 8, 8) freed of brightness and contrast, and which of them show anything (N,)."""
    small = F.adaptive_avg_pool2d(pictures.float().cpu(), LOOK)
    small = small - small.mean((2, 3), keepdim=True)
    spread = small.square().mean((1, 2, 3), keepdim=True).sqrt()
    return small / spread.clamp_min(1e-9), spread.flatten() >= FLAT


def _more(hits: int, n: int, others: int, m: int) -> float:
    """Return Fisher's one-sided probability of so many of n against `others` of m if both rates were the same."""
    from scipy.stats import fisher_exact

    return float(fisher_exact(np.array([[hits, n - hits], [others, m - others]]), alternative="greater").pvalue)


def _spread(count: int, most: int) -> Tensor:
    """Return at most so many indices, evenly over `count`."""
    return torch.linspace(0, max(0, count - 1), min(count, most)).round().long()


def _near(pictures: Tensor, others: Tensor) -> Tensor:
    """Return how near pictures lie to others, mirrored or not, averaged to `LOOK`."""
    ours, theirs = (F.adaptive_avg_pool2d(images.float().cpu(), LOOK) for images in (pictures, others))
    return nearest(ours, theirs, mirrored=True, exact=True)
