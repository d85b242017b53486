"""Scores as a result without private pictures holds them: rounded, so that they are no fingerprint of a record.

Attacks repeat to the last digit. Whoever has the model, the settings and a picture can attack that picture and compare:
with all digits, a score confirms that it was the record. Rounded scores still tell what a report is for, and leave a
candidate among many others; they do not hide it from somebody who has few candidates.
"""

from __future__ import annotations

from dataclasses import replace

from leakaudit.result.schema import AttackResult, Baseline, Estimate, RecordScore

DECIBELS = 0.5
SHARES = 0.05  # of SSIM, LPIPS and R²


def coarse(attack: AttackResult) -> AttackResult:
    """Return an attack's result with PSNR in half decibels, SSIM, LPIPS and R² in steps of 0.05, and no MSE or rank."""
    return replace(
        attack,
        psnr=_estimate(attack.psnr, DECIBELS),
        ssim=_estimate(attack.ssim, SHARES),
        lpips=_estimate(attack.lpips, SHARES),
        r2=_estimate(attack.r2, SHARES),
        psnr_released=_estimate(attack.psnr_released, DECIBELS),
        records=tuple(map(coarse_record, attack.records)),
    )


def coarse_baseline(baseline: Baseline) -> Baseline:
    """Return what a guess scores, rounded alike: it is a function of the private records, too."""
    return replace(
        baseline,
        psnr=_estimate(baseline.psnr, DECIBELS),
        ssim=_estimate(baseline.ssim, SHARES),
        lpips=_estimate(baseline.lpips, SHARES),
    )


def rounded(value: float | None, step: float) -> float | None:
    """Return the value as the nearest multiple of a step, None for None."""
    return None if value is None else round(round(value / step) * step, 6)


def coarse_record(score: RecordScore) -> RecordScore:
    """Return one record's scores, rounded."""
    return replace(
        score,
        mse=None,
        rank=None,
        psnr=rounded(score.psnr, DECIBELS),
        ssim=rounded(score.ssim, SHARES),
        lpips=rounded(score.lpips, SHARES),
        psnr_released=rounded(score.psnr_released, DECIBELS),
    )


def _estimate(e: Estimate, step: float) -> Estimate:
    return replace(e, value=rounded(e.value, step), low=rounded(e.low, step), high=rounded(e.high, step))
