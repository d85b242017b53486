"""A changed setting costs what depends on it: the rest is taken up, as if it had been computed now."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from leakaudit.audit import audit as auditing
from leakaudit.audit.weaker import Seen, seen_weakened
from leakaudit.protocol import registry
from leakaudit.protocol.attack import Attack, Reconstruction
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.registry import parse_defense
from leakaudit.protocol.target import PixelModel
from leakaudit.result.schema import AuditResult, Estimate, to_json
from leakaudit.scene.examine import examine
from leakaudit.scene.naming import SCORED
from leakaudit.scene.plan import Plan
from leakaudit.scene.scene import set_scene
from leakaudit.units import desk
from tests.leakaudit import audited
from tests.leakaudit.shelves import SMALL, Store, at, scanned, tiny  # noqa: F401 - a fixture

pytestmark = pytest.mark.usefixtures("tiny")
WEAK, STRONG = "gaussian:std=30", "gaussian:std=3"


def text(result: AuditResult) -> str:
    return to_json(replace(result, made="", timings={}))


@pytest.fixture
def yesterday(tiny: None) -> Store:  # noqa: F811
    """A store with the outcomes of a small scan, those that stay when it ends."""
    store = Store()
    scanned(store)
    private = {key for key, header in store.headers().items() if header.kind in ("run", "prepare", "moment")}
    for key in private:
        store.drop(key)
    return store


def costs(store: Store, **settings: Any) -> list[str]:
    """Return what a scan computes beside what is looked at anew in every one; its result is as if all had been."""
    result, computed = scanned(store, **settings)
    assert text(result) == text(scanned(Store(), **settings)[0])
    return [work for work in computed if work.split()[0] not in ("prepare", "run")]


def test_the_same_again_costs_nothing(yesterday: Store) -> None:
    assert costs(yesterday) == []


def test_a_further_strength_shares_the_control(yesterday: Store) -> None:
    found = costs(yesterday, defenses=(STRONG,))
    assert found
    assert all(STRONG in work for work in found)


def test_a_further_defense_costs_that_defense(yesterday: Store) -> None:
    found = costs(yesterday, defenses=(WEAK, "clip"))
    assert found
    assert all(" clip: " in work for work in found)


def test_a_further_attack_costs_that_attack(yesterday: Store) -> None:
    found = costs(yesterday, attacks=("labels", "analytic"))
    assert {work.split(": ")[-1] for work in found} == {"analytic"}


def test_a_further_seed_costs_a_training_run_for_each_defense(yesterday: Store) -> None:
    assert costs(yesterday, seeds=2) == [f"training {spec}: accuracy, seed 2" for spec in (WEAK, "none")]


def test_other_records_cost_no_fit_and_no_training(yesterday: Store) -> None:
    found = {work.split()[0] for work in costs(yesterday, records=6)}
    assert found == {"scene", "tune", "attack", "weakened"}


def test_other_weights_of_lpips_cost_scores(yesterday: Store, tmp_path: Path) -> None:
    with at(yesterday) as own:
        auditing.audit(audited.target(), Plan(**SMALL), lpips_weights=tmp_path / "none.pth")
    assert {work.split()[0] for work in yesterday.works(own.computed)} - {"prepare", "run"} == SCORED


def test_a_limit_costs_only_what_is_seen_by_it(yesterday: Store) -> None:
    assert {work.split()[0] for work in costs(yesterday, max_identification=0.3)} == {"weakened"}


@dataclass(frozen=True, kw_only=True)
class Failing(Attack):
    """It needs something that is not there yet."""

    name = "failing"
    kind = "labels"

    def __call__(self, model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> Reconstruction:
        raise OSError("the network is down")


@dataclass(frozen=True, kw_only=True)
class Unfit(Defense):
    """It cannot be fitted yet."""

    name = "unfit"

    def fit(self, target: Any, generator: torch.Generator) -> Defense:
        raise OSError("the network is down")


def test_what_failed_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    registry.attacks(), registry.defenses()
    monkeypatch.setitem(registry._attacks, "failing", Failing)
    monkeypatch.setitem(registry._defenses, "unfit", Unfit)
    store = Store()
    settings: dict[str, Any] = {"attacks": ("failing",), "defenses": ("unfit",), "utility": False}
    failing = {"attack none: failing", "prepare unfit: fit"}
    with at(store) as own:
        auditing.audit(audited.target(), Plan(**{**SMALL, **settings}))
        assert failing <= set(store.works(own.computed))
        own.computed.clear()
        auditing.audit(audited.target(), Plan(**{**SMALL, **settings}))
        assert failing.isdisjoint(store.works(own.computed))  # in one run other participants are told
    assert failing <= set(scanned(store, **settings)[1])


def test_what_is_told_of_a_settled_verdict_does_not_depend_on_earlier_scans() -> None:
    store = Store()
    with at(store):
        scene = set_scene(audited.target(), Plan(**SMALL), None, "", ())
        defense = parse_defense("clip")
        subject = examine(scene, "clip", defense)
        known = seen_weakened(scene, subject, defense, ())
        assert known.strength is not None
        settled = seen_weakened(scene, subject, defense, (), settled="it was settled")
    assert settled == Seen(None, Estimate(reason="it was settled"))
    assert desk.current() is None
