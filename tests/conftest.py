"""Test-wide settings: one thread, since two threads on two busy cores can be ten times slower."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from leakaudit.audit import plan
from leakaudit.engine import matching as engine
from leakaudit.engine.stacked import Trials

torch.set_num_threads(1)

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ways that the engine has tried so far in a test; after a call of `match` the last one is the one it took."""
    found: list[str] = []

    def noted(name: str, way: engine.Way, job: Trials) -> tuple[torch.Tensor, torch.Tensor]:
        found.append(name)
        return way(job)

    for name, way in engine.WAYS.items():
        monkeypatch.setitem(engine.WAYS, name, partial(noted, name, way))
    return found


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real images and weights; a user's clone has none, so its tests skip there."""
    if not (SHARED / "data").is_dir():
        pytest.skip("needs the maintainers' shared data folder beside the checkout")
    return SHARED


@pytest.fixture
def short_battery(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `--quick` a matter of seconds: what these tests ask about does not depend on the attacks' strength."""
    monkeypatch.setitem(
        plan.BATTERIES, "quick", replace(plan.BATTERIES["quick"], steps=3, tuning_victims=2, decoder_steps=3)
    )
