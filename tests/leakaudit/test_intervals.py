"""Intervals against scipy's own and against the coverage they promise."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from leakaudit.stats.intervals import (
    clients_needed,
    mean,
    median,
    median_of_clients,
    rate,
    rate_of_clients,
    records_needed,
)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(n=st.integers(1, 200), share=st.floats(0, 1))
def test_a_rate_has_scipys_exact_interval(n: int, share: float) -> None:
    hits = round(share * n)
    found = rate(hits, n)
    expected = stats.binomtest(hits, n).proportion_ci(method="exact")
    assert found.value == hits / n
    assert found.n == n
    assert found.low == pytest.approx(expected.low, abs=1e-9)
    assert found.high == pytest.approx(expected.high, abs=1e-9)


def test_nothing_scored_is_a_reason_and_not_zero() -> None:
    for found in (rate(0, 0), median([]), mean([])):
        assert found.value is None
        assert found.low is None
        assert found.high is None
        assert found.n == 0
        assert found.reason
    assert rate(0, 0, "because").reason == "because"
    with pytest.raises(ValueError):
        rate(3, 2)


@pytest.mark.parametrize("limit", [0.01, 0.05, 0.1, 0.3, 0.5, 0.975])
def test_records_needed_is_the_first_n_that_can_show_the_limit(limit: float) -> None:
    needed = records_needed(limit)
    assert needed is not None
    assert (rate(0, needed).high or 1) <= limit
    assert needed == 1 or (rate(0, needed - 1).high or 0) > limit
    assert records_needed(0) is None
    assert records_needed(1) == 1


@pytest.mark.parametrize(("limit", "share"), [(0.25, 0.125), (0.1, 0.09), (0.3, 0.05), (0.5, 0.0)])
def test_records_needed_at_a_rate(limit: float, share: float) -> None:
    needed = records_needed(limit, share)
    assert needed is not None
    assert (rate(math.ceil(share * needed - 1e-9), needed).high or 1) <= limit
    assert all((rate(math.ceil(share * n - 1e-9), n).high or 0) > limit for n in range(1, needed))
    assert records_needed(share, share) is None
    assert records_needed(share / 2, share) is None


def test_a_median_has_the_order_statistic_interval() -> None:
    values = [float(v) for v in range(1, 17)]
    found = median(values[::-1])
    assert (found.value, found.low, found.high, found.n) == (8.5, 4.0, 13.0, 16)  # the textbook's for n = 16
    assert median([1.0, 2.0, 9.0]).value == 2.0
    assert median([1.0] * 5).low is None
    assert median([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).low == 1.0


def test_a_medians_interval_covers_the_true_median() -> None:
    draws = torch.empty(2000, 25).exponential_(generator=torch.Generator().manual_seed(0))
    inside = 0
    for row in draws.tolist():
        found = median(row)
        assert found.low is not None
        assert found.high is not None
        inside += found.low <= math.log(2) <= found.high
    assert 0.94 <= inside / 2000 <= 0.975  # exact coverage for n = 25 is .957


def test_a_mean_has_students_interval_and_few_seeds_have_none() -> None:
    values = [0.52, 0.58, 0.55]
    found = mean(values)
    low, high = stats.t.interval(0.95, 2, loc=stats.tmean(values), scale=stats.sem(values))
    assert found.low == pytest.approx(low)
    assert found.high == pytest.approx(high)
    assert found.value == pytest.approx(0.55)
    alone = mean([0.5])
    assert (alone.value, alone.low, alone.high, alone.n) == (0.5, None, None, 1)
    pair = mean([0.5, 0.5])  # equal by chance: that is no certainty
    assert (pair.value, pair.low, pair.high, pair.n) == (0.5, None, None, 2)
    cut = mean([0.99, 0.9, 0.95], within=(0.0, 1.0))
    assert cut.high == 1.0


def test_equal_seeds_are_no_certainty() -> None:
    found = mean([0.925] * 3, (0.0, 1.0), least=1 / 40)
    assert (found.high or 0) - (found.low or 1) > 2 / 40
    assert mean([0.9, 0.8, 0.7], least=0.01) == mean([0.9, 0.8, 0.7])


def test_clients_of_one_record_each_have_the_exact_intervals() -> None:
    hits, values = [True, False, True, True, False, True, True], [3.0, 1.0, 2.0, 9.0, 5.0, 4.0, 8.0]
    assert rate_of_clients([[hit] for hit in hits]) == rate(5, 7)
    assert median_of_clients([[v] for v in values]) == median(values)
    assert rate_of_clients([], "because").reason == "because"
    assert median_of_clients([], "because").reason == "because"


@pytest.mark.parametrize("clients", [3, 13, 16, 100])
def test_without_a_hit_clients_are_bounded_as_records_are(clients: int) -> None:
    """Whatever their records have in common: so many clients without any are what so many records would be."""
    found = rate_of_clients([[False] * 8] * clients)
    assert found.high == pytest.approx(rate(0, clients).high, abs=1e-9)
    assert found.low == 0
    assert found.n == 8 * clients
    assert rate_of_clients([[True] * 8] * clients).low == pytest.approx(rate(clients, clients).low, abs=1e-9)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25])
def test_clients_needed_are_the_first_that_can_show_the_limit(share: float) -> None:
    needed = clients_needed(0.4, share)
    assert needed is not None

    def high(clients: int) -> float:
        found = rate_of_clients([[i < round(share * 20) for i in range(20)]] * clients)
        assert found.high is not None
        return found.high

    assert high(needed) <= 0.4 < high(needed - 1)
    assert clients_needed(0.2, 0.2) is None
    assert clients_needed(1.0) == 1


@pytest.mark.parametrize("alike", [0.0, 0.5, 1.0])
def test_the_interval_of_clients_covers_whatever_their_records_have_in_common(alike: float) -> None:
    generator, rate_, missed, narrow = torch.Generator().manual_seed(0), 0.3, 0, 0
    for _ in range(300):
        whole = torch.rand((20, 1), generator=generator) < alike  # clients whose records all share one fate
        fates = torch.rand((20, 1), generator=generator) < rate_
        hits = torch.where(whole, fates, torch.rand((20, 8), generator=generator) < rate_)
        found, plain = rate_of_clients(hits.tolist()), rate(int(hits.sum()), hits.numel())
        assert None not in (found.low, found.high, plain.low, plain.high)
        missed += not found.low <= rate_ <= found.high  # type: ignore[operator]
        narrow += not plain.low <= rate_ <= plain.high  # type: ignore[operator]
    assert missed <= 0.05 * 300
    if alike == 1.0:
        assert narrow > 0.2 * 300  # as if they were independent


def test_the_median_of_clients_covers_whatever_their_records_have_in_common() -> None:
    generator, missed = torch.Generator().manual_seed(0), 0
    for _ in range(300):
        values = torch.randn((12, 1), generator=generator) + 0.1 * torch.randn((12, 8), generator=generator)
        found = median_of_clients(values.tolist())
        assert found.low is not None
        assert found.high is not None
        missed += not found.low <= 0 <= found.high
    assert missed <= 0.05 * 300
    assert median_of_clients([[1.0, 2.0]] * 5).low is None
