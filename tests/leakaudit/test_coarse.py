"""Scores of a result without private pictures: rounded everywhere, so that no two close records can be told apart."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from leakaudit.result.rounding import coarse, rounded, steps
from leakaudit.result.schema import AttackResult, Baseline, Estimate, RecordScore
from tests.leakaudit.results import attack, some

STEPS = {"psnr": 0.5, "psnr_released": 0.5, "ssim": 0.05, "lpips": 0.05, "r2": 0.05}
STEPS |= {"swapped": 0.5, "gain": 0.5}


def test_the_table_of_scores_rounds_what_must_be() -> None:
    assert steps(AttackResult) == STEPS
    assert steps(Baseline) == {name: STEPS[name] for name in ("psnr", "ssim", "lpips")}
    assert steps(RecordScore) == {
        name: STEPS[name] for name in ("psnr", "psnr_released", "ssim", "lpips", "gain", "swapped")
    }


def on_grid(value: float, step: float) -> bool:
    return abs(value / step - round(value / step)) < 1e-6


def test_every_score_lies_on_its_grid() -> None:
    exact = Estimate(0.123456, 0.1111, 0.2222, 40)
    scores = {"mse": 0.0123, "psnr": 12.345678, "ssim": 0.7771, "lpips": 0.3331, "psnr_released": 9.87654, "rank": 7}
    made = attack(some(3))
    made = replace(made, records=tuple(replace(r, **scores) for r in made.records), psnr=exact, ssim=exact, lpips=exact)
    made = replace(made, r2=exact, psnr_released=exact, swapped=exact, gain=exact)
    shown = coarse(made)
    for name, step in STEPS.items():
        estimate: Estimate = getattr(shown, name)
        assert all(on_grid(v, step) for v in (estimate.value, estimate.low, estimate.high) if v is not None)
    for record in shown.records:
        assert record.mse is None
        assert record.rank is None
        for f in fields(RecordScore):
            value = getattr(record, f.name)
            if isinstance(value, float):
                assert on_grid(value, STEPS[f.name])  # a field that is added must be given a grid
    assert coarse(shown) == shown
    assert [r.identified for r in shown.records] == some(3)
    assert shown.identification == made.identification


@pytest.mark.parametrize(("value", "expected"), [(12.26, 12.5), (12.24, 12.0), (-0.01, 0.0), (None, None)])
def test_rounding_goes_to_the_nearest(value: float | None, expected: float | None) -> None:
    assert rounded(value, 0.5) == expected
