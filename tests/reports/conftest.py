"""The golden result of schema version 1: made-up numbers, every shape a result can take."""

from __future__ import annotations

from pathlib import Path

import pytest

from leakaudit.result import AuditResult, load

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "result-1.json"


@pytest.fixture(scope="session")
def golden_path() -> Path:
    return GOLDEN


@pytest.fixture
def golden(golden_path: Path) -> AuditResult:
    return load(golden_path)
