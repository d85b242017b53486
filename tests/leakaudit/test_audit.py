"""The whole way through, from Python: the control, the roles, honesty about what failed, the random state."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import leakaudit
from leakaudit import registry
from leakaudit.attack import Attack, Reconstruction
from leakaudit.client import SharedUpdate
from leakaudit.defense import Defense
from leakaudit.result import AttackResult, AuditResult, DefenseResult, from_json, to_json, without_timings
from leakaudit.target import PixelModel

pytestmark = pytest.mark.usefixtures("short_battery")

FAST: dict[str, Any] = {"battery": "quick", "records": 4, "epochs": 1, "attacks": ("inverting-gradients:steps=3",)}


def data(n: int = 80, seed: int = 0) -> TensorDataset:
    g = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.rand(n, 1, 8, 8, generator=g), torch.arange(n) % 2)


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.LeakyReLU(), nn.Flatten(), nn.Linear(256, 2))


def dense() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 2))


def row(result: AuditResult, spec: str) -> DefenseResult:
    return next(d for d in result.defenses if d.spec == spec)


def attack(found: DefenseResult, name: str) -> AttackResult:
    return next(a for a in found.attacks if a.name == name)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Register something for one test only."""
    registry.attacks()
    registry.defenses()

    def add(kind: str, cls: Any) -> None:
        monkeypatch.setitem(getattr(registry, f"_{kind}"), cls.name, cls)

    return add


def test_the_control_always_runs_and_the_analytic_attack_undoes_a_dense_net() -> None:
    result = leakaudit.scan(dense(), data(), defense="gaussian", **FAST | {"attacks": ("analytic",), "records": 8})
    control = row(result, "none")
    assert not control.requested
    exact = attack(control, "analytic")
    assert exact.psnr.value is not None
    assert exact.psnr.value > 100
    assert exact.identification.value == 1.0
    assert control.verdict == "fail"
    # With the adaptive attacks beside it, the defended row has roles, and every battery attack ran there as well.
    assert {a.role for a in row(result, "gaussian").attacks} == {"standard", "adaptive"}


def test_without_a_defense_the_undefended_model_itself_is_judged() -> None:
    result = leakaudit.scan(dense(), data(), **FAST | {"attacks": ("analytic",), "records": 16, "utility": False})
    assert row(result, "none").requested
    assert result.verdict == "fail"


def test_same_seed_same_bytes_and_the_global_random_state_is_left_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = leakaudit.scan(network, data(), defense=["prune", "gaussian"], **FAST)
    assert torch.equal(torch.rand(3), expected)
    again = leakaudit.scan(network, data(), defense=["prune", "gaussian"], **FAST)
    assert to_json(without_timings(first)) == to_json(without_timings(again))
    assert from_json(to_json(first)) == first


def test_one_defense_does_not_shift_the_numbers_of_another() -> None:
    together = leakaudit.scan(dense(), data(), defense=["gaussian", "prune"], **FAST)
    alone = leakaudit.scan(dense(), data(), defense="prune", **FAST)
    assert row(together, "prune") == row(alone, "prune")


def test_an_attack_that_needs_what_is_not_exposed_is_not_applicable() -> None:
    result = leakaudit.scan(dense(), data(), defense="gaussian", exposure="honest-but-curious", utility=False, **FAST)
    expectation = attack(row(result, "gaussian"), "expectation")
    assert expectation.statuses == {"not-applicable": 4}
    assert "defense" in str(expectation.reason)
    assert not attack(row(result, "none"), "inverting-gradients").tuned  # nothing to tune on
    assert any("default settings" in sentence for sentence in result.assumptions)
    assert row(result, "gaussian").verdict != "pass"


def test_a_defense_that_cannot_be_applied_is_shown_and_inconclusive(registered: Any) -> None:
    class Broken(Defense):
        name = "broken"

        def fit(self, target: Any, generator: torch.Generator) -> Defense:
            raise ValueError("no records to learn from\nmore")

    registered("defenses", Broken)
    result = leakaudit.scan(dense(), data(), defense=["broken", "clip"], **FAST)
    assert row(result, "broken").verdict == "inconclusive"
    assert "no records to learn from" in row(result, "broken").reasons[0]
    assert attack(row(result, "clip"), "inverting-gradients").psnr.value is not None
    assert result.verdict in ("inconclusive", "fail")


def test_what_an_attack_sees_does_not_hold_the_truth(registered: Any) -> None:
    """Run a spying attack through the whole audit: nothing it can reach equals a victim's picture."""
    private = data()
    reachable: list[torch.Tensor] = []

    class Spy(Attack):
        name = "spy"

        def __call__(self, model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> Reconstruction:
            seen: set[int] = set()

            def walk(item: Any, depth: int = 0) -> None:
                if id(item) in seen or depth > 6:
                    return
                seen.add(id(item))
                if isinstance(item, torch.Tensor):
                    reachable.append(item.detach())
                elif isinstance(item, dict):
                    for value in item.values():
                        walk(value, depth + 1)
                elif isinstance(item, list | tuple):
                    for value in item:
                        walk(value, depth + 1)
                elif hasattr(item, "__dict__"):
                    walk(vars(item), depth + 1)

            walk([model, update, generator])
            return Reconstruction(None, None, torch.zeros(update.victims), ("converged",) * update.victims)

    registered("attacks", Spy)
    result = leakaudit.scan(
        dense(), private, test_data=data(20, 1), auxiliary_data=data(30, 2), **FAST | {"attacks": ("spy",)}
    )
    assert attack(row(result, "none"), "spy").statuses == {"converged": 4}
    assert reachable
    pictures = private.tensors[0].flatten(1)
    for tensor in reachable:
        if tensor.numel() and tensor.numel() % 64 == 0:
            rows = tensor.reshape(-1, 64).to(pictures)
            assert float(torch.cdist(rows, pictures).min()) > 1e-3


def test_settings_that_cannot_be_are_a_user_error() -> None:
    with pytest.raises(leakaudit.UserError, match="battery"):
        leakaudit.scan(dense(), data(), battery="huge")
    with pytest.raises(leakaudit.UserError, match="unknown defense"):
        leakaudit.scan(dense(), data(), defense="wish")
    with pytest.raises(leakaudit.UserError, match="exposure"):
        leakaudit.scan(dense(), data(), exposure="everything")


def test_batches_larger_than_one_go_the_whole_way() -> None:
    result = leakaudit.scan(dense(), data(), defense="dp-sgd", batch_size=2, utility=False, **FAST)
    assert attack(row(result, "dp-sgd"), "inverting-gradients").psnr.n == 4
    assert "batch of 2" in result.assumptions[0]


def test_a_chain_reports_every_parts_settings_and_facts() -> None:
    result = leakaudit.scan(dense(), data(), defense="prune:sparsity=0.5,dp-sgd:noise_multiplier=2", **FAST)
    found = result.defenses[1]
    assert found.settings["prune.sparsity"] == 0.5
    assert found.settings["dp-sgd.noise_multiplier"] == 2.0
    assert float(found.facts["epsilon"] or 0) > 0
    assert {"masked-matching", "expectation"} <= {a.name for a in found.attacks}
