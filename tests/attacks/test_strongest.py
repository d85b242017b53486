"""Whoever changes something meets the families that are built for it, and they find more than those that are not."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from torch import nn

from leakaudit.audit import plan
from leakaudit.audit.audit import audit
from leakaudit.audit.canary import leaky
from leakaudit.audit.plan import Plan, attacks_for
from leakaudit.protocol.attack import FAMILIES, Attack, family_of
from leakaudit.protocol.registry import attacks, defenses, parse_defense
from leakaudit.protocol.stages import declared
from leakaudit.protocol.target import PixelModel
from leakaudit.result.batteries import BATTERIES
from leakaudit.result.rules import guessing, most_successful
from leakaudit.result.schema import AttackResult, AuditResult, DefenseResult
from leakaudit.work.seeding import forked

# By what a defense changes, the families of adaptive attacks (no bounds) that must meet it.
MEETS = {
    "records": {"replay", "learned"},
    "labels": {"replay", "learned"},
    "model": {"replay", "learned", "matching"},
    "examples": {"replay", "learned", "matching"},
    "update": {"replay", "learned", "matching"},
}
BUILT_IN = [name for name in defenses() if name != "none"]
SMALL = {"obscure": "obscure:epochs=2:steps=2:pictures=1:latent=16"}
# Where the strongest adaptive attack finds no more than the strongest naive one, and why.
NOT_BEATEN = {
    "class-conditional": "what is shared depends on nothing but the class: nobody is above chance",
    "obscure": "the same, at rate 0",
}


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_defense_meets_the_families_of_what_it_changes(name: str) -> None:
    defense = parse_defense(name)
    chosen = attacks_for(defense, BATTERIES["standard"])
    met = {family_of(type(attack)) for attack, role in chosen if role == "adaptive"}
    wanted = {family for change in declared(defense) for family in MEETS[change]}
    assert wanted <= met


def test_every_attack_is_of_one_family_and_every_family_has_one() -> None:
    told = {name: family_of(cls) for name, cls in attacks().items()}
    assert set(told.values()) == set(FAMILIES)
    page = (Path(__file__).parents[2] / "docs" / "attacks.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| .+ \| (.+) \|$", page.split("## Families")[1], re.MULTILINE))
    for name, family in told.items():
        assert f"`{name}`" in rows[family], f"docs/attacks.md names {name} beside no family"


def test_an_attack_that_says_nothing_has_the_family_of_what_it_is() -> None:
    class Own(Attack):
        name = "own"

    assert family_of(Own) == "matching"
    for changes, family in (
        ({"kind": "linkage"}, "linkage"),
        ({"kind": "labels", "closed_form": True}, "labels"),
        ({"closed_form": True}, "closed-form"),
        ({"requires": frozenset({"model_control"})}, "malicious-server"),
        ({"family": "unmixing", "kind": "linkage"}, "unmixing"),
    ):
        assert family_of(type("Mine", (Own,), changes)) == family


def is_naive(attack: AttackResult) -> bool:
    """Whether an attack is one of the battery's that does not ask for the defense."""
    return attack.name in BATTERIES["standard"].attacks and "defense" not in attack.requires


@cache
def audited() -> AuditResult:
    """A small network with sigmoids on made pictures, 8 of them attacked under every built-in defense."""
    with forked(0):
        network = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Sigmoid(), nn.Flatten(), nn.Linear(8 * 64, 10))
        target = replace(leaky(0), model=PixelModel(network))
    specs = tuple(SMALL.get(name, name) for name in BUILT_IN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            plan.BATTERIES, "quick", replace(BATTERIES["quick"], steps=60, tuning_victims=2, decoder_steps=20)
        )
        asked = Plan(defenses=specs, battery="quick", records=8, candidates=20, utility=False, all_attacks=True)
        return audit(target, asked)


def strongest(row: DefenseResult) -> tuple[float, float]:
    """The highest rates of naive and of adaptive attacks."""
    real = [a for a in row.attacks if a.role != "bound"]
    sides = [[a for a in real if is_naive(a) is naive] for naive in (True, False)]
    found = [most_successful(side) for side in sides]
    naive, adaptive = (0.0 if best is None else best.identification.value or 0.0 for best in found)
    return naive, adaptive


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_strongest_adaptive_attack_finds_no_less_than_the_strongest_naive_one(name: str) -> None:
    result = audited()
    (row,) = [d for d in result.defenses if d.spec == SMALL.get(name, name)]
    naive, adaptive = strongest(row)
    chance = guessing(result.chance_identification, result.baselines)
    if name in NOT_BEATEN:
        assert max(naive, adaptive) < 0.5
        assert all((a.identification.low or 0.0) <= chance for a in row.attacks if a.role != "bound")
        return
    assert adaptive >= naive
    assert adaptive > chance


def test_on_most_defenses_it_finds_more() -> None:
    pairs = [strongest(d) for d in audited().defenses if d.spec != "none" and d.spec not in NOT_BEATEN]
    assert sum(adaptive > naive for naive, adaptive in pairs) > len(pairs) / 2
