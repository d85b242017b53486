"""Exact 95 % intervals: for rates, for medians over records, for means over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import TypeVar

from leakaudit.result.schema import Estimate

CONFIDENCE = 0.95
T = TypeVar("T")


def rate(hits: int, n: int, reason: str | None = None) -> Estimate:
    """Return hits/n with its exact binomial interval (Clopper and Pearson 1934); `reason` stands where n is 0.

    It takes records as independent. Where clients have several each, `rate_of_clients` does not.
    """
    if n == 0:
        return Estimate(reason=reason or "no record was scored")
    if not 0 <= hits <= n:
        raise ValueError(f"{hits} hits of {n}")
    return Estimate(hits / n, *_exact(hits, n), n)


@cache  # an audit and its reports ask for the same few hundred times over
def _exact(hits: int, n: int) -> tuple[float, float]:
    from scipy.stats import binomtest

    ends = binomtest(hits, n).proportion_ci(CONFIDENCE, method="exact")
    return float(ends.low), float(ends.high)


def by_client(values: Mapping[int, T], batch: int) -> list[list[T]]:
    """Return what is known by record, victim by victim, each of `batch` records."""
    found: dict[int, list[T]] = {}
    for row, value in values.items():
        found.setdefault(row // batch, []).append(value)
    return list(found.values())


def clients_needed(limit: float, share: float = 0.0) -> int | None:
    """Return how many clients of several records bring the upper bound at a rate of `share` to `limit`, None if none.

    It is what `rate_of_clients` asks for; without any hit as many as `records_needed`.
    """
    if limit <= share:
        return None
    if limit >= 1:
        return 1
    return max(1, math.ceil(math.log(2 / (1 - CONFIDENCE)) / divergence(share, limit) - 1e-9))


def rate_of_clients(hits: Iterable[Sequence[bool]], reason: str | None = None) -> Estimate:
    """Return the share of hits over the records of clients, with an interval whose unit is the client.

    Records of one client were in one update: what tells one of them may tell all. Nothing is assumed of how they hang
    together, only that clients are drawn independently: their shares h lie in [0, 1], and by Hoeffding (1963, theorem
    1) a mean of m of them is as far off as p with probability at most exp(−m KL(h̄ ‖ p)). For clients of one record
    each it is `rate`, which is exact; without any hit both are the same. `n` counts records.
    """
    clients = [list(each) for each in hits if len(each)]
    n, found = sum(map(len, clients)), sum(map(sum, clients))
    if all(len(each) == 1 for each in clients):
        return rate(found, n, reason)
    low, high = _within(math.fsum(sum(each) / len(each) for each in clients) / len(clients), len(clients))
    return Estimate(found / n, min(low, found / n), max(high, found / n), n)


def _within(mean: float, clients: int) -> tuple[float, float]:
    """Return the ends of the p with clients · KL(mean ‖ p) ≤ log(2 / (1 − CONFIDENCE))."""
    most = math.log(2 / (1 - CONFIDENCE)) / clients

    def end(inside: float, outside: float) -> float:
        for _ in range(60):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if divergence(mean, middle) <= most else (inside, middle)
        return inside

    return end(mean, 0.0) if mean > 0 else 0.0, end(mean, 1.0) if mean < 1 else 1.0


def divergence(mean: float, p: float) -> float:
    """Return KL(mean ‖ p) of two coins; infinite where `p` rules out what `mean` shows."""
    pairs = ((mean, p), (1 - mean, 1 - p))
    if any(a > 0 and b <= 0 for a, b in pairs):
        return math.inf
    return math.fsum(a * math.log(a / b) for a, b in pairs if a > 0)


def tail(hits: int, n: int, share: float) -> float:
    """Return the probability of `hits` or more of n at a rate of `share`."""
    from scipy.stats import binom

    return float(binom.sf(hits - 1, n, share))


def records_needed(limit: float, share: float = 0.0) -> int | None:
    """Return the smallest n at which ⌈`share`·n⌉ hits of n have an upper bound ≤ `limit`; None if no n has (≤ `share`).

    Whole hits are counted, so that the n it names does settle it if the rate stays; by chance there may be more.
    """
    if limit <= share:
        return None
    if limit >= 1:
        return 1
    if share <= 0:
        return max(1, math.ceil(math.log((1 - CONFIDENCE) / 2) / math.log1p(-limit) - 1e-9))
    from scipy.special import betaincinv

    def enough(n: float, hits: float) -> bool:
        return bool(betaincinv(hits + 1, n - hits, (1 + CONFIDENCE) / 2) <= limit)

    below, above = 0, 1
    while not enough(above, share * above):
        below, above = above, 2 * above
        if above > 2**40:  # so close to the limit that no audit gets there
            return None
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (below, middle) if enough(middle, share * middle) else (middle, above)
    # Between whole hits that was a fraction too kind: go on to the first n at which the hits are whole.
    for hits in range(math.ceil(share * above - 1e-9), 2**40):
        most = math.floor(hits / share + 1e-9)  # the last n with so many hits
        if most >= above and enough(most, hits):
            below = max(above, math.floor((hits - 1) / share + 1e-9) + 1)
            while most > below:
                middle = (below + most) // 2
                below, most = (below, middle) if enough(middle, hits) else (middle + 1, most)
            return most
    return None


def median(values: Sequence[float], reason: str | None = None) -> Estimate:
    """Return the median with the order-statistic interval, which assumes nothing of the distribution.

    [x₍ₖ₎, x₍ₙ₊₁₋ₖ₎] with the largest k for which P(Binomial(n, ½) < k) ≤ 2.5 % (Conover 1999, section 3.2). Fewer
    than 6 values have no such interval.
    """
    n = len(values)
    if n == 0:
        return Estimate(reason=reason or "no record was scored")
    middle = statistics.median(values)
    if n < 6:
        return Estimate(middle, n=n)
    from scipy.stats import quantile_test

    ends = quantile_test(values, q=middle).confidence_interval(CONFIDENCE)
    return Estimate(middle, float(ends.low), float(ends.high), n)


def median_of_clients(values: Iterable[Sequence[float]], reason: str | None = None) -> Estimate:
    """Return the median over the records of clients, with an interval whose unit is the client.

    [x₍ₖ₎, x₍ₙ₊₁₋ₖ₎] with the largest k for which m KL((k − 1) / n ‖ ½) is no less than log(2 / (1 − CONFIDENCE)): a
    client's share of records below the true median lies in [0, 1], ½ on average (`rate_of_clients`). For clients of
    one record each it is `median`. Fewer than 6 clients have no interval.
    """
    clients = [list(each) for each in values if len(each)]
    flat = sorted(v for each in clients for v in each)
    if all(len(each) == 1 for each in clients):
        return median([v for each in clients for v in each], reason)
    n, middle = len(flat), statistics.median(flat)
    if len(clients) < 6:
        return Estimate(middle, n=n)
    k = math.floor(n * _within_half(len(clients)) + 1e-9) + 1
    return Estimate(middle, flat[k - 1], flat[n - k], n)


@cache
def _within_half(clients: int) -> float:
    """Return the largest share below ½ that a mean of so many shares has by chance where ½ is expected: 2.5 %."""
    low, high = 0.0, 0.5
    for _ in range(60):
        middle = (low + high) / 2
        far = clients * divergence(middle, 0.5) >= math.log(2 / (1 - CONFIDENCE))
        low, high = (middle, high) if far else (low, middle)
    return low


def mean(
    values: Sequence[float],
    within: tuple[float, float] | None = None,
    reason: str | None = None,
    least: float = 0.0,
) -> Estimate:
    """Return the mean over seeds with Student's t interval, cut to `within`.

    Fewer than three values have no interval: with one degree of freedom it says nothing where they differ, and two
    that happen to be equal would show no uncertainty at all. `least` is the smallest standard deviation a value can
    have, for an accuracy one test record: three equal ones are a coincidence.
    """
    n = len(values)
    if n == 0:
        return Estimate(reason=reason or "nothing was measured")
    average = float(statistics.mean(values))  # exact: three runs of .1 are .1, not a little above chance
    if n < 3:
        return Estimate(average, n=n, reason=reason)
    from scipy.stats import t

    error = max(statistics.stdev(values), least) / math.sqrt(n)
    # Where all values are equal and none can differ, there is no spread to scale by.
    low, high = map(float, t.interval(CONFIDENCE, n - 1, average, error)) if error else (average, average)
    if within is not None:
        low, high = max(low, within[0]), min(high, within[1])
    return Estimate(average, low, high, n, reason)
