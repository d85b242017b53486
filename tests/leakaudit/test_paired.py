"""Paired tests against enumeration, SciPy, and their own promise: how often they speak when nothing changed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from leakaudit.stats.paired import change_of_means, change_of_rate, falls, holm, pairs_needed, rises, runs_needed


@given(st.lists(st.integers(-4, 4), max_size=9))
def test_the_signed_rank_test_counts_all_signs(differences: list[int]) -> None:
    moved = [d for d in differences if d]
    ranks = stats.rankdata([abs(d) for d in moved]) if moved else np.zeros(0)
    seen = sum(r for r, d in zip(ranks, moved, strict=True) if d > 0)
    patterns = list(itertools.product((0, 1), repeat=len(moved)))
    as_large = sum(sum(r for r, s in zip(ranks, signs, strict=True) if s) >= seen - 1e-9 for signs in patterns)
    assert rises(differences) == pytest.approx(as_large / len(patterns))


def test_hits_and_misses_are_mcnemars_exact_test() -> None:
    differences = [1] * 9 + [-1] * 2 + [0] * 30
    assert rises(differences) == pytest.approx(stats.binomtest(9, 11, alternative="greater").pvalue)


@pytest.mark.parametrize("n", [60, 390, 900])
def test_large_samples_agree_with_scipy(n: int) -> None:
    differences = np.random.default_rng(n).normal(0.1, 1, n)
    expected = stats.wilcoxon(differences, alternative="greater", method="approx", correction=True).pvalue
    assert rises(differences.tolist()) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("seed", range(6))
def test_the_means_of_seeds_are_compared_by_welchs_test(seed: int) -> None:
    random = np.random.default_rng(seed)
    before, after = random.normal(0.5, 0.01, 3 + seed).tolist(), random.normal(0.45, 0.05, 4).tolist()
    expected = stats.ttest_ind(before, after, alternative="greater", equal_var=False)
    assert falls(before, after) == pytest.approx(expected.pvalue)
    interval = stats.ttest_ind(after, before, equal_var=False).confidence_interval(0.95)
    change = change_of_means(before, after)
    assert (change.low, change.high) == pytest.approx((interval.low, interval.high))


@pytest.mark.parametrize(
    ("runs", "calm", "wild"), [(3, 0.005, 0.05), (3, 0.01, 0.02), (5, 0.005, 0.05), (10, 0.01, 0.03)]
)
def test_another_spread_raises_no_false_alarms(runs: int, calm: float, wild: float) -> None:
    random = np.random.default_rng(0)
    alarms, covered = 0, 0
    for _ in range(2000):
        before, after = random.normal(0.5, calm, runs).tolist(), random.normal(0.5, wild, runs).tolist()
        alarms += falls(before, after) <= 0.01
        change = change_of_means(before, after)
        covered += (change.low or 0) <= 0 <= (change.high or 0)
    assert alarms / 2000 < 0.016  # 1 % and three standard errors
    assert covered / 2000 > 0.935


def test_as_many_runs_as_it_takes_are_asked_for() -> None:
    before, after = [0.95, 0.95, 0.95], [0.95, 0.85, 0.90]
    needed = runs_needed(before, after, 0.05, resolution=0.001)
    assert needed is not None
    spread, t = np.std(after, ddof=1), stats.t.ppf
    halves = [t(0.975, n - 1) * spread / n**0.5 for n in (needed - 1, needed)]  # one side hardly varies: its runs alone
    assert halves[1] <= 0.0501 < halves[0] + 0.0005
    assert runs_needed(before, after, 1e-6) is None


def test_few_seeds_and_equal_seeds_decide_nothing_by_themselves() -> None:
    assert falls([0.9, 0.9], [0.1, 0.1]) == 1.0
    assert change_of_means([0.9, 0.9], [0.1, 0.1]).low is None
    # Three equal accuracies on 40 test records: the spread is not below one record.
    assert falls([0.975] * 3, [0.95] * 3, resolution=1 / 40) > 0.1
    assert falls([0.975] * 3, [0.95] * 3) < 1e-9


def test_the_interval_of_a_rate_covers_the_truth() -> None:
    random = np.random.default_rng(0)
    for up, down in ((0.02, 0.02), (0.3, 0.1)):
        draws = random.multinomial(30, [up, down, 1 - up - down], size=400)
        inside = [
            (c.low or 0) <= up - down <= (c.high or 0)
            for c in (change_of_rate(int(a), int(b), 30) for a, b, _ in draws)
        ]
        assert np.mean(inside) >= 0.95


def test_the_interval_of_a_rate_covers_the_truth_in_batches() -> None:
    random = np.random.default_rng(0)
    inside = []
    for _ in range(400):
        # 20 victims of 8 records; a victim's records mostly share its fate.
        fate = random.random((20, 1)) < 0.25
        rose = np.where(random.random((20, 8)) < 0.8, fate, random.random((20, 8)) < 0.25)
        change = change_of_rate(float(rose.mean(1).sum()), 0.0, 20)
        inside.append((change.low or 0) <= 0.25 <= (change.high or 0))
    assert np.mean(inside) >= 0.95


def test_what_it_takes_is_what_it_takes() -> None:
    needed = pairs_needed(0, 0, 16, 0.1)
    assert needed is not None
    assert (change_of_rate(0, 0, needed).high or 1) <= 0.1 < (change_of_rate(0, 0, needed - 2).high or 1)
    assert pairs_needed(8, 0, 16, 0.1) is None


def test_holm_keeps_the_order_and_the_level() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    random = np.random.default_rng(1)
    alarms = [min(holm(random.random(5).tolist())) <= 0.05 for _ in range(2000)]
    assert np.mean(alarms) < 0.065
