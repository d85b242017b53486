"""Tests of a change between two audits of the same records: exact where they can be, one-sided, and their intervals.

Nothing is assumed of the scores' distribution. The hypothesis is that nothing changed but chance: then the scores of a
victim before and after may be swapped, so every difference is as likely to have the other sign.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from leakaudit.result.schema import Estimate
from leakaudit.stats.intervals import CONFIDENCE

EXACT = 400  # differences up to which the distribution is enumerated; beyond, a normal one with ties is as good


def rises(differences: Sequence[float]) -> float:
    """Return the one-sided p-value that `differences` are symmetric about 0, against their being larger.

    Wilcoxon's signed-rank test on the differences that are not 0, given their sizes: exact with ties, by counting all
    2ⁿ signs (each is equally likely under the hypothesis). Where all sizes are equal, as for hits and misses, it is
    McNemar's exact test.

    >>> rises([1, 1, 1, 1, 1, 1, 1])
    0.0078125
    """
    moved = np.asarray([d for d in differences if d != 0], dtype=np.float64)
    if len(moved) == 0:
        return 1.0
    ranks = _doubled_midranks(np.abs(moved))
    statistic, total = int(ranks[moved > 0].sum()), int(ranks.sum())
    if len(moved) > EXACT:
        deviation = math.sqrt(float((ranks.astype(np.float64) ** 2).sum()))
        return 0.5 * math.erfc((2 * statistic - total - 1) / deviation / math.sqrt(2))
    ways = np.zeros(total + 1)
    ways[0] = 1.0
    for rank in ranks.tolist():  # the share of sign patterns by their sum of positive ranks
        shifted = np.zeros_like(ways)
        shifted[rank:] = ways[: total + 1 - rank]
        ways = (ways + shifted) / 2
    return min(1.0, float(ways[statistic:].sum()))


def _doubled_midranks(sizes: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return twice the rank of each size, ties sharing their mean rank: whole numbers. Equal sizes get the least."""
    rounded = np.round(sizes, 9)  # 0.3 − 0.1 and 0.2 are a tie
    values, inverse, counts = np.unique(rounded, return_inverse=True, return_counts=True)
    if len(values) == 1:
        return np.ones(len(sizes), dtype=np.int64)
    last = np.cumsum(counts)
    return (2 * last - counts + 1)[inverse].astype(np.int64)


def falls(before: Sequence[float], after: Sequence[float], allow: float = 0.0, resolution: float = 0.0) -> float:
    """Return the one-sided p-value that the mean fell by no more than `allow`, over independent runs on each side.

    Welch's test, since a change may move the spread as well; with unequal numbers of runs it is too bold. `resolution`
    is the least standard deviation a run can have (one test record): equal values in three runs are a coincidence, not
    certainty. Fewer than three runs on a side decide nothing: 1.
    """
    if min(len(before), len(after)) < 3:
        return 1.0
    drop = _mean(before) - _mean(after)
    first, second = (_spread(side, resolution) for side in (before, after))
    if first == second == 0:
        return 1.0 if drop <= allow else 0.0
    from scipy.stats import ttest_ind_from_stats

    welch = ttest_ind_from_stats(
        drop, first, len(before), allow, second, len(after), equal_var=False, alternative="greater"
    )
    return float(welch.pvalue)


def change_of_means(before: Sequence[float], after: Sequence[float], resolution: float = 0.0) -> Estimate:
    """Return mean(after) − mean(before) with Welch's 95 % interval; fewer than three runs on a side have none."""
    if not before or not after:
        return Estimate(reason="it was not measured on both sides")
    fewest = min(len(before), len(after))
    value = _mean(after) - _mean(before)
    if fewest < 3:
        return Estimate(value, n=fewest, reason="an interval takes at least 3 seeds on each side")
    half = _half(_spread(before, resolution), len(before), _spread(after, resolution), len(after))
    return Estimate(value, max(value - half, -1.0), min(value + half, 1.0), fewest)


def runs_needed(
    before: Sequence[float], after: Sequence[float], reach: float, resolution: float = 0.0, most: int = 50
) -> int | None:
    """Return how many runs on each side bring half of Welch's interval down to `reach`, if both spreads stay.

    At least three; None where more than `most` would be needed, or the spreads are not known.
    """
    if min(len(before), len(after)) < 2 or reach <= 0:
        return None
    first, second = (_spread(side, resolution) for side in (before, after))
    return next((n for n in range(3, most + 1) if _half(first, n, second, n) <= reach), None)


def _mean(runs: Sequence[float]) -> float:
    return math.fsum(runs) / len(runs)


def _spread(runs: Sequence[float], resolution: float) -> float:
    middle = _mean(runs)
    return max(math.sqrt(math.fsum((v - middle) ** 2 for v in runs) / (len(runs) - 1)), resolution)


def _welch(first: float, n: int, second: float, m: int) -> tuple[float, float]:
    """Return the standard error of a difference of means and its degrees of freedom (Welch and Satterthwaite)."""
    parts = first**2 / n, second**2 / m
    total = math.fsum(parts)
    if total == 0:
        return 0.0, float(n + m - 2)
    return math.sqrt(total), total**2 / (parts[0] ** 2 / (n - 1) + parts[1] ** 2 / (m - 1))


def _half(first: float, n: int, second: float, m: int) -> float:
    from scipy.special import stdtrit

    error, freedom = _welch(first, n, second, m)
    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * error


def change_of_rate(up: float, down: float, n: int) -> Estimate:
    """Return (up − down)/n with a 95 % interval from the exact bounds of either share (Clopper–Pearson, Bonferroni).

    Of n pairs, `up` rose and `down` fell. A pair that is a batch counts with the share of its records that did: of all
    shares in [0, 1] with the same mean, hits and misses vary most (Hoeffding 1963), so their interval is never too
    narrow.
    """
    if n == 0:
        return Estimate(reason="no record was scored on both sides")
    from scipy.special import betaincinv

    tail = (1 - CONFIDENCE) / 4

    def least(k: float) -> float:
        return 0.0 if k <= 0 else float(betaincinv(k, n - k + 1, tail))

    def most(k: float) -> float:
        return 1.0 if k >= n else float(betaincinv(k + 1, n - k, 1 - tail))

    return Estimate((up - down) / n, least(up) - most(down), most(up) - least(down), n)


def pairs_needed(up: float, down: float, n: int, detect: float) -> int | None:
    """Return about how many pairs bring the upper bound of the rise to `detect` if shares stay; None if none would."""
    if n == 0 or (up - down) / n >= detect:
        return None
    size = n
    while size < 2**24:
        upper = change_of_rate(up * size / n, down * size / n, size).high
        if upper is not None and upper <= detect:
            return size
        size = max(size + 1, math.ceil(size * 1.02))
    return None


def change_of_median(differences: Sequence[float]) -> Estimate:
    """Return the median difference with the interval of the order statistics; fewer than 6 have no interval."""
    from leakaudit.stats.intervals import median

    return median(differences, "no record was scored on both sides")


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted so that the chance of any false alarm among them stays at the level (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [1.0] * len(p_values), 0.0
    for place, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[i]))
        adjusted[i] = highest
    return adjusted
