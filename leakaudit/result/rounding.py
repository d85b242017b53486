"""Scores as a result without private pictures holds them: rounded, so that they are no fingerprint of a record.

Attacks repeat to the last digit. Whoever has the model, the settings and a picture can attack that picture and compare:
with all digits, a score confirms that it was the record. Rounded scores still tell what a report is for, and leave a
candidate among many others; they do not hide it from somebody who has few candidates.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

from leakaudit.result.schema import AttackResult, Baseline, Estimate, RecordScore
from leakaudit.result.scores import SCORES


def steps(of: type[AttackResult] | type[Baseline] | type[RecordScore]) -> dict[str, float]:
    """Return the fields that are rounded and to which step."""
    held = {f.name for f in fields(of)}
    return {s.field: s.step for s in SCORES.values() if s.step and s.field in held}


def coarse(attack: AttackResult) -> AttackResult:
    """Return an attack's result with PSNR in half decibels, SSIM, LPIPS and R² in steps of 0.05, and no MSE or rank.

    What metrics of plug-ins say, on whatever scale, keeps two digits.
    """
    known: dict[str, Any] = {name: _estimate(getattr(attack, name), step) for name, step in steps(AttackResult).items()}
    further = tuple(replace(f, estimate=_two_digits(f.estimate)) for f in attack.further)
    return replace(attack, **known, records=tuple(map(coarse_record, attack.records)), further=further)


def coarse_baseline(baseline: Baseline) -> Baseline:
    """Return what a guess scores, rounded alike: it is a function of the private records, too."""
    known: dict[str, Any] = {name: _estimate(getattr(baseline, name), step) for name, step in steps(Baseline).items()}
    return replace(baseline, **known)


def rounded(value: float | None, step: float) -> float | None:
    """Return the value as the nearest multiple of a step, None for None."""
    return None if value is None else round(round(value / step) * step, 6)


def coarse_record(score: RecordScore) -> RecordScore:
    """Return one record's scores, rounded."""
    known: dict[str, Any] = {name: rounded(getattr(score, name), step) for name, step in steps(RecordScore).items()}
    return replace(score, **known, mse=None, rank=None)


def _estimate(e: Estimate, step: float) -> Estimate:
    return replace(e, value=rounded(e.value, step), low=rounded(e.low, step), high=rounded(e.high, step))


def _two_digits(e: Estimate) -> Estimate:
    value, low, high = (v and round(v, 1 - math.floor(math.log10(abs(v)))) for v in (e.value, e.low, e.high))
    return replace(e, value=value, low=low, high=high)
