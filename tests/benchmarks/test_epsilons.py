"""The ε table: the noise that DP-SGD is given, and what a row says."""

from __future__ import annotations

import pytest

from benchmarks.epsilons import DELTA, TRAININGS, Row, noise_for, told
from leakaudit.protocol import accounting


def test_dp_sgd_gets_the_least_noise_that_its_epsilon_bears(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against Opacus's RDP accountant alone, which is quick: the search does not depend on which one is asked."""
    from opacus.accountants import RDPAccountant

    def rdp(noise: float, rate: float, steps: int, delta: float) -> tuple[float, str]:
        accountant = RDPAccountant()
        accountant.history = [(noise, rate, steps)]
        return accountant.get_epsilon(delta), "RDP"

    monkeypatch.setattr("benchmarks.epsilons.spent", rdp)
    noise = noise_for(8.0, 50, 500, 30)
    assert rdp(noise, 0.1, 30, DELTA)[0] <= 8.0 < rdp(noise - 0.001, 0.1, 30, DELTA)[0]
    assert accounting.epsilon(noise, 0.1, 30, DELTA)[0] <= 8.0


def test_a_row_says_epsilon_interval_and_times() -> None:
    row = Row("cifar10", "obscure", 8.0, "obscure:epsilon=8", 32, 24, (0.44, 0.46, 0.45), 0.425, 0.475, 40.0, 90.0)
    assert told(row) == "| cifar10 | 8 | `obscure:epsilon=8` | 24 × 32 | 45.0 (42.5–47.5) | 40 + 30 |"
    assert all(len(trainings) > 1 for trainings in TRAININGS.values())
