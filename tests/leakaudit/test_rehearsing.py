"""What doctor tries before a scan: the scan's own attacks, one step each, on auxiliary records."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from leakaudit.audit.rehearsing import TWICE, Rehearsed, brief, rehearsed
from leakaudit.load.loading import target_from_objects
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.registry import attacks
from leakaudit.protocol.target import Target
from leakaudit.scene.plan import Plan, attacks_for
from leakaudit.watch.rehearsal import failures, show_rehearsed


def target(network: nn.Module, count: int = 80) -> Target:
    images = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return target_from_objects(network, TensorDataset(images, torch.arange(count) % 2))


def test_every_attack_of_a_scan_is_tried_and_private_records_are_not() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(72, 2))
    loaded, plan, told = target(network), Plan(battery="quick"), []
    unknown = replace(loaded.private, images=torch.full_like(loaded.private.images, torch.nan))
    loaded = replace(loaded, private=unknown)  # whatever looked at them would fail
    before = torch.get_rng_state()
    tried = rehearsed(loaded, plan, told.append)
    assert torch.equal(before, torch.get_rng_state())
    names = [each.name for each in tried]
    assert names == told
    assert names[0] == TWICE
    assert set(names[1:]) == {a.name for a, _ in attacks_for(Defense(), plan.effort(), frozenset())}
    outcomes = {each.name: each for each in tried}
    assert outcomes["analytic"].outcome == "not-applicable"
    assert outcomes["analytic"].reason == "the first layer is Conv2d, not dense"
    assert {each.outcome for name, each in outcomes.items() if name not in ("analytic", "peeling")} == {"works"}


def test_what_fails_in_a_scan_fails_here_for_the_same_reason() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):  # type: ignore[no-untyped-def]
            return x * 2

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, slope):  # type: ignore[no-untyped-def]
            return slope * 2

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(64, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(Once.apply(self.a(x.flatten(1))))  # type: ignore[no-any-return]

    (twice, *_) = rehearsed(target(Network()), Plan(attacks=("labels",)))
    assert (twice.name, twice.outcome) == (TWICE, "fails")
    assert "marked as once differentiable" in twice.reason


def test_too_few_auxiliary_records_are_said() -> None:
    loaded = target(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), 12)
    assert rehearsed(loaded, Plan(records=8, batch_size=4)) == ()


@pytest.mark.parametrize("name", attacks())
def test_an_attack_in_brief_is_that_attack_with_a_step(name: str) -> None:
    found = brief(attacks()[name]())
    assert type(found) is attacks()[name]
    assert getattr(found, "steps", 1) == 1


def test_it_is_shown_by_outcome_a_line_for_each_reason() -> None:
    tried = (
        Rehearsed(TWICE, "works"),
        Rehearsed("a", "not-applicable", "no [dense] layer"),
        Rehearsed("b", "not-applicable", "no [dense] layer"),
        Rehearsed("c", "fails", "RuntimeError: x"),
    )
    console = Console(record=True, width=200, force_terminal=False)
    show_rehearsed(console, tried)
    lines = console.export_text().splitlines()
    assert lines[0].startswith("Tried on auxiliary records, one step of each of the 3 attacks")
    assert [line.rstrip() for line in lines[1:]] == [
        "works    double backward",
        "left out a, b (no [dense] layer)",
        "fails    c (RuntimeError: x)",
    ]
    assert failures(tried) == 1
    show_rehearsed(console, ())
    assert "too few auxiliary records" in console.export_text()
