"""Fixtures of the tests of time budgets."""

from __future__ import annotations

import time

import pytest

from leakaudit.scene.scene import Scene
from tests.leakaudit.timed import Time, small_scene


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    """Return the time of the whole process, which stands still from now on."""
    made = Time()
    monkeypatch.setattr(time, "monotonic", made)
    return made


@pytest.fixture(scope="package")
def scene() -> Scene:
    """Return a small scene, the same for all."""
    return small_scene()
