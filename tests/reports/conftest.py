"""The golden result of schema version 1: made-up numbers, every shape a result can take."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import pytest

from leakaudit.judge.verdict import overall, rejudge
from leakaudit.judge.words import sentences
from leakaudit.result.rules import resolution
from leakaudit.result.schema import AttackResult, AuditResult, Estimate, RecordScore, from_json, load
from leakaudit.stats.intervals import mean, median, rate

DEMO = Path(__file__).resolve().parents[1] / "golden" / "demo-four.json.gz"  # the demo with four defenses, as scanned
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "result-1.json"


@pytest.fixture(scope="session")
def golden_path() -> Path:
    return GOLDEN


@pytest.fixture(scope="session")
def four() -> AuditResult:
    return from_json(gzip.decompress(DEMO.read_bytes()).decode())


@pytest.fixture
def golden(golden_path: Path) -> AuditResult:
    return load(golden_path)


@pytest.fixture
def sound(golden: AuditResult) -> AuditResult:
    """The golden result with records and intervals that give its made-up shares, and the verdicts that these give."""
    return agreeing(golden)


def agreeing(golden: AuditResult) -> AuditResult:
    """Return a made-up result whose parts agree with each other."""
    rows = tuple(
        replace(
            d,
            attacks=tuple(map(_recorded, d.attacks)),
            accuracy=mean(d.accuracies, (0.0, 1.0), d.accuracy.reason, least=resolution(golden)),
        )
        for d in golden.defenses
    )
    guesses = tuple(
        replace(b, identification=rate(round((b.identification.value or 0) * b.identification.n), b.identification.n))
        if b.identification.n
        else b
        for b in golden.baselines
    )
    settings = {name: value for name, value in golden.settings.items() if name != "records"}  # there are more now
    made = replace(golden, defenses=rows, baselines=guesses, settings=settings)
    judged = tuple(
        replace(d, verdict=v, why=why, reasons=sentences(why)) for d in rows for v, why in [rejudge(made, d)]
    )
    verdict, why = overall(judged)
    return replace(made, defenses=judged, verdict=verdict, why=why, reasons=sentences(why))


def _recorded(attack: AttackResult) -> AttackResult:
    """Return an attack with one record for each that its estimates count, and the estimates of these."""
    if not max(attack.identification.n, attack.psnr.n):
        return replace(attack, records=())
    n = 200  # enough for intervals on the sides where the made-up ones are
    hits = round((attack.identification.value or 0.0) * n)
    scores = {name: getattr(attack, name).value for name in ("psnr", "ssim", "lpips", "psnr_released")}
    told = attack.identification.value is not None
    records = tuple(
        RecordScore(i, 0, "a", "converged", identified=i < hits if told else None, **scores) for i in range(n)
    )
    medians = {name: median([v] * n) if v is not None else getattr(attack, name) for name, v in scores.items()}
    shares = rate(hits, n) if told else Estimate(reason=attack.identification.reason)
    return replace(
        attack,
        records=records,
        statuses={"converged": n},
        identification=shares,
        exact=0,
        candidates=4 if told else 0,
        **medians,
    )
