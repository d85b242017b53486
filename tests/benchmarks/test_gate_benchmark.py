"""The benchmark of the gate: the same draws without a change raise no alarm, a planted collapse does."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.gate import World, draw, shifted, smallest, verdicts


def test_no_change_is_no_alarm_and_a_collapse_is_one() -> None:
    said, failed = verdicts(World(0.3), World(0.3), 64, 20, 1)
    assert said.total() == 20
    assert failed.total() == 0
    said, failed = verdicts(World(0.0), World(0.9), 64, 5, 1)
    assert said["fail"] == failed["regression-identification"] == 5


def test_worlds_are_what_they_say() -> None:
    random = np.random.default_rng(0)
    made = draw(World(0.3), 4000, random.random(4000), random)
    (defense,) = made.defenses
    assert [a.identification.value for a in defense.attacks] == pytest.approx([0.307] * 3, abs=0.03)
    hits = np.array([[r.identified for r in a.records] for a in defense.attacks])
    moved = draw(shifted(World(0.3), 0.2), 4000, random.random(4000), random)
    after = np.array([[r.identified for r in a.records] for a in moved.defenses[0].attacks])
    assert after.any(0).mean() - hits.any(0).mean() == pytest.approx(0.2, abs=0.04)


def test_the_smallest_loss_is_searched_and_may_not_exist() -> None:
    steps = [0.1, 0.5, 0.9]
    found = smallest(lambda d: shifted(World(0.0), d), World(0.0), "regression-identification", steps, 64, 10)
    assert found == (0.5, 1.0)
    assert smallest(lambda d: World(0.0), World(0.0), "regression-identification", steps, 16, 5) is None
