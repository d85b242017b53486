"""The golden result of schema version 1: made-up numbers, every shape a result can take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from leakaudit.result import AuditResult, load
from leakaudit.verdict import overall, rejudge

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "result-1.json"


@pytest.fixture(scope="session")
def golden_path() -> Path:
    return GOLDEN


@pytest.fixture
def golden(golden_path: Path) -> AuditResult:
    return load(golden_path)


@pytest.fixture
def sound(golden: AuditResult) -> AuditResult:
    """The golden result without its made-up scores of records, and with the verdicts that its numbers give."""
    bare = tuple(replace(d, attacks=tuple(replace(a, records=()) for a in d.attacks)) for d in golden.defenses)
    judged = tuple(replace(d, verdict=v, reasons=why) for d in bare for v, why in [rejudge(golden, d)])
    verdict, reasons = overall(judged)
    return replace(golden, defenses=judged, verdict=verdict, reasons=reasons)
