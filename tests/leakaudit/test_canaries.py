"""The lower bound on ε that a canary shows: below the true one, not far below, and above a false one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.claims import LOCAL_DP, acting
from leakaudit.captured.canaries import Game, _bounds, canary_row, played
from leakaudit.captured.form import CapturedUpdate, Claims
from leakaudit.captured.mechanism import mechanism_of
from leakaudit.protocol.accounting import gaussian_epsilon
from leakaudit.protocol.federation import parse_client
from leakaudit.protocol.registry import parse_defense
from leakaudit.protocol.target import PixelModel, Records, Target
from leakaudit.result.claims import ClaimRow


def play(spec: str, records: int = 3, client: str = "fedsgd", draws: int = 300, **settings: float) -> ClaimRow:
    torch.manual_seed(0)
    model = PixelModel(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)))
    held = Records(torch.rand(records, 1, 4, 4), torch.arange(records) % 3)
    defense = parse_defense(spec)
    claims = Claims(settings=({**LOCAL_DP, **settings},) if settings else ())
    claimed = mechanism_of(claims, defense)
    assert claimed is not None
    game = Game(model, F.cross_entropy, client=parse_client(client), draws=draws)
    return canary_row(game, held, defense, claimed, torch.Generator().manual_seed(1))


@pytest.mark.parametrize("records", [1, 3])
def test_it_is_below_the_true_epsilon_and_not_far(records: int) -> None:
    """The canary's gradient is as long as the clip, so that one release is exactly Gaussian with a shift of 1/σ."""
    for sigma in (0.5, 1.0):
        row = play(f"dp-sgd:noise_multiplier={sigma}:max_norm=0.01", records)
        true = gaussian_epsilon(1 / sigma, 1e-5)
        assert row.measured is not None
        assert 0.2 * true < row.measured < true
        assert row.verdict == "cannot be told"  # none is stated


def test_one_local_step_is_the_same_game() -> None:
    first, second = (play("dp-sgd:noise_multiplier=1:max_norm=0.01", 2, c, 40) for c in ("fedsgd", "fedavg:steps=1"))
    assert first.measured == pytest.approx(second.measured, rel=1e-3)
    assert play("dp-sgd", client="fedavg:steps=2").measured is None


def test_a_sensitivity_that_is_not_the_clip_is_caught() -> None:
    wrong = {"clipping_norm": 0.01, "sensitivity": 1e-6, "epsilon": 10.0}
    row = play(acting({**LOCAL_DP, **wrong}), client="fedavg:epochs=1:batch=2", **wrong)
    assert (row.claimed, row.verdict) == (10.0, "broken")
    assert row.measured is not None
    assert row.measured > 10
    right = {"clipping_norm": 0.01, "sensitivity": 0.01, "epsilon": 1.0}
    assert play(acting({**LOCAL_DP, **right}), client="fedavg:epochs=1:batch=2", **right).verdict == "cannot be told"


def test_what_cannot_be_played_is_said() -> None:
    assert "no noise" in play("clip:max_norm=1").reason
    assert "several" in play("gaussian", client="fedsgd:rounds=2").reason


def test_the_bounds_hold_as_often_as_they_say() -> None:
    """Scores a shift of 1 apart: the Gaussian bound is above the true ε in at most one game of twenty."""
    generator = torch.Generator().manual_seed(0)
    true, misses, free = gaussian_epsilon(1.0, 1e-5), 0, 0
    for _ in range(60):
        draws = torch.randn(2, 120, generator=generator, dtype=torch.float64)
        least, gaussian = _bounds(draws[0] + 1, draws[1], 1e-5)
        misses += gaussian > true
        free += least > true
    assert misses <= 8  # P(more | 5 %) is below a hundredth
    assert free == 0


def test_it_is_played_where_an_epsilon_is_stated() -> None:
    torch.manual_seed(0)
    model = PixelModel(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)))
    held = Records(torch.rand(6, 1, 4, 4), torch.arange(6) % 3)
    target = Target("net", model, F.cross_entropy, held, held, held, ("a", "b", "c"))
    said = {**LOCAL_DP, "clipping_norm": 0.01, "sensitivity": 1e-6, "epsilon": 10.0}
    claims = Claims(records=2, settings=(said,), defense="gaussian")  # the settings say what is played
    update = CapturedUpdate({}, ({},), "gradient", claims)
    assert [row.verdict for row in played(update, target, "it")] == ["broken"]
    assert played(replace(update, claims=Claims(defense="dp-sgd")), target, "it") == ()
    large = replace(target, model=PixelModel(nn.Sequential(nn.Flatten(), nn.Linear(16, 200_000))))
    assert "large" in played(update, large, "it")[0].reason
